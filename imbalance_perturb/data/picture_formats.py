"""Which files are pictures: by suffix in a folder, by content when opened; and for those that are not read, why."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

#: Bytes of a file's beginning by which its format is recognised.
HEAD_BYTES = 512

#: Suffixes (lower case) of the files that are read; content decides how. Some need an extra: its row then says which.
_READ = ".bmp .dcm .dicom .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp"
_READ_WHERE_INSTALLED = ".avif .heic .heif .hif .j2c .j2k .jp2 .jpc .jpf .jpx"
READ_SUFFIXES = frozenset([*_READ.split(), *_READ_WHERE_INSTALLED.split()])


class Kind(NamedTuple):
    """A kind of pictures that is not read: ``name`` with its article, what to do instead, and its usual suffixes."""

    name: str
    remedy: str
    suffixes: str


_RAW = Kind(
    "a camera's raw file",
    "develop it to TIFF or PNG",
    ".3fr .arw .cr2 .cr3 .crw .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .rw2 .rwl .sr2 .srf"
    " .srw .x3f",
)
_VIDEO = Kind(
    "a video",
    "export the frames that are meant",
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .vob .webm .wmv",
)
_JXL = Kind("a JPEG XL", "convert it to PNG", ".jxl")
_JXR = Kind("a JPEG XR", "convert it to PNG or TIFF", ".hdp .jxr .wdp")
_JLS = Kind("a JPEG-LS", "convert it to PNG", ".jls")
_LAYERS = Kind("a picture in layers", "export it as PNG or TIFF", ".kra .psb .psd .xcf")
_PAGES = Kind("a document", "export the pages that are meant as PNG", ".djvu .eps .pdf .ps")
_DRAWING = Kind("a drawing without pixels", "export it as PNG", ".ai .cdr .emf .svg .svgz .wmf")
_HDR = Kind("a picture of floating-point numbers", "convert it to 8 or 16 bits", ".exr .hdr .pfm")
_OTHER = Kind(
    "a picture in a rare format",
    "convert it to PNG or TIFF",
    ".bpg .cur .dds .flif .fits .fpx .icns .ico .pam .pcx .pic .pict .qoi .ras .sgi .tga .xbm .xpm",
)
_SLIDE = Kind("a whole slide", "export the regions that are meant", ".bif .czi .mrxs .ndpi .scn .svs .vsi")
_VOLUME = Kind("a volume of slices", "export the slices that are meant", ".mha .mhd .mnc .nhdr .nii .nii.gz .nrrd")

_KINDS = (_RAW, _VIDEO, _JXL, _JXR, _JLS, _LAYERS, _PAGES, _DRAWING, _HDR, _OTHER, _SLIDE, _VOLUME)
_BY_SUFFIX = {suffix: kind for kind in _KINDS for suffix in kind.suffixes.split()}

#: Suffixes of pictures that are not read; their rows say so.
UNREAD_SUFFIXES = frozenset(_BY_SUFFIX)

#: Suffixes of files that are no pictures, or copies that are not whole or not meant; their content is not looked at:
#: 'BMI,age' begins a table, and nearly a BMP.
_NO_PICTURES = (
    ".7z .bat .bin .bz2 .c .cfg .conf .cpp .css .csv .db .doc .docx .exe .gz .h5 .hdf5 .html .htm .ini .ipynb .js"
    " .json .jsonl .key .lock .log .mat .md .md5 .npy .npz .odt .onnx .parquet .partial .pickle .pkl .ppt .pptx"
    " .progress .pt .pt2 .pth .py .pyc .r .rar .rst .rtf .safetensors .sh .sha256 .sqlite .tar .tex .tgz .toml .tsv"
    " .txt .xls .xlsx .xml .xz .yaml .yml .zip .zst"
    " .bak .crdownload .download .old .orig .part .swp .temp .tmp"
)
_LEFT_ASIDE = frozenset(_NO_PICTURES.split())

# What a file begins with, and what it then is: a word for a format that is read, or a kind that is not.
_BEGINNINGS: tuple[tuple[bytes, str | Kind], ...] = (
    (b"\xff\xd8\xff\xf7", _JLS),
    (b"\xff\xd8\xff", "a JPEG"),
    (b"\x89PNG\r\n\x1a\n", "a PNG"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"II+\0", "a TIFF"),
    (b"MM\0+", "a TIFF"),
    (b"GIF87a", "a GIF"),
    (b"GIF89a", "a GIF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"\xff\x0a", _JXL),
    (b"\0\0\0\x0cJXL \r\n\x87\n", _JXL),
    (b"II\xbc", _JXR),
    (b"8BPS", _LAYERS),
    (b"gimp xcf", _LAYERS),
    (b"%PDF-", _PAGES),
    (b"%!PS", _PAGES),
    (b"AT&TFORM", _PAGES),
    (b"<svg", _DRAWING),
    (b"\x76\x2f\x31\x01", _HDR),
    (b"#?RADIANCE", _HDR),
    (b"PF\n", _HDR),
    (b"Pf\n", _HDR),
    (b"FUJIFILMCCD-RAW", _RAW),
    (b"FOVb", _RAW),
    (b"\0MRM", _RAW),
    (b"IIRO", _RAW),
    (b"IIRS", _RAW),
    (b"IIU\0", _RAW),
    (b"\x1a\x45\xdf\xa3", _VIDEO),
    (b"\0\0\x01\xba", _VIDEO),
    (b"\0\0\x01\xb3", _VIDEO),
    (b"FLV\x01", _VIDEO),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _VIDEO),
    (b"qoif", _OTHER),
    (b"DDS ", _OTHER),
    (b"BPG\xfb", _OTHER),
    (b"SIMPLE  =", _OTHER),
    (b"NRRD000", _VOLUME),
)

#: What files that only have a picture's name begin with (in lower case), and what to do.
_NO_PICTURE_INSIDE = (
    (b"version https://git-lfs", "a Git LFS pointer in its place; get it with git lfs pull"),
    (b"<!doctype html", "an HTML page in its place; download it again"),
    (b"<html", "an HTML page in its place; download it again"),
    (b"\0\5\x16\7", "notes of macOS on another file (AppleDouble); leave it out"),
    (b"\xd0\xcf\x11\xe0", "a Windows or Office file (Thumbs.db?); leave it out"),
    (b"pk\3\4", "a zip archive; unpack it"),
    (b"\x1f\x8b", "a gzip-compressed file; unpack it"),
)

# The brands of a file that begins with the box 'ftyp'.
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with these bytes is DICOM: ``DICM`` at byte 128, or data elements at once."""
    return head[128:132] == b"DICM" or is_bare_dicom(head)


def is_bare_dicom(head: bytes) -> bool:
    """Whether these bytes begin with data elements of DICOM, without the preamble, as older archives export them.

    Three elements that follow one another, the first of the file's meta information or of group 8.
    """
    layouts = [("little", _EXPLICIT), ("little", b""), ("big", _EXPLICIT)]
    return any(_count_elements(head, order, vrs) == _ELEMENTS for order, vrs in layouts)  # type: ignore[arg-type]


_ELEMENTS = 3
_LONG_EXPLICIT = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV"
_EXPLICIT = _LONG_EXPLICIT + b" AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"


def _count_elements(head: bytes, order: Literal["little", "big"], vrs: bytes) -> int:
    """Count the data elements at the beginning that follow one another as DICOM has them, up to those needed."""
    position, before = 0, 0
    for found in range(_ELEMENTS):
        if position + 12 > len(head):
            return found
        group, number = (int.from_bytes(head[position + at : position + at + 2], order) for at in (0, 2))
        tag = group << 16 | number
        vr = head[position + 4 : position + 6]
        if (found == 0 and (group not in (2, 8) or number > 0xFF)) or (found and tag <= before) or group > 0x7FE0:
            return found
        if not vrs:
            start, length = 8, int.from_bytes(head[position + 4 : position + 8], order)
        elif vr not in vrs.split():
            return found
        elif vr in _LONG_EXPLICIT.split():
            start, length = 12, int.from_bytes(head[position + 8 : position + 12], order)
        else:
            start, length = 8, int.from_bytes(head[position + 6 : position + 8], order)
        before, position = tag, position + start + length
    return _ELEMENTS


def find_kind(head: bytes) -> str | Kind | None:
    """Recognise a file by the bytes it begins with: a word such as ``a PNG`` where it is read, else its kind."""
    for magic, found in _BEGINNINGS:
        if head.startswith(magic):
            return found
    if head[4:8] == b"ftyp":
        return _find_brand(head)
    if head[:4] == b"RIFF":
        return "a WebP" if head[8:12] == b"WEBP" else _VIDEO if head[8:12] == b"AVI " else None
    # Two letters would be too little: the header that follows has one of few lengths, and zeros before.
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0" and head[14:18] in _BMP_HEADERS:
        return "a BMP"
    return None


_BMP_HEADERS = tuple(bytes([length, 0, 0, 0]) for length in (12, 16, 40, 52, 56, 64, 108, 124))


def _find_brand(head: bytes) -> str | Kind:
    length = int.from_bytes(head[:4], "big")
    brands = [head[8:12], *(head[start : start + 4] for start in range(16, min(length, len(head)), 4))]
    # 'mif1' says only that there is a picture; an AVIF may begin with it and name itself afterwards.
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "an AVIF"
    if any(brand in _HEIF_BRANDS for brand in brands):
        return "a HEIC"
    return _RAW if brands[0] == b"crx " else _VIDEO


def refuse_reason(head: bytes, path: str | os.PathLike[str]) -> str | None:
    """Say why a file that begins with these bytes is not read, where that is known before decoding."""
    kind = find_kind(head)
    if kind == "a TIFF" and (_BY_SUFFIX.get(suffix_of(path)) is _RAW or head[8:10] == b"CR"):
        # A TIFF reader finds a thumbnail in it, and takes it for the picture.
        kind = _RAW
    return _word(kind) if isinstance(kind, Kind) else None


def holds_many(head: bytes, path: str | os.PathLike[str]) -> bool:
    """Whether a file is of a kind that holds many pictures, of which none is read: a video, document or volume."""
    kind = find_kind(head)
    return (_BY_SUFFIX.get(suffix_of(path)) if kind is None else kind) in (_VIDEO, _PAGES, _VOLUME)


def unread_reason(head: bytes, path: str | os.PathLike[str]) -> str:
    """Say what a picture is that is not read, by content or else by suffix, and what to do."""
    kind = find_kind(head) or _BY_SUFFIX.get(suffix_of(path))
    if isinstance(kind, Kind):
        return _word(kind)
    start = head.lstrip(b" \t\r\n").lower()
    strangers = (f", but {what}" for magic, what in _NO_PICTURE_INSIDE if start.startswith(magic))
    return f"not an image in a known format{next(strangers, '')}"


def unknown_reason(head: bytes, path: str | os.PathLike[str]) -> str:
    """Say why a file is not read that no decoder knows."""
    kind = find_kind(head)
    if isinstance(kind, str) and suffix_of(path) not in _BY_SUFFIX:
        return f"begins like {kind} but cannot be read as one: damaged, or of a rare kind"
    return unread_reason(b"" if isinstance(kind, str) else head, path)


def _word(kind: Kind) -> str:
    return f"{kind.name}, which is not read; {kind.remedy}"


def suffix_of(path: str | os.PathLike[str]) -> str:
    """Return the suffix in lower case, with its dot; ``.nii.gz`` is one."""
    name = os.fspath(path).lower()
    # A Path for each of 300,000 files is slow.
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]  # noqa: PTH122


def is_unread(path: str | os.PathLike[str]) -> bool:
    """Whether the suffix is that of a picture that is not read, by any extra."""
    return suffix_of(path) in UNREAD_SUFFIXES


def is_named_like_picture(path: str | os.PathLike[str]) -> bool:
    """Whether the suffix is that of a picture, read or not."""
    suffix = suffix_of(path)
    return suffix in READ_SUFFIXES or suffix in UNREAD_SUFFIXES


def may_be_picture(path: str | os.PathLike[str]) -> bool:
    """Whether content has to say if this is a picture: the suffix is none that is known, nor the ``~`` of a backup.

    Archives export DICOM files without suffix, or named by a UID, of which the last number looks like one.
    """
    suffix = suffix_of(path)
    return suffix not in _LEFT_ASIDE and not suffix.endswith("~") and os.path.basename(path) != "DICOMDIR"  # noqa: PTH119


def is_picture(head: bytes) -> bool:
    """Whether a file that begins like this is a picture, read or not."""
    return is_dicom(head) or find_kind(head) is not None
