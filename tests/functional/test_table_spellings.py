from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import imbalance_perturb as ip
from imbalance_perturb.data.image_files import find_images
from imbalance_perturb.data.image_names import NameMatch, match_names
from imbalance_perturb.data.labels import find_labelled_images
from imbalance_perturb.errors import ImageFolderError, LabelsError
from tests.functional.conftest import SMALL, Workplace

CLASSES = ("nv", "mel")
COUNTS = {"nv": 90, "mel": 9}

#: The images, and the class of each.
TRUTH = {f"sub/x{n}.png": CLASSES[n % 2] for n in range(9)} | {"sub/caf\u00e9.png": "mel"}

Row = tuple[str, ...]


def table(*header: str, row: Callable[[str, str], Row] = lambda image, label: (image, label), mark: str = ",") -> str:
    """The table of all images, each row made by ``row`` of image and label."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=mark, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(row(image, label) for image, label in TRUTH.items())
    return stream.getvalue()


def one_hot(one: str, zero: str, *more: str) -> Callable[[str, str], Row]:
    return lambda image, label: (image, *(one if label == name else zero for name in CLASSES), *more)


def blank(text: str) -> str:
    return text.replace(",", ", ").replace("\n", " \n")


PLAIN = table("image", "label")

SPELLINGS: dict[str, str | bytes] = {
    "plain": PLAIN,
    "empty columns": table("image", "label", "", "", row=lambda image, label: (image, label, "", "")),
    "rows of commas": table("image", "label", "", row=lambda *cells: (*cells, "")) + ",,\n,,\n",
    "wide rows": table("image", "label", row=lambda *cells: (*cells, "", "")) + ",,,\n",
    "short rows": table("image", "label", "", ""),
    "blanks": blank(PLAIN),
    "blanks and quotes": PLAIN.replace("sub/x1.png,mel", '"sub/x1.png", "mel"'),
    "case": table("Image", "LABEL"),
    "blank lines first": f"\n,\n{PLAIN}",
    "semicolons": table("image", "label", mark=";"),
    "sep": f"sep=;\n{table('image', 'label', mark=';')}",
    "tabs": table("image", "label", mark="\t"),
    "Excel's Unicode text": table("image", "label", mark="\t").replace("\n", "\r\n").encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "byte-order mark": PLAIN.encode("utf-8-sig"),
    "old Macintosh": PLAIN.replace("\n", "\r"),
    "pandas' index": table("", "image", "label", row=lambda *cells: ("0", *cells)),
    "HAM10000": table("lesion_id", "image_id", "dx", "age", row=lambda *cells: ("HAM_1", *cells, "40.0")),
    "filename,class": table("filename", "class"),
    "path,target": table("path", "target"),
    "File Name": table("File Name", "Class-Name"),
    "ISIC": table(
        "image", "MEL", "NV", row=lambda i, label: (i, str(float(label == "mel")), str(float(label == "nv")))
    ),
    "one-hot": table("image", *CLASSES, row=one_hot("1", "0")),
    "one-hot of pandas": table("image", *CLASSES, row=one_hot("True", "False")),
    "one-hot of Excel": table("image", *CLASSES, "", mark=";", row=one_hot("1,0", "0,0", "")),
    "labels in capitals": table("image", "label", row=lambda image, label: (image, label.upper())),
    "stems": table("image_id", "label", row=lambda image, label: (image.removesuffix(".png"), label)),
    "Windows": table("image", "label", row=lambda image, label: (".\\" + image.replace("/", "\\"), label)),
    "dots": table("image", "label", row=lambda image, label: (f"./{image}", label)),
    "macOS": unicodedata.normalize("NFD", PLAIN),
    "gaps": PLAIN.replace("sub/x3.png,mel\n", "\nsub/x3.png,mel\n\n"),
}


@pytest.fixture(params=SPELLINGS, ids=lambda name: name.replace(" ", "-"))
def spelled(request: pytest.FixtureRequest, workplace: Workplace) -> Path:
    """A table of images and labels in one of the spellings, beside the images."""
    for name in TRUTH:
        path = Path("skin", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    Path("counts.json").write_text(json.dumps(COUNTS))
    content = SPELLINGS[request.param]
    path = Path("skin", "table.csv")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_spelling_in_every_command(spelled: Path, workplace: Workplace) -> None:
    """A table that can be read in one way is read so: as labels by all commands, and as the list of images."""
    lines = ["image,base_pred,base_confidence,pred,confidence,changed,error"]
    lines += [f"{image},nv,0.9,{label},0.9,{int(label != 'nv')}," for image, label in sorted(TRUTH.items())]
    Path("predictions.csv").write_text("\n".join(lines) + "\n")
    finished = workplace.run("evaluate", "--labels", str(spelled), "--counts", "counts.json", "--json")
    assert finished.code == 0, finished.err
    data = json.loads(finished.out)
    assert (data["n"], data["perturbed"]["accuracy"], data["unlabelled"], data["unused_labels"]) == (10, 1.0, 0, 0)
    finished = workplace.run("counts", str(spelled), "--classes", "nv,mel")
    assert json.loads(finished.out) == {"nv": 5, "mel": 5}, finished.err
    assert list(find_images(spelled).names) == sorted(TRUTH)
    # Labels are read before the model: where they can be used, it is the model that is missed.
    for command in ("tune-eps", "compare"):
        for images in ((str(spelled),), ("skin", "--labels", str(spelled))):
            finished = workplace.run(command, "none.pt", "counts.json", "--val", *images, "--folds", "2")
            assert "none.pt: " in finished.err.splitlines()[-1], finished.err
    found = find_labelled_images(spelled, None, CLASSES)
    assert {image: CLASSES[index] for image, index in found.labels.items()} == TRUTH


def test_a_table_as_windows_has_it_from_end_to_end(workplace: Workplace) -> None:
    r"""UTF-16, tabs, ``\\``, no suffix: ``predict`` finds the files, and ``evaluate`` the labels of its rows."""
    names = sorted(path.relative_to("images").as_posix() for path in Path("images").rglob("*.png"))
    rows = "".join(f"{name.removesuffix('.png')}\td\r\n".replace("/", "\\") for name in names)
    Path("images/list.csv").write_bytes(f"Image\tClass\r\n{rows}\t\r\n".encode("utf-16"))
    finished = workplace.run("predict", "model.pth", "counts.json", "images/list.csv", *SMALL)
    assert finished.code == 0, finished.err
    lines = Path("predictions.csv").read_text().splitlines()[1:]
    assert [line.partition(",")[0] for line in lines] == names
    finished = workplace.run("evaluate", "--labels", "images/list.csv", "--json")
    assert finished.code == 0, finished.err
    data = json.loads(finished.out)
    assert (data["n"], data["unlabelled"]) == (len(names), 0)
    assert "note: images/list.csv: the labels are in its column 'Class'" in finished.err


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "no 1": (table("image", *CLASSES, row=one_hot("0", "0")), "line 2: sub/x0.png has no 1 for any class"),
    "two 1s": (table("image", *CLASSES, row=one_hot("1", "1")), "line 2: sub/x0.png has a 1 for nv, mel"),
    "soft": (table("image", *CLASSES, row=one_hot("0.9", "0.1")), "line 2: nv is '0.9'; expected 0 or 1"),
    "gap": (table("image", *CLASSES, row=one_hot("1", "")), "line 2: mel is ''; expected 0 or 1"),
    "other classes": (table("image", "nv", "bcc", row=one_hot("1", "0")), "has columns for the classes nv, but none"),
    "two kinds": (table("image", *CLASSES, "dx", row=one_hot("1", "0", "nv")), "a column 'dx' and one for each class"),
    "two images": (table("path", "image_id", "label", row=lambda i, n: (i, i, n)), "columns path, image_id may all be"),
    "two labels": (table("image", "dx", "target", row=lambda i, n: (i, n, n)), "columns dx, target may all be meant"),
    "no header": (PLAIN.partition("\n")[2], "has no column 'image'; the first line must name image,label, it is 'sub"),
    "comma in a name": ("image,label,\na.png,nv, left\n", "left stands in a column without a name; name it"),
    "two separators": ("image,a;image\nx,y\n", "can be read as separated by ',' and by ';'"),
    "workbook": (b"PK\x03\x04\x14", "is an Excel workbook or a zip archive; expected a CSV file, so save it as one"),
    "Latin-1": ("image,label\ncaf\xe9.png,nv\n".encode("latin-1"), "is not UTF-8 text; expected a CSV file (Excel"),
    "UTF-16 without its mark": (PLAIN.encode("utf-16-le"), "is not UTF-8 text"),
    "cut UTF-16": (PLAIN.encode("utf-16")[:-1], "is not UTF-8 text"),
    "twice": ("image,label\nsub/x1.png,nv\nsub/x1,nv\n", "sub/x1.png and sub/x1 are both labels of sub/x1.png"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    """One line that names the file, the line or the columns that are there, and what to do."""
    for name in TRUTH:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabelsError) as caught:
        find_labelled_images(tmp_path, path, CLASSES)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stem_of_two_files_is_refused(tmp_path: Path) -> None:
    """A name without its suffix that two files have is none: in labels and in a list of images."""
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "t.csv").write_text("image,label\na,nv\n")
    with pytest.raises(ImageFolderError, match=r"a may be a\.jpg, a\.png; write the name of the file"):
        find_images(tmp_path / "t.csv")
    with pytest.raises(LabelsError, match=r"a may be a\.jpg, a\.png; write its whole name, with folders and suffix"):
        find_labelled_images(tmp_path, tmp_path / "t.csv", CLASSES)


def test_labels_of_file_names_are_found_whatever_the_folders(tmp_path: Path) -> None:
    """Where no label has a folder and none is found as it is, those of the images do not count; two of a name do."""
    images = ["/data/1/a.png", "/data/2/b.JPG", "3/c.png"]
    source, found = Path("t.csv"), {"a.png": "/data/1/a.png", "b": "/data/2/b.JPG"}
    assert match_names(source, ["a.png", "b", "z.png"], images) == NameMatch(found, 1)
    # A name that is found, or has a folder, says that names are whole.
    assert match_names(source, ["3/c.png", "a.png"], images) == NameMatch({"3/c.png": "3/c.png"}, 1)
    assert match_names(source, ["x/a.png", "b"], images) == NameMatch({}, 2)
    with pytest.raises(LabelsError, match=r"^t.csv: a.png may be /data/1/a.png, 4/a.png; write its whole name"):
        match_names(source, ["a.png"], [*images, "4/a.png"])
    with pytest.raises(LabelsError, match=r"a.png and a are both labels of /data/1/a.png; name each image once"):
        match_names(source, ["a.png", "a"], images)


def test_a_name_that_a_file_has_is_that_file(tmp_path: Path) -> None:
    """Blanks, both forms of an accent and a name like another's stem are what they are where such files are there."""
    names = [" a.png", "a.png", "caf\u00e9.png", "cafe\u0301.png", "b", "b.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "t.csv").write_text("image,label\n" + "".join(f"{name},nv\n" for name in names))
    assert list(find_images(tmp_path / "t.csv").names) == sorted(names)
    assert find_labelled_images(tmp_path / "t.csv", None, CLASSES).labels.keys() == set(names)


def test_counts_of_columns_and_of_names_with_commas(workplace: Workplace) -> None:
    """Columns of classes are counted as they stand; --classes takes a name with a comma in quotes."""
    Path("t.csv").write_text("image,MEL,NV,UNK\na,1.0,0.0,0.0\nb,0.0,1.0,0.0\nc,0.0,1.0,0.0\n")
    assert "class 'UNK' is 0" in workplace.fails("counts", "t.csv")
    assert json.loads(workplace.run("counts", "t.csv", "--classes", "NV,MEL").out) == {"NV": 2, "MEL": 1}
    Path("t.csv").write_text("image,NV,MEL\na,0,1\nb,1,0\nc,1,0\n")
    finished = workplace.run("counts", "t.csv")
    assert list(json.loads(finished.out).items()) == [("NV", 2), ("MEL", 1)]
    assert "class-index order of its columns (check that your model's is): NV, MEL" in finished.err
    Path("t.csv").write_text('image,label\na,"nevus, common"\nb,mel\nc,mel\n')
    finished = workplace.run("counts", "t.csv", "--classes", 'mel, "nevus, common"')
    assert list(json.loads(finished.out).items()) == [("mel", 2), ("nevus, common", 1)]
    assert "quotes" in workplace.fails("counts", "t.csv", "--classes", 'mel,"nevus, common')
    Path("t.csv").write_text("image,label\na,10.0\nb,2.0\nc,2.0\n")
    assert list(json.loads(workplace.run("counts", "t.csv").out).items()) == [("2", 2), ("10", 1)]


def test_blanks_in_counts(workplace: Workplace) -> None:
    """A class called 'nv ' in COUNTS is 'nv' in predictions and labels, and every command says so."""
    Path("counts.json").write_text('{"a ": 900.0, "b": 90, "c": 30, "d": 3}')
    said = "note: blanks around class names are left out: 'a '"
    finished = workplace.run("predict", "model.pth", "counts.json", "images", *SMALL)
    assert said in finished.err
    names = [line.partition(",")[0] for line in Path("predictions.csv").read_text().splitlines()[1:]]
    Path("labels.csv").write_text("image,label\n" + "".join(f"{name},a\n" for name in names))
    finished = workplace.run("evaluate", "--labels", "labels.csv", "--counts", "counts.json", "--json")
    assert json.loads(finished.out)["classes"] == ["a", "b", "c", "d"], finished.err
    assert said.removeprefix("note: ") in workplace.run("inspect", "model.pth", "counts.json", *SMALL).out


def test_names_that_pandas_loses_are_said(workplace: Workplace) -> None:
    """The summary of a run has one line that names the classes and the way to read them; so has that of a merge."""
    Path("counts.json").write_text('{"None": 900, "NA": 90, "c": 30, "d": 3}')
    said = "note: pandas.read_csv takes classes for something else (None, NA: no value): read the file by ip.read_pr"
    for part in ("1/2", "2/2"):
        arguments = ("model.pth", "counts.json", "images", *SMALL, "--shard", part, "-o", f"{part[0]}.csv")
        assert said in workplace.run("predict", *arguments).err
    assert said in workplace.run("merge", "1.csv", "2.csv", "-o", "p.csv").err
    assert {*ip.read_predictions("p.csv")["pred"]} <= {"None", "NA", "c", "d"}
    assert "pandas" not in workplace.run("predict", *arguments[:3], *SMALL, "-o", "p.jsonl").err
