"""Trained classifiers from files: told by content, loaded without running code, checked before use."""

from imbalance_perturb.models.class_names import read_class_names
from imbalance_perturb.models.classifier import LoadedClassifier, ModelInfo
from imbalance_perturb.models.loading import load_classifier
from imbalance_perturb.models.probe import ProbeResult, probe_classifier

__all__ = ["LoadedClassifier", "ModelInfo", "ProbeResult", "load_classifier", "probe_classifier", "read_class_names"]
