"""What makes the rows of a run, entry by entry: these types are what is written and read, and what the schema says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from imbalance_perturb.config.settings import Settings
from imbalance_perturb.config.stored_settings import parse_settings
from imbalance_perturb.errors import SettingsError
from imbalance_perturb.files.typed_json import (
    OPTIONAL,
    Count,
    EntryError,
    Form,
    Positive,
    read_typed,
    refuse,
    write_typed,
)
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.predictions.preparation import PreprocessingEntry
from imbalance_perturb.predictions.rows import RowLayout
from imbalance_perturb.predictions.shards import Shard, parse_shard

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Versions of what computed the rows.

    Attributes:
        imbalance_perturb: this package.
        python: the interpreter.
        torch, torchvision: they build the network and compute the logits.
        pillow, numpy: they decode and resize; decoders can differ by a level of a pixel.
        pydicom, pillow_heif, tifffile, imagecodecs: decoders of DICOM, HEIC, TIFF, null where not installed.
    """

    imbalance_perturb: str
    python: str
    torch: str
    torchvision: str
    pillow: str
    numpy: str
    pydicom: str | None
    pillow_heif: str | None
    tifffile: str | None
    imagecodecs: str | None


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """The model file and what was found in it.

    Attributes:
        path: the file, as it was given.
        sha256: of the bytes that were loaded, in hexadecimal.
        format: what kind of file it is, in words.
        arch: the architecture's name, null where it is not known.
        num_classes: number of classes.
        in_channels: channels of the input image, where known.
        outputs: what the network itself returns, logits or probabilities.
        fixed_batch: the only batch size that the file's own graph takes.
        fixed_size: the only height and width in pixels that it takes.
        parameters: number of parameters.
        notes: a sentence for everything that was made of the file, or taken for granted.
        assumptions: of these what another choice would change predictions by.
        classes: the class names in class-index order, where the file has them.
    """

    path: str
    sha256: str
    format: str
    arch: str | None
    num_classes: Count
    in_channels: Count | None
    outputs: str
    fixed_batch: Count | None
    fixed_size: tuple[Count, Count] | None
    parameters: Count
    notes: tuple[str, ...]
    assumptions: tuple[str, ...]
    classes: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class CountsEntry:
    """The file of the class counts.

    Attributes:
        path: the file, as it was given.
        sha256: of the bytes that were read, in hexadecimal.
    """

    path: str | None
    sha256: str


@dataclass(frozen=True, kw_only=True)
class StepStrength:
    """How eps was settled that was given as auto, from the gradients of some images.

    Attributes:
        asked: eps as it was given.
        full_eps: the eps at which the step takes the whole log prior from the logits of the median image.
        images: on how many images that was measured.
    """

    asked: float | str
    full_eps: float
    images: Count


@dataclass(frozen=True, kw_only=True)
class ClassEntry:
    """One class.

    Attributes:
        index: its column of the logits, from 0.
        name: its name.
        count: its number of training images.
        target: its share in the target distribution p*, from 0 to 1.
    """

    index: Count
    name: str
    count: int
    target: float


@dataclass(frozen=True, kw_only=True)
class MakingExecution:
    """How the rows are computed, as it was settled on this machine.

    Attributes:
        device: cpu, cuda or cuda:N.
        device_name: the device as people know it; of a merged run those of all its parts.
        precision: fp32, auto, bf16 or fp16.
        low_dtype: the low-precision format that was in use, null for none.
        close_calls_only: whether only close calls were corrected.
        notes: why precision or close calls are other than asked for.
        network: how the network's passes were sped up, in words.
        low_network: how those of the network in low precision were, null where there is none.
        batch_size: images a batch.
        workers: decoding processes.
        takes_turns: whether decoding and computing took turns at the cores.
        deterministic: whether only algorithms that repeat bit for bit ran.
        threads: threads of torch.
    """

    device: str
    device_name: str
    precision: str
    low_dtype: str | None
    close_calls_only: bool
    notes: tuple[str, ...]
    network: str
    low_network: str | None
    batch_size: Positive
    workers: Count
    takes_turns: bool
    deterministic: bool
    threads: Count


@dataclass(frozen=True, kw_only=True)
class OutputEntry:
    """What the predictions file looks like.

    Attributes:
        format: its suffix, such as .csv.
        probabilities: whether rows have the probabilities of all classes.
        bom: whether it begins with a byte-order mark.
        margin: whether rows have the difference of the two largest corrected probabilities.
    """

    format: str
    probabilities: bool
    bom: bool
    margin: bool = field(default=False, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class HiddenEntry:
    """What no search takes.

    Attributes:
        files: number of hidden and system files.
        folders: number of hidden and system folders.
    """

    files: Count
    folders: Count


@dataclass(frozen=True, kw_only=True)
class MakingImages:
    """Which images are predicted.

    Attributes:
        source: the folder, list or image, as it was given; of several the deepest folder that holds them.
        total: number of images that have a row.
        shard: which part of the list they are, such as 2/8; null for all of it.
        list_total: number of images of the whole list.
        list_sha256: of the names of the whole list.
        files_sha256: of the names and sizes in bytes of the whole list.
        ignored_files: number of other files of the folder for each suffix.
        hidden: what no search takes.
        sources: all that were given as IMAGES, in that order.
    """

    source: str
    total: Count
    shard: Shard | None
    list_total: Count
    list_sha256: str
    files_sha256: str
    ignored_files: Mapping[str, Count]
    hidden: HiddenEntry
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Making:
    """Everything that makes the rows of a run; the progress file of one that was cut off has it, too.

    Attributes:
        versions: versions of what computed the rows.
        model: the model file and what was found in it.
        counts: the file of the class counts.
        classes: the classes in class-index order.
        settings: what the user asked for, each setting complete (docs/recipes.md).
        preprocessing: what was done to every image.
        execution: how the rows were computed.
        output: what the predictions file looks like.
        images: which images were predicted, and how many of them how.
        strength: how eps was found that was asked for as auto; the settings have the number.
    """

    versions: Versions
    model: ModelEntry
    counts: CountsEntry
    classes: tuple[ClassEntry, ...]
    settings: Settings
    preprocessing: PreprocessingEntry
    execution: MakingExecution
    output: OutputEntry
    images: MakingImages
    strength: StepStrength | None = field(default=None, metadata=OPTIONAL)

    @property
    def class_counts(self) -> ClassCounts:
        """The training counts; a :class:`CountsError` where they are none."""
        return ClassCounts([one.name for one in self.classes], [one.count for one in self.classes])

    @property
    def layout(self) -> RowLayout:
        """The columns of the predictions file."""
        names = tuple(one.name for one in self.classes) if self.output.probabilities else ()
        return RowLayout(names, self.settings.run.close_calls_only, self.output.bom, self.output.margin)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = write_typed(self, FORMS)
        return found


def _read_settings(value: Any, entry: str) -> Settings:
    try:
        return parse_settings(value)
    except SettingsError as error:
        raise EntryError(f"{entry}.{error}") from None


def _read_shard(value: str, entry: str) -> Shard:
    try:
        return parse_shard(value)
    except SettingsError:
        refuse(entry, value, "I/N with I from 1 to N, such as 3/8")


#: Types that stand in JSON otherwise than by their fields.
FORMS = {
    Settings: Form(dict, "an object with entries", _read_settings, lambda value: write_typed(asdict(value), {}), {}),
    Shard: Form(str, "text", _read_shard, str, {"type": "string", "pattern": "^[0-9]+/[0-9]+$"}),
}


def read_entry(kind: type[T], value: Any, entry: str = "") -> T:
    """A value of one of these types from JSON.

    Raises:
        EntryError: naming the first entry that is missing, unknown or wrong.
    """
    found: T = read_typed(kind, value, entry, FORMS)
    return found
