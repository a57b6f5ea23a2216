"""Correct a classifier trained on imbalanced data after training, by perturbing its input.

An implementation of Chen et al., 'Alleviating Data Imbalance Issue with Perturbed Input During Inference'
(MICCAI 2021), for any PyTorch classifier. Importing the package loads no torch: names are fetched when used.
"""

__version__ = "0.1.0"

# What type checkers take for true. Not even `typing` is imported here: `python -m imbalance_perturb` runs this before
# __main__ takes the current folder out of the way, where a file of that name may lie. Hence no lazy_loader either.
TYPE_CHECKING = False

if TYPE_CHECKING:
    # The public names; this is the one list of them, which `_homes` reads.
    from imbalance_perturb.config.settings import DebiasSettings as DebiasSettings
    from imbalance_perturb.config.settings import ModelSettings as ModelSettings
    from imbalance_perturb.config.settings import PreprocessSettings as PreprocessSettings
    from imbalance_perturb.config.settings import RunSettings as RunSettings
    from imbalance_perturb.config.settings import Settings as Settings
    from imbalance_perturb.data.demo_files import write_demo as write_demo
    from imbalance_perturb.data.digits import DigitSplits as DigitSplits
    from imbalance_perturb.data.image_files import ImageList as ImageList
    from imbalance_perturb.data.image_files import find_images as find_images
    from imbalance_perturb.data.labels import LabelledImages as LabelledImages
    from imbalance_perturb.data.labels import count_labels as count_labels
    from imbalance_perturb.data.labels import find_labelled_images as find_labelled_images
    from imbalance_perturb.deployment.export import ExportOptions as ExportOptions
    from imbalance_perturb.deployment.export import ExportSummary as ExportSummary
    from imbalance_perturb.deployment.export import export_classifier as export_classifier
    from imbalance_perturb.errors import ArchitectureError as ArchitectureError
    from imbalance_perturb.errors import ClusterError as ClusterError
    from imbalance_perturb.errors import CountsError as CountsError
    from imbalance_perturb.errors import DeviceError as DeviceError
    from imbalance_perturb.errors import ImageError as ImageError
    from imbalance_perturb.errors import ImageFolderError as ImageFolderError
    from imbalance_perturb.errors import ImbperturbError as ImbperturbError
    from imbalance_perturb.errors import InterruptedRunError as InterruptedRunError
    from imbalance_perturb.errors import LabelsError as LabelsError
    from imbalance_perturb.errors import MergeError as MergeError
    from imbalance_perturb.errors import ModelFileError as ModelFileError
    from imbalance_perturb.errors import ModelGradientError as ModelGradientError
    from imbalance_perturb.errors import ModelOutputError as ModelOutputError
    from imbalance_perturb.errors import NothingToCorrectError as NothingToCorrectError
    from imbalance_perturb.errors import OutputFileError as OutputFileError
    from imbalance_perturb.errors import PredictionsError as PredictionsError
    from imbalance_perturb.errors import ResumeError as ResumeError
    from imbalance_perturb.errors import SettingsError as SettingsError
    from imbalance_perturb.errors import TargetError as TargetError
    from imbalance_perturb.errors import TooManyFailuresError as TooManyFailuresError
    from imbalance_perturb.errors import UntrustedModelError as UntrustedModelError
    from imbalance_perturb.errors import VerificationError as VerificationError
    from imbalance_perturb.evaluation.evaluation_files import evaluate_files as evaluate_files
    from imbalance_perturb.evaluation.paired_evaluation import IntervalOptions as IntervalOptions
    from imbalance_perturb.evaluation.paired_evaluation import evaluate as evaluate
    from imbalance_perturb.evaluation.results import Evaluation as Evaluation
    from imbalance_perturb.inference.folder_prediction import RunSummary as RunSummary
    from imbalance_perturb.inference.inspection import Inspection as Inspection
    from imbalance_perturb.inference.inspection import inspect_model as inspect_model
    from imbalance_perturb.inference.pipeline import Pipeline as Pipeline
    from imbalance_perturb.inference.pipeline import load_pipeline as load_pipeline
    from imbalance_perturb.inference.prediction_job import PredictOptions as PredictOptions
    from imbalance_perturb.inference.prediction_job import predict_folder as predict_folder
    from imbalance_perturb.inference.progress import LoadedPipeline as LoadedPipeline
    from imbalance_perturb.inference.progress import Progress as Progress
    from imbalance_perturb.inference.share_estimation import ClassShares as ClassShares
    from imbalance_perturb.inference.share_estimation import SharesOptions as SharesOptions
    from imbalance_perturb.inference.share_estimation import estimate_shares as estimate_shares
    from imbalance_perturb.inference.verification import Verification as Verification
    from imbalance_perturb.inference.verification import VerifyOptions as VerifyOptions
    from imbalance_perturb.inference.verification import verify_run as verify_run
    from imbalance_perturb.method.classifier import PerturbedClassifier as PerturbedClassifier
    from imbalance_perturb.method.counts import ClassCounts as ClassCounts
    from imbalance_perturb.method.counts import load_class_counts as load_class_counts
    from imbalance_perturb.method.counts import parse_class_counts as parse_class_counts
    from imbalance_perturb.method.logit_corrections import adjust_logits as adjust_logits
    from imbalance_perturb.method.perturbation import GradientSign as GradientSign
    from imbalance_perturb.method.perturbation import gradient_sign as gradient_sign
    from imbalance_perturb.method.perturbation import perturb as perturb
    from imbalance_perturb.method.perturbation import step as step
    from imbalance_perturb.method.target import parse_target as parse_target
    from imbalance_perturb.method.target import target_distribution as target_distribution
    from imbalance_perturb.models import LoadedClassifier as LoadedClassifier
    from imbalance_perturb.models import ModelInfo as ModelInfo
    from imbalance_perturb.models import ProbeResult as ProbeResult
    from imbalance_perturb.models import load_classifier as load_classifier
    from imbalance_perturb.models import probe_classifier as probe_classifier
    from imbalance_perturb.models.corrected_file import CorrectedCard as CorrectedCard
    from imbalance_perturb.models.corrected_file import read_card as read_card
    from imbalance_perturb.predictions.frames import read_predictions as read_predictions
    from imbalance_perturb.predictions.merging import MergeOptions as MergeOptions
    from imbalance_perturb.predictions.merging import MergeSummary as MergeSummary
    from imbalance_perturb.predictions.merging import merge_predictions as merge_predictions
    from imbalance_perturb.selection.comparison.method_comparison import ComparisonFiles as ComparisonFiles
    from imbalance_perturb.selection.comparison.method_comparison import compare_methods as compare_methods
    from imbalance_perturb.selection.comparison.methods import ComparisonOptions as ComparisonOptions
    from imbalance_perturb.selection.comparison.results import Comparison as Comparison
    from imbalance_perturb.selection.rule import SelectionRule as SelectionRule
    from imbalance_perturb.selection.tuning.eps_tuning import TuningOptions as TuningOptions
    from imbalance_perturb.selection.tuning.eps_tuning import tune as tune
    from imbalance_perturb.selection.tuning.results import Tuning as Tuning
else:

    def __getattr__(name):
        if name == "__all__":
            return __dir__()
        # Python asks for names of its own, and for these nothing need be read.
        home = None if name.startswith("__") else _homes().get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = globals()[name] = getattr(importlib.import_module(home), name)
        return value

    def __dir__():
        return sorted([*_homes(), "__version__"])

    def _homes():
        """Module by name, as the imports above have it."""
        import ast

        found = ast.walk(ast.parse(__loader__.get_source(__name__)))
        imports = [node for node in found if isinstance(node, ast.ImportFrom)]
        return {alias.name: node.module for node in imports for alias in node.names}
