"""Image files: which there are, and the pixels of one."""

from __future__ import annotations

import csv
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from imbalance_perturb.errors import ImageError, ImageFolderError

if TYPE_CHECKING:
    from PIL import Image

#: Suffixes (lower case) of the files in a folder that are taken for images; content decides how they are read.
_SUFFIXES = ".bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split(" "))

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class ImageList:
    """The images of a run: ``names`` sorted, distinct, POSIX paths relative to ``root``.

    ``source`` is what the user named (folder, CSV or image); ``ignored`` counts the other files of the folder by
    suffix, so that nothing is left out in silence.
    """

    source: Path
    root: Path
    names: Sequence[str]
    ignored: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.names)


def find_images(path: str | Path) -> ImageList:
    """The images of a folder (searched recursively, links followed), of a CSV with an ``image`` column, or one file.

    Paths in a CSV are relative to the CSV's folder.

    Raises:
        ImageFolderError: if the path is not there, holds no image, or the CSV has no such column or a double.
    """
    path = Path(path)
    if path.is_dir():
        return _find_in_folder(path)
    if not path.exists():
        raise ImageFolderError(f"{path}: no such file or folder; give a folder of images, one image or a CSV")
    if path.suffix.lower() == ".csv":
        return ImageList(path, path.parent, sorted(_read_image_column(path)))
    return ImageList(path, path.parent, [path.name])


def _find_in_folder(root: Path) -> ImageList:
    names: list[str] = []
    ignored: Counter[str] = Counter()
    for name in _iter_files(root, "", (_identity(root),)):
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path for each of 300,000 files is slow
        if suffix in IMAGE_SUFFIXES and not name.rpartition("/")[2].startswith("."):
            names.append(name)
        else:
            ignored[suffix or "no suffix"] += 1
    if not names:
        found = f"none of its {ignored.total()} files is one" if ignored else "it is empty"
        raise ImageFolderError(
            f"{root}: no image in this folder ({found}); images end in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    # Sorted as whole strings: '/' sorts after '-' and '.', so sorting folder by folder would differ.
    names.sort()
    return ImageList(root, root, names, ignored)


def _iter_files(folder: str | Path, prefix: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ImageFolderError(
            f"{folder}: cannot be searched ({error.strerror}); make it readable or remove it"
        ) from None
    for entry in entries:
        # A link back to a folder above would be searched for ever.
        if entry.is_dir():
            if (identity := _identity(entry.path)) not in ancestors:
                yield from _iter_files(entry.path, f"{prefix}{entry.name}/", (*ancestors, identity))
        else:
            yield prefix + entry.name


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116 - as above
    return status.st_dev, status.st_ino


def _read_image_column(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if "image" not in (reader.fieldnames or ()):
                found = ", ".join(reader.fieldnames or ()) or "nothing"
                raise ImageFolderError(f"{path}: has no column 'image' (found: {found}); name it in the first line")
            names = [row["image"] or "" for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImageFolderError(
            f"{path}: cannot be read as CSV ({error}); expected UTF-8 with a column 'image'"
        ) from None
    if not names:
        raise ImageFolderError(f"{path}: lists no image; give one path a line in the column 'image'")
    if "" in names:
        raise ImageFolderError(
            f"{path}: the image in row {names.index('') + 1} is empty; give a path relative to the CSV"
        )
    doubles = [name for name, count in Counter(names).items() if count > 1]
    if doubles:
        raise ImageFolderError(
            f"{path}: {len(doubles)} images are listed more than once (first: {doubles[0]}); list each once"
        )
    return names


def decode_image(path: str | Path, color: str) -> Image.Image:
    """The pixels of an image file as a PIL image.

    Args:
        path: the file.
        color: ``rgb`` or ``gray``.

    Returns:
        Mode ``RGB`` or ``L``; 16-bit images come as mode ``F`` scaled to [0, 255] without loss (one channel).

    Raises:
        ImageError: with the reason, whatever is wrong with the file.
    """
    from PIL import Image

    try:
        # The bomb warning is below the size that Pillow refuses; the row's reason is for those.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                _refuse_unusable(image)
                image.load()
                return _convert(image, color)
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(_reason(error)) from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on a broken file; the row says what
        raise ImageError(f"cannot be decoded ({type(error).__name__}: {error})") from None


def _refuse_unusable(image: Image.Image) -> None:
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        raise ImageError(f"TIFF with {image.n_frames} pages; split it into one file a page")  # type: ignore[attr-defined]
    if image.mode in ("I", "F"):
        raise ImageError(f"pixels are 32-bit ({image.mode}) with no known range; convert to 8 or 16 bits")


def _convert(image: Image.Image, color: str) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        # convert("RGB") would clip everything above 255.
        import numpy as np
        from PIL import Image as Pil

        return Pil.fromarray(np.asarray(image, dtype=np.uint16).astype(np.float32) * np.float32(255 / 65535))
    return image.convert("L" if color == "gray" else "RGB")


def _reason(error: OSError) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    return str(error) or type(error).__name__
