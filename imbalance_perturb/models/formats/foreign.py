"""What a file is that is no PyTorch model, by its content or else its suffix, and the way to the model."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from imbalance_perturb.errors import first_few

EXPECTED = "expected a PyTorch state_dict (.pth, .pt, .safetensors), TorchScript or torch.export (.pt2) file"

_ORDER = "the order is MODEL COUNTS IMAGES"
_CONVERT = "load its weights into a PyTorch network and save its state_dict"
_UNPACK = "unpack it and give the model file in it"

#: What other programs' files begin with (at an offset), what they are, and what to do.
_BEGINNINGS = (
    (b"version https://git-lfs", 0, "a Git LFS pointer in place of the file", "get the file with git lfs pull"),
    (b"\x89HDF", 0, "an HDF5 file (Keras?)", _CONVERT),
    (b"TFL3", 4, "a TensorFlow Lite file", _CONVERT),
    (b"GGUF", 0, "a GGUF file", _CONVERT),
    (b"ftrt", 0, "a TensorRT engine, which gives no gradient", "give the PyTorch model that it was built from"),
    (b"ptrt", 0, "a TensorRT engine, which gives no gradient", "give the PyTorch model that it was built from"),
    (b"ET12", 4, "an ExecuTorch program, which gives no gradient", "give the PyTorch model that it was made from"),
    (b"\x93NUMPY", 0, "a NumPy array", EXPECTED),
    (b"MATLAB 5.0", 0, "a MATLAB file", EXPECTED),
    (b"\x7fELF", 0, "a compiled library", "give the PyTorch model that it was made from"),
    (b"BZh", 0, "a bzip2-compressed file", _UNPACK),
    (b"\xfd7zXZ", 0, "an xz-compressed file", _UNPACK),
    (b"7z\xbc\xaf", 0, "a 7z archive", _UNPACK),
    (b"Rar!", 0, "a RAR archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", 0, "a zstd-compressed file", _UNPACK),
    (b"\x04\x22\x4d\x18", 0, "an lz4-compressed file", _UNPACK),
    (b"\x89PNG", 0, "a PNG image", _ORDER),
    (b"\xff\xd8\xff", 0, "a JPEG image", _ORDER),
    (b"GIF8", 0, "a GIF image", _ORDER),
    (b"II*\0", 0, "a TIFF image", _ORDER),
    (b"MM\0*", 0, "a TIFF image", _ORDER),
    (b"WEBP", 8, "a WebP image", _ORDER),
    (b"DICM", 128, "a DICOM image", _ORDER),
    (b"ftyp", 4, "an image or a video", _ORDER),
    (b"%PDF-", 0, "a PDF document", EXPECTED),
    (b"PAR1", 0, "a Parquet table", _ORDER),
    (b"SQLite format 3", 0, "a database", EXPECTED),
)

#: What the suffix alone says.
_SUFFIXES = {
    ".msgpack": ("a MessagePack file (Flax, JAX)", _CONVERT),
    ".engine": ("a TensorRT engine, which gives no gradient", "give the PyTorch model that it was built from"),
    ".trt": ("a TensorRT engine, which gives no gradient", "give the PyTorch model that it was built from"),
    ".plan": ("a TensorRT engine, which gives no gradient", "give the PyTorch model that it was built from"),
    ".mlmodel": ("a Core ML model", _CONVERT),
    ".mlpackage": ("a Core ML model", _CONVERT),
    ".pb": ("a TensorFlow graph", _CONVERT),
    ".index": ("a part of a TensorFlow checkpoint", _CONVERT),
    ".meta": ("a part of a TensorFlow checkpoint", _CONVERT),
    ".caffemodel": ("a Caffe model", _CONVERT),
    ".params": ("an MXNet model", _CONVERT),
    ".bmp": ("a BMP image", _ORDER),
    ".csv": ("a CSV table", _ORDER),
    ".toml": ("a recipe or another text in TOML", f"give it with --recipe; {_ORDER}"),
    ".joblib": ("a joblib file (a scikit-learn model?), which gives no gradient", EXPECTED),
}

_MODEL_SUFFIXES = (".pth", ".pt", ".pt2", ".safetensors", ".ckpt", ".bin", ".th", ".pkl", ".tar", ".zip")
#: Of a compressed archive's content, and of its members, no more is looked at to name a model among them.
_MOST_UNPACKED, _MOST_MEMBERS = 64 * 2**20, 10_000


def describe_foreign(head: bytes, path: Path, file: BinaryIO) -> tuple[str, str]:
    """Describe a file that is no PyTorch model, in words that follow 'this is', and what to do about it.

    Args:
        head: its first bytes.
        path: of the file.
        file: the file, to look for a model in an archive.
    """
    for magic, offset, what, remedy in _BEGINNINGS:
        if head[offset : offset + len(magic)] == magic:
            return what, remedy
    if head.startswith(b"\x1f\x8b"):
        return _describe_gzip(file)
    if head[257:262] == b"ustar":
        return _describe_archive("a tar archive", list_tar(file))
    suffix = path.suffix.lower()
    if head.startswith(b"\x08") and (suffix == ".onnx" or b"pytorch" in head or b"onnx" in head):
        return "an ONNX file, whose runtimes give no gradient", EXPECTED
    if ".data-0" in suffix:
        suffix = ".index"
    if (text := _describe_text(head)) is not None:
        # What is text is not what a suffix says of binary formats.
        return _SUFFIXES[suffix] if suffix in (".csv", ".toml") else text
    return _SUFFIXES.get(suffix, ("no PyTorch model file", EXPECTED))


def describe_pickle(head: bytes) -> tuple[str, str] | None:
    """Describe the pickle of another library, by the names at its beginning; ``None`` where there is none known."""
    for name, what in ((b"sklearn", "a scikit-learn model"), (b"joblib", "a joblib file"), (b"xgboost", "XGBoost's")):
        if name in head:
            return f"a pickle of {what}, which gives no gradient", EXPECTED
    return None


def describe_zip(names: Iterable[str]) -> tuple[str, str]:
    """Describe a zip archive that is no model, by the names of its parts."""
    names = list(names)
    if any(name.endswith(".weights.h5") for name in names):
        return "a Keras file", _CONVERT
    if any(name.endswith(".npy") for name in names):
        return "a NumPy archive", EXPECTED
    if any(name.endswith(".mlmodel") for name in names):
        return _SUFFIXES[".mlmodel"]
    if any(name.startswith("MAR-INF/") for name in names):
        return _describe_archive("a TorchServe archive", names)
    return _describe_archive("a zip archive", names)


def list_tar(file: BinaryIO) -> list[str]:
    """List the members of a tar archive, as far as it can be read."""
    names: list[str] = []
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in islice(archive, _MOST_MEMBERS):
                names += [member.name] * member.isfile()
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError):
        pass  # cut off or damaged: what came before is all there is to say
    return names


def _describe_gzip(file: BinaryIO) -> tuple[str, str]:
    file.seek(0)
    inflater = zlib.decompressobj(wbits=31)
    try:
        content = inflater.decompress(file.read(_MOST_UNPACKED), _MOST_UNPACKED)
    except zlib.error:
        return "a gzip-compressed file that is damaged", "copy or download it again"
    if content[257:262] == b"ustar":
        return _describe_archive("a tar.gz archive", list_tar(io.BytesIO(content)))
    return "a gzip-compressed file", "unpack it with gunzip"


def _describe_archive(what: str, names: Iterable[str]) -> tuple[str, str]:
    names = list(names)
    if {"pickle", "storages", "tensors"} <= set(names):
        return "a checkpoint of the first PyTorch versions", "load it there and save its state_dict anew"
    models = [name for name in names if name.lower().endswith(_MODEL_SUFFIXES)]
    if not models:
        return f"{what} without a PyTorch model in it", EXPECTED
    return f"{what} around {'a model file' if len(models) == 1 else 'model files'}", (
        f"unpack it and give {first_few(models)}"
    )


def _describe_text(head: bytes) -> tuple[str, str] | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page (a login or error page in place of a download?)", "download the file itself"
    if start.startswith((b"<?xml", b"<error")):
        if b"<net" in start:
            return "an OpenVINO model", _CONVERT
        return "an XML text (a server's error in place of a download?)", "download the file itself"
    if start.startswith((b"{", b"[")):
        if start.startswith(b"{") and any(key in start[:40] for key in (b'"error', b'"message', b'"detail')):
            return "a server's error in JSON, in place of a download", "download the file itself"
        return "a JSON file", _ORDER
    if start.startswith(b"model_checkpoint_path"):
        return "the index of a TensorFlow checkpoint", _CONVERT
    try:
        text = head[:256].decode("utf-8")
    except UnicodeDecodeError:
        return None
    is_text = text and all(c.isprintable() or c in "\r\n\t" for c in text)
    return ("no PyTorch model file but text", EXPECTED) if is_text else None
