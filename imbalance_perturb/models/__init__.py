"""Trained classifiers from files: told by content, loaded without running code, checked before use."""

from imbalance_perturb.models.class_names import read_class_names
from imbalance_perturb.models.classifier import LoadedClassifier, ModelInfo
from imbalance_perturb.models.folders.model_folder import hash_model
from imbalance_perturb.models.loading import load_classifier
from imbalance_perturb.models.own_preprocessing import OwnPreprocessing
from imbalance_perturb.models.probe import ProbeResult, probe_classifier

__all__ = [
    "LoadedClassifier",
    "ModelInfo",
    "OwnPreprocessing",
    "ProbeResult",
    "hash_model",
    "load_classifier",
    "probe_classifier",
    "read_class_names",
]
