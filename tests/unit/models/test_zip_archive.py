"""imbalance_perturb.models.formats: the file is opened once, and its archive's directory and text are read once."""

from __future__ import annotations

import os
import sys
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from imbalance_perturb.errors import ModelFileError
from imbalance_perturb.models import load_classifier
from imbalance_perturb.models.formats.zip_archive import Archive

SHAPE = (3, 8, 8)
_watched: str | None = None
_opened: list[str] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    opened = event == "open" and _watched is not None and isinstance(arguments[0], str | bytes)
    if opened and os.fsdecode(arguments[0]) == _watched:
        _opened.append(_watched)


sys.addaudithook(_note)  # there is no taking it away: it is inert unless a file is watched


class Pooled(nn.Module):
    """A network of a few parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def written(kind: str, path: Path) -> Path:
    network = Pooled().eval()
    names = {"class_names.json": '["a", "b", "c"]'}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        match kind:
            case "torchscript":
                torch.jit.save(torch.jit.script(network), path, _extra_files=names)
            case "export":
                program = torch.export.export(network, (torch.ones(2, *SHAPE),))
                torch.export.save(program, path, extra_files=names)
    return path


@pytest.mark.parametrize(("kind", "inner"), [("torchscript", 0), ("export", 1)])
def test_a_model_is_opened_once(kind: str, inner: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One opening of the file; one parser of each kind on it, and on an archive that lies in it."""
    global _watched
    path = written(kind, tmp_path / "m.pt")
    parsers: Counter[str] = Counter()
    unpacked: Counter[str] = Counter()

    def counting(word: str, call: Any) -> Any:
        def counted(*arguments: Any, **more: Any) -> Any:
            if "imbalance_perturb" in sys._getframe(1).f_code.co_filename:  # torch opens its own, on the same bytes
                parsers[word] += 1
            return call(*arguments, **more)

        return counted

    read = zipfile.ZipFile.read

    def reading(self: zipfile.ZipFile, part: Any, *more: Any) -> bytes:
        unpacked[part.filename if isinstance(part, zipfile.ZipInfo) else part] += 1
        return read(self, part, *more)

    monkeypatch.setattr(zipfile.ZipFile, "__init__", counting("zipfile", zipfile.ZipFile.__init__))
    monkeypatch.setattr(zipfile.ZipFile, "read", reading)
    monkeypatch.setattr(torch._C, "PyTorchFileReader", counting("torch", torch._C.PyTorchFileReader))
    _opened.clear()
    _watched = str(path)
    try:
        loaded = load_classifier(path, input_shape=SHAPE)
    finally:
        _watched = None
    assert len(_opened) == 1
    # TorchScript's directory is written once more, without the notes on its source, and parsed again.
    assert parsers == {"zipfile": 1 + inner + 2 * (kind == "torchscript"), "torch": 1 + inner}
    text = {name: times for name, times in unpacked.items() if name.endswith((".py", "pkl", ".json"))}
    assert len(text) > 2
    assert set(text.values()) == {1}
    assert loaded.info.classes == ("a", "b", "c")


def test_a_large_archive_of_something_else_is_not_read_whole(tmp_path: Path) -> None:
    """An archive of a terabyte without a model in it is refused by its directory."""
    path = tmp_path / "images.zip"
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        file.truncate(1 << 40)  # a hole: takes no space, yet a terabyte to read
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", b"")
    with pytest.raises(ModelFileError, match="a NumPy archive"):
        load_classifier(path)


def test_a_part_is_not_read_before_the_container_is_checked(tmp_path: Path) -> None:
    """Whoever reads a part has the whole archive checked, once."""
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("m/a.json", b"{}")
        writer.writestr("m/data/0", bytes(100 * 2**20))
    with path.open("rb") as file:
        archive = Archive(file, "m.pt")
        with pytest.raises(ModelFileError, match="would unpack to"):
            archive.read(archive.parts[0])


def test_a_damaged_part_is_an_error_each_time(tmp_path: Path) -> None:
    """A part whose checksum is wrong is not kept."""
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as writer:
        writer.writestr("m/a.json", b"right")
    path.write_bytes(path.read_bytes().replace(b"right", b"wrong"))
    with path.open("rb") as file:
        archive = Archive(file, "m.pt")
        for _ in range(2):
            with pytest.raises(ModelFileError, match=r"m\.pt: the archive is damaged"):
                archive.read(archive.parts[0])
