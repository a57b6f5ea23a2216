"""What is no model file, or a model of another make: one line each that names the way out."""

from __future__ import annotations

import gzip
import io
import json
import pathlib
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.dummy import DummyClassifier
from torch import nn

from imbalance_perturb.errors import ModelFileError, UntrustedModelError
from imbalance_perturb.models.formats.checkpoint import read_checkpoint
from imbalance_perturb.models.formats.snapshot import read_snapshot
from imbalance_perturb.models.loading import load_classifier

CONVERT = "load its weights into a PyTorch network and save its state_dict"
ORDER = "the order is MODEL COUNTS IMAGES"
EXPECTED = "expected a PyTorch state_dict"


def saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


MODEL = saved({"fc.weight": torch.zeros(3, 4), "fc.bias": torch.zeros(3)})


def zipped(**parts: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(mode: str, *names: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(MODEL)
            archive.addfile(member, io.BytesIO(MODEL))
    return stream.getvalue()


def drawn(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind)
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 46827520\n"

FILES: dict[str, tuple[bytes, str]] = {
    "lfs.pth": (LFS, "a Git LFS pointer in place of the file; get the file with git lfs pull"),
    "lfs.safetensors": (LFS, "git lfs pull"),
    "page.pth": (b"<!DOCTYPE html>\n<html>", "an HTML page (a login or error page in place of a download?)"),
    "page.bin": (b"\n <HTML lang='en'>", "download the file itself"),
    "denied.pth": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "a server's error in place of a download?"),
    "missing.pth": (b'{"error": "Repository not found"}', "a server's error in JSON"),
    "run.zip": (
        zipped(**{"run/a.txt": b"", "run/model.pth": MODEL}),
        "a zip archive around a model file; unpack it and give run/model.pth",
    ),
    "two.zip": (zipped(**{"a.pt": MODEL, "b.pt": MODEL}), "around model files; unpack it and give a.pt, b.pt"),
    "photos.zip": (zipped(**{"a.png": b""}), "a zip archive without a PyTorch model in it; " + EXPECTED),
    "net.mar": (
        zipped(**{"MAR-INF/MANIFEST.json": b"{}", "model.pt": MODEL}),
        "a TorchServe archive around a model file; unpack it and give model.pt",
    ),
    "best.tar": (tarred("w", "run/best.pth"), "a tar archive around a model file; unpack it and give run/best.pth"),
    "best.pth": (tarred("w", "run/best.pth"), "give run/best.pth"),
    "best.tar.gz": (tarred("w:gz", "best.pth"), "a tar.gz archive around a model file; unpack it and give best.pth"),
    "old.pth": (tarred("w", "pickle", "storages", "tensors"), "a checkpoint of the first PyTorch versions"),
    "\x1b[31m.tgz": (tarred("w:gz", "\x1b[2J.pth"), "unpack it and give \\x1b[2J.pth"),
    "cut.tgz": (tarred("w:gz", "best.pth")[:60], "a gzip-compressed file"),
    "model.pth.gz": (gzip.compress(MODEL), "a gzip-compressed file; unpack it with gunzip"),
    "model.pth.xz": (b"\xfd7zXZ\0", "an xz-compressed file; unpack it"),
    "empty.pth": (b"", "the model file is empty; copy or download it again"),
    "model.pth.part": (MODEL[:-40], "damaged or cut off; copy or download it again"),
    "counts.json": (json.dumps({"a": 3, "b": 2}).encode(), "a JSON file; " + ORDER),
    "counts": (b"\xef\xbb\xbf[3, 2]", "a JSON file; " + ORDER),
    "labels.csv": (b"image,label\n", "a CSV table; " + ORDER),
    "imbperturb.toml": (b"[model]\n", "give it with --recipe"),
    "train.py": (b"import torch\n", "no PyTorch model file but text; " + EXPECTED),
    "flax.msgpack": (b"\x82\xa6params\x80", f"a MessagePack file (Flax, JAX); {CONVERT}"),
    "net.engine": (b"ftrt\0\0\0\0", "a TensorRT engine, which gives no gradient; give the PyTorch model"),
    "net.trt": (b"\1\0\2\0", "a TensorRT engine"),
    "net.tflite": (b"\x1c\0\0\0TFL3", f"a TensorFlow Lite file; {CONVERT}"),
    "net.gguf": (b"GGUF\3\0\0\0", "a GGUF file"),
    "net.h5": (b"\x89HDF\r\n\x1a\n", f"an HDF5 file (Keras?); {CONVERT}"),
    "net.keras": (zipped(**{"model.weights.h5": b""}), f"a Keras file; {CONVERT}"),
    "net.onnx": (b"\x08\x07\x12\x07pytorch", "an ONNX file, whose runtimes give no gradient"),
    "saved_model.pb": (b"\x08\x01\x12\xf3", "a TensorFlow graph"),
    "net.ckpt.data-00000-of-00001": (b"\0\0\x80?", "a part of a TensorFlow checkpoint"),
    "net.ckpt.index": (b"\0\0\x10\0", "a part of a TensorFlow checkpoint"),
    "checkpoint": (b'model_checkpoint_path: "net"\n', "the index of a TensorFlow checkpoint"),
    "net.xml": (b'<?xml version="1.0"?>\n<net name="x">', "an OpenVINO model"),
    "forest.pkl": (pickle.dumps(DummyClassifier()), "a pickle of a scikit-learn model, which gives no gradient"),
    "forest.joblib": (b"x\x9c", "a joblib file (a scikit-learn model?)"),
    "array.npy": (b"\x93NUMPY", "a NumPy array"),
    "what.pth": (b"\xde\xad\xbe\xef", "no PyTorch model file; " + EXPECTED),
} | {f"image.{kind}": (drawn(kind), f"image; {ORDER}") for kind in ("png", "jpeg", "bmp", "tiff", "gif", "webp")}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_model_file_is_named_with_the_way_out(name: str, tmp_path: Path) -> None:
    """Pointers, pages, archives, other frameworks' files, arguments in another order: one printable line."""
    content, words = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as refused:
        load_classifier(path)
    message = str(refused.value)
    assert words in message
    assert message.isprintable()


def test_a_bomb_is_not_unpacked_to_name_what_it_holds(tmp_path: Path) -> None:
    """Of a compressed file no more than some megabytes are looked at."""
    packed = gzip.compress(bytes(8 * 2**20), 1)
    (tmp_path / "bomb.gz").write_bytes(packed * 40)
    with pytest.raises(ModelFileError, match="a gzip-compressed file; unpack it with gunzip"):
        load_classifier(tmp_path / "bomb.gz")


class _Path:
    """Pickled as a path of some system."""

    def __init__(self, kind: type[pathlib.PurePath], *parts: str) -> None:
        self._made = (kind, parts)

    def __reduce__(self) -> tuple[type[pathlib.PurePath], tuple[str, ...]]:
        return self._made


@pytest.mark.parametrize("zipfiles", [True, False])
def test_paths_in_a_checkpoint_need_no_trust_and_no_windows(zipfiles: bool, tmp_path: Path) -> None:
    """Of any system, they are read as what only names a file; with code beside them, only where that is trusted."""
    paths = {
        "windows": _Path(pathlib.WindowsPath, "C:\\", "runs"),
        "posix": _Path(pathlib.PosixPath, "/", "runs"),
        "pure": _Path(pathlib.PureWindowsPath, "x"),
    }
    weight = torch.arange(12.0).reshape(3, 4)
    path = tmp_path / "x.pth"
    path.write_bytes(saved({"args": paths, "w": weight}, _use_new_zipfile_serialization=zipfiles))
    content, note = read_checkpoint(read_snapshot(path), trust=False)
    assert note is None
    assert torch.equal(content["w"], weight)
    assert content["args"] == {
        "windows": pathlib.PureWindowsPath("C:\\", "runs"),
        "posix": pathlib.PurePosixPath("/runs"),
        "pure": pathlib.PureWindowsPath("x"),
    }
    assert not any(isinstance(one, Path) for one in content["args"].values())
    path.write_bytes(saved({"args": paths, "net": nn.Linear(2, 2)}, _use_new_zipfile_serialization=zipfiles))
    with pytest.raises(UntrustedModelError) as refused:
        read_checkpoint(read_snapshot(path), trust=False)
    assert "pathlib" not in str(refused.value)
    content, note = read_checkpoint(read_snapshot(path), trust=True)
    assert note is not None
    assert isinstance(content["net"], nn.Linear)
    assert content["args"]["windows"] == pathlib.PureWindowsPath("C:\\", "runs")


def test_no_other_name_of_pathlib_is_let_in(tmp_path: Path) -> None:
    """Only the classes that name a path are known, by no way round."""

    class Odd:
        def __reduce__(self) -> Any:
            return (pathlib.Path.cwd, ())

    path = tmp_path / "x.pth"
    path.write_bytes(saved({"w": torch.zeros(3, 4), "x": Odd()}))
    with pytest.raises(ModelFileError):
        read_checkpoint(read_snapshot(path), trust=False)


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("ultralytics.nn.tasks", "export an Ultralytics model with model.export(format='torchscript')"),
        ("fastai.learner", "of a fastai learner save torch.save(learn.model.state_dict(), 'model.pth')"),
        ("mine", "save it with torch.save(model.state_dict(), 'model.pth')"),
    ],
)
def test_a_library_s_own_pickle_is_told_its_own_way_out(
    module: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs ultralytics or fastai to load is exported by them."""
    made = type("Model", (), {"__module__": module})
    parts = module.split(".")
    for name in (".".join(parts[: end + 1]) for end in range(len(parts))):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[module], "Model", made, raising=False)
    (tmp_path / "best.pt").write_bytes(saved({"model": made(), "x": torch.zeros(3)}))
    with pytest.raises(UntrustedModelError) as refused:
        load_classifier(tmp_path / "best.pt")
    assert f"({module}.Model), which could do anything; {remedy}, or, if you trust" in str(refused.value)
