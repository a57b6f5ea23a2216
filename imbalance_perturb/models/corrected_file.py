"""What a file that ``export`` wrote says of itself: its card, read without loading the network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from imbalance_perturb.config.settings import DebiasSettings, PreprocessSettings
from imbalance_perturb.config.stored_settings import to_tuples
from imbalance_perturb.errors import ImbperturbError, ModelFileError, SettingsError
from imbalance_perturb.files.typed_json import Count, EntryError, Form, read_typed, write_typed
from imbalance_perturb.models.formats.snapshot import Snapshot
from imbalance_perturb.models.own_preprocessing import OwnPreprocessing

#: Under which name the card stands in a file: an extra part of a ``torch.export`` archive, a property of an ONNX model.
CARD = "imbperturb"
SCHEMA = "imbperturb export 1"

#: Of a card, in bytes.
_MOST_CARD = 2**24
#: Fields of ONNX's ModelProto and StringStringEntryProto (onnx.proto3), as protobuf numbers them.
_PROPERTIES, _KEY, _VALUE = 14, 1, 2


@dataclass(frozen=True, kw_only=True)
class CardClass:
    """A class: its ``index`` (the logit's column), ``name``, training ``count`` and ``target``, its share of p*."""

    index: Count
    name: str
    count: Count
    target: float


@dataclass(frozen=True, kw_only=True)
class CardInput:
    """What the graph takes: ``images``, a batch of ``shape``, where a text is any number."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class CardSource:
    """The model that was corrected: its file's name, SHA-256, format, architecture and number of parameters."""

    file: str
    sha256: str
    format: str
    arch: str | None
    parameters: Count


@dataclass(frozen=True, kw_only=True)
class CorrectedCard:
    """What an exported file says of itself.

    Attributes:
        schema: what kind of card it is.
        input: what the graph takes: float32 as ``preprocessing`` makes it of an image, or uint8 pixels before they are
            scaled and normalised.
        outputs: names of what it returns, (N, C) each: corrected and plain logits.
        classes: in the order of the logits.
        correction: the settings that it was made with.
        preprocessing: what is done to an image, each entry said.
        model: what was corrected.
        counts_sha256: of the file of the class counts.
        versions: of what made the file.
    """

    schema: str
    input: CardInput
    outputs: tuple[str, ...]
    classes: tuple[CardClass, ...]
    correction: DebiasSettings
    preprocessing: PreprocessSettings
    model: CardSource
    counts_sha256: str
    versions: Mapping[str, str | None]

    @property
    def names(self) -> tuple[str, ...]:
        """The class names."""
        return tuple(one.name for one in self.classes)

    @property
    def takes_pixels(self) -> bool:
        """Whether scaling and normalising are in the graph."""
        return self.input.dtype == "uint8"

    @property
    def own_preprocessing(self) -> OwnPreprocessing:
        """What is done to an image, as any model file's own say in it."""
        return OwnPreprocessing("the exported file", self.preprocessing)

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON has it."""
        found: dict[str, Any] = write_typed(self, _FORMS)
        return found


def read_card(path: str | Path) -> CorrectedCard | None:
    """Read the card of a ``.pt2`` or ``.onnx`` file that ``export`` wrote; ``None`` for any other file or folder.

    Raises:
        ModelFileError: if the file has a card that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            head = file.read(2)
        if head == b"PK":
            return attached_card(Snapshot(path, path.read_bytes()))
        return _onnx_card(path) if path.suffix.lower() == ".onnx" else None
    except OSError:
        return None  # whoever loads it says what is wrong


def attached_card(snapshot: Snapshot) -> CorrectedCard | None:
    """Read the card of a ``torch.export`` archive; ``None`` where it has none.

    Raises:
        ModelFileError: if it cannot be read.
    """
    if snapshot.format != "export":
        return None
    archive = snapshot.archive
    for part in archive.parts:
        if part.filename.endswith(f"/extra/{CARD}.json") and part.file_size <= _MOST_CARD:
            return _parse(archive.read(part), snapshot.path)
    return None


def _onnx_card(path: Path) -> CorrectedCard | None:
    try:
        properties = (dict(_fields(value)) for number, value in _fields(path.read_bytes()) if number == _PROPERTIES)
        text = next((entry.get(_VALUE, b"") for entry in properties if entry.get(_KEY) == CARD.encode()), None)
    except (IndexError, ValueError):
        raise ModelFileError(f"{path}: this ONNX file is damaged or cut off; copy or export it again") from None
    return None if text is None else _parse(text, path)


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protobuf message that have a length, by number; others are passed over."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(content, at)
        elif kind == 2:
            length, at = _varint(content, at)
            if at + length > len(content):
                raise ValueError("a field reaches past the end")
            yield tag >> 3, content[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("no kind of field")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _parse(text: bytes, path: Path) -> CorrectedCard:
    try:
        found: CorrectedCard = read_typed(CorrectedCard, json.loads(text), "", _FORMS)
        if found.schema != SCHEMA:
            raise EntryError(f"schema is {found.schema!r}; expected {SCHEMA!r}")
    except (ValueError, RecursionError, ImbperturbError) as error:
        raise ModelFileError(
            f"{path}: what this file says of itself cannot be read ({error}); export it again with this version"
        ) from None
    return found


def _read_table(kind: type[Any], value: Mapping[str, Any], entry: str) -> Any:
    try:
        return kind(**{key: to_tuples(one) for key, one in value.items()})
    except (SettingsError, TypeError) as error:
        raise EntryError(f"{entry}.{error}") from None


_FORMS = {
    kind: Form(
        dict, "an object with entries", partial(_read_table, kind), lambda value: write_typed(asdict(value), {}), {}
    )
    for kind in (DebiasSettings, PreprocessSettings)
}


class CorrectedNetwork(nn.Module):
    """An exported program: called, it returns the corrected logits; it computes the plain ones beside them."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor) -> Tensor:
        """Return the corrected logits (N, C)."""
        return self.both(x)[0]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return corrected and plain logits, (N, C) each."""
        logits, base = self.program(x)
        return logits, base
