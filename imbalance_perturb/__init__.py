"""Correct a classifier trained on imbalanced data after training, by perturbing its input.

An implementation of Chen et al., 'Alleviating Data Imbalance Issue with Perturbed Input During Inference'
(MICCAI 2021), for any PyTorch classifier. Importing the package loads no torch: names are fetched when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imbalance_perturb.errors import ImbperturbError
    from imbalance_perturb.method.classifier import PerturbedClassifier
    from imbalance_perturb.method.counts import ClassCounts, load_class_counts, parse_class_counts
    from imbalance_perturb.method.logit_corrections import adjust_logits
    from imbalance_perturb.method.perturbation import GradientSign, gradient_sign, perturb, step
    from imbalance_perturb.method.target import parse_target, target_distribution
    from imbalance_perturb.models import LoadedClassifier, load_classifier, probe_classifier

__version__ = "0.1.0"

_HOME = {
    "ClassCounts": "method.counts",
    "GradientSign": "method.perturbation",
    "ImbperturbError": "errors",
    "LoadedClassifier": "models",
    "PerturbedClassifier": "method.classifier",
    "adjust_logits": "method.logit_corrections",
    "gradient_sign": "method.perturbation",
    "load_class_counts": "method.counts",
    "load_classifier": "models",
    "parse_class_counts": "method.counts",
    "parse_target": "method.target",
    "perturb": "method.perturbation",
    "probe_classifier": "models",
    "step": "method.perturbation",
    "target_distribution": "method.target",
}

__all__ = [
    "ClassCounts",
    "GradientSign",
    "ImbperturbError",
    "LoadedClassifier",
    "PerturbedClassifier",
    "__version__",
    "adjust_logits",
    "gradient_sign",
    "load_class_counts",
    "load_classifier",
    "parse_class_counts",
    "parse_target",
    "perturb",
    "probe_classifier",
    "step",
    "target_distribution",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
