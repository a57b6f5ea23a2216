from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.labels import count_labels, describe_order, load_labels
from imbalance_perturb.errors import CountsError, LabelsError

NAMES = ("nv", "mel", "df")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def folder(root: Path, *images: str) -> Path:
    for name in images:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(path)
    return root


def test_csv_with_more_columns(tmp_path: Path) -> None:
    """Other columns, their order, a byte order mark, blank lines and ./ before a path do no harm."""
    path = write(tmp_path / "l.csv", '\ufefffold,label,image\n0,nv,./a.png\n\n1, df ,"b, c.png"\n2,mel,sub//d.png\n')
    assert load_labels(path, NAMES).by_image == {"a.png": 0, "b, c.png": 2, "sub/d.png": 1}


def test_labels_of_classes_named_by_index(tmp_path: Path) -> None:
    """Where classes are named by index, a label is an index."""
    path = write(tmp_path / "l.csv", "image,label\na,10\nb,2\n")
    assert load_labels(path, [str(index) for index in range(11)]).by_image == {"a": 10, "b": 2}


def test_folder_of_class_folders(tmp_path: Path) -> None:
    """An image's class is its first folder; hidden folders, other files and loose images have none."""
    root = folder(tmp_path / "val", "nv/a.png", "df/deep/b.jpg", ".trash/c.png", "loose.png")
    write(root / "nv" / "notes.txt", "x")
    assert load_labels(root, NAMES).by_image == {"nv/a.png": 0, "df/deep/b.jpg": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected CSV with the columns image,label"),
        ("image,label\n", "labels no image"),
        ("image,kind\na,nv\n", "has no column 'label'; .* it is 'image,kind'"),
        ("image|label\na|nv\n", r"has no column 'image'; .* it is 'image\|label'"),
        ("image,label,label\na,nv,df\n", "names the column 'label' twice"),
        ("image,label\na,nv\nb\n", "line 3: 1 cells, but the first line names 2 columns"),
        ("image,label\na,nv,df\n", "line 2: 3 cells"),
        ("image,label\na,\n", "line 2: the label is empty"),
        ("image,label\n,nv\n", "line 2: the image is empty"),
        ('image,label\n"a,nv\n', "is not CSV"),
        ("image,label\na,nv\nb,df\na,nv\n", "line 4: a is there already, in line 2; name each image once"),
        ("image,label\na.png,nv\n./a.png,nv\n", r"line 3: a\.png is there already, in line 2"),
        ("image,label\na,nevus\nb,x\n", "no class: nevus, x; the classes are nv, mel, df$"),
        ("image,label\na,0\nb,2\n", "the labels are numbers, the classes have names: write the names"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    """Each defect of a labels file has its own message, in one line that begins with the file."""
    path = write(tmp_path / "l.csv", text)
    with pytest.raises(LabelsError, match=message) as caught:
        load_labels(path, NAMES)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    """A missing file and one that is not UTF-8 are told apart."""
    with pytest.raises(LabelsError, match="no such file or folder"):
        load_labels(tmp_path / "none.csv", NAMES)
    (tmp_path / "l.csv").write_bytes(b"image,label\n\xff\xfe,nv\n")
    with pytest.raises(LabelsError, match="is not UTF-8 text"):
        load_labels(tmp_path / "l.csv", NAMES)


def test_folders_that_do_not_serve(tmp_path: Path) -> None:
    """A class folder that is no class, a folder without class folders and an empty one are named."""
    with pytest.raises(LabelsError, match="class folders that are no class: scar; the classes are nv, mel, df"):
        load_labels(folder(tmp_path / "a", "nv/a.png", "scar/b.png"), NAMES)
    with pytest.raises(LabelsError, match="has no class folders"):
        load_labels(folder(tmp_path / "b", "a.png"), NAMES)
    (tmp_path / "c").mkdir()
    with pytest.raises(LabelsError, match=r"no image in this folder .* expected one folder for each class"):
        load_labels(tmp_path / "c", NAMES)


def test_counting_sorts_as_image_folder_does(tmp_path: Path) -> None:
    """Counted class folders are sorted as text, like ImageFolder's; numbers in a CSV by value."""
    root = folder(tmp_path / "train", "10/a.png", "2/b.png", "2/c.png")
    assert count_labels(root).to_dict() == {"10": 1, "2": 2}
    table = write(tmp_path / "l.csv", "image,label\na,10\nb,2\nc,2\n")
    assert list(count_labels(table).to_dict().items()) == [("2", 2), ("10", 1)]


def test_the_order_of_counting_is_said(tmp_path: Path) -> None:
    """Words and order agree, and where numbers sort otherwise as text than by value both orders are shown."""
    root = folder(tmp_path / "train", "10/a.png", "2/b.png")
    words = describe_order(root, count_labels(root))
    assert words.startswith("sorted as text, as torchvision's ImageFolder has it (warning: ")
    assert "by value" in words
    assert "has 2, 10: say --classes" in words
    table = write(tmp_path / "l.csv", "image,label\na,10\nb,2\nc,-1\n")
    assert count_labels(table).names == ("-1", "2", "10")
    words = describe_order(table, count_labels(table))
    assert words.startswith("by value (warning: ")
    assert "has -1, 10, 2: say --classes" in words
    plain = write(tmp_path / "p.csv", "image,label\na,1\nb,0\n")
    assert describe_order(plain, count_labels(plain)) == "by value (check that your model's is)"


def test_counting_in_a_given_order(tmp_path: Path) -> None:
    """Names given are the class order; a class without images, or an image of no class, is an error."""
    table = write(tmp_path / "l.csv", "image,label\na,nv\nb,df\nc,df\n")
    assert list(count_labels(table, [" nv ", "df"]).to_dict().items()) == [("nv", 1), ("df", 2)]
    with pytest.raises(CountsError, match="class 'mel' is 0"):
        count_labels(table, NAMES)
    with pytest.raises(LabelsError, match="no class: df"):
        count_labels(table, ["nv", "mel"])


def test_counting_refuses_what_would_shift_indices(tmp_path: Path) -> None:
    """An empty class folder and images outside the class folders are errors when counting."""
    root = folder(tmp_path / "train", "a/1.png", "c/2.png")
    (root / "b").mkdir()
    with pytest.raises(CountsError, match="class 'b' is 0"):
        count_labels(root)
    with pytest.raises(LabelsError, match=r"1 images lie outside its class folders \(first: loose\.png\)"):
        count_labels(folder(tmp_path / "other", "a/1.png", "b/2.png", "loose.png"))


def test_system_folders_are_neither_classes_nor_counted(tmp_path: Path) -> None:
    """Three and four images are three and four, whatever a NAS, a notebook or git keeps beside them."""
    root = folder(tmp_path / "train", *(f"a/{i}.png" for i in range(3)), *(f"b/{i}.png" for i in range(4)))
    folder(root, "a/.ipynb_checkpoints/0.png", "a/@eaDir/0.png", "@eaDir/0.png", "__MACOSX/a/0.png", ".git/0.png")
    (root / "lost+found").mkdir()
    lists: list[ImageList] = []
    assert count_labels(root, describe=lists.append).to_dict() == {"a": 3, "b": 4}
    assert lists[0].hidden.to_dict() == {"files": 5, "folders": 6}
    assert load_labels(root, ("a", "b")).by_image.keys() == {
        f"{c}/{i}.png" for c, n in (("a", 3), ("b", 4)) for i in range(n)
    }


def test_pictures_that_are_not_read_are_not_counted(tmp_path: Path) -> None:
    """A file that no training read is no training image, and no loose image either."""
    root = folder(tmp_path / "train", "a/1.png", "b/1.png", "b/2.png")
    for name in ("a/3.svg", "plan.pdf"):
        (root / name).write_bytes(b"")
    assert count_labels(root).to_dict() == {"a": 1, "b": 2}


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """As the shell's <(...) gives one."""
    pipe = tmp_path / "pipe"
    for read in (lambda: load_labels(pipe, ("a", "b")).by_image, lambda: count_labels(pipe, ("b", "a")).to_dict()):
        os.mkfifo(pipe)
        writer = threading.Thread(target=lambda: pipe.write_text("image,a,b\nx.png,1,0\ny.png,0,1\n"))
        writer.start()
        assert read() in ({"x.png": 0, "y.png": 1}, {"b": 1, "a": 1})
        writer.join()
        pipe.unlink()


def test_groups_of_images(tmp_path: Path) -> None:
    """A column of groups goes with each image, whatever else the table has; a name may lack its suffix."""
    path = write(tmp_path / "l.csv", "image;nv;mel;df;Patient-ID\na;1;0;0; P7 \nb;0;1;0;P7\nc;0;0;1;9\n")
    loaded = load_labels(path, NAMES, group="patient_id")
    assert loaded.groups == {"a": "P7", "b": "P7", "c": "9"}
    assert loaded.match(["c.png", "a.png", "z.png"]).groups == {"a.png": "P7", "c.png": "9"}
    assert load_labels(path, NAMES).match(["a.png"]).groups == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\na,nv\n", "has no column 'lesion' to group images by; its columns are image, label$"),
        ("image,label,Lesion,LESION\na,nv,1,2\n", "has two columns 'lesion' to group images by"),
        ("image,label,lesion\na,nv,1\nb,nv,\n", "line 3: lesion is empty; give each image a group"),
    ],
)
def test_groups_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    """A column that is not there, or twice, and an image without a group are refused in one line."""
    with pytest.raises(LabelsError, match=message):
        load_labels(write(tmp_path / "l.csv", text), NAMES, group="lesion")
    with pytest.raises(LabelsError, match="a folder of class folders has no column 'lesion'"):
        load_labels(folder(tmp_path / "val", "nv/a.png"), NAMES, group="lesion")
