from __future__ import annotations

from pathlib import Path

import pytest

from imbalance_perturb.data.labels import find_labelled_images
from imbalance_perturb.errors import ImageFolderError, LabelsError

CLASSES = ("a", "b")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        path = tmp_path / "val" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def test_class_folders_label_themselves(place: Path) -> None:
    """Without a labels file the folders' names are the labels."""
    found = find_labelled_images(place / "val", None, CLASSES)
    assert found.labels == {"a/1.png": 0, "a/2.png": 0, "b/3.png": 1}
    assert found.select_labels(["b/3.png", "a/1.png"]).tolist() == [1, 0]
    assert found.unused_labels == 0


def test_a_csv_labels_the_images_it_lists(place: Path) -> None:
    """One CSV can name images and labels, also with ./ and absolute paths."""
    absolute = place / "val" / "b" / "3.png"
    (place / "val.csv").write_text(f"image,label\n./val/a/1.png,b\n{absolute},a\n")
    found = find_labelled_images(place / "val.csv", None, CLASSES)
    assert sorted(found.select_labels(list(found.images.names)).tolist()) == [0, 1]
    assert set(found.labels) == {"val/a/1.png", str(absolute)}


def test_a_labels_file_may_know_more_images(place: Path) -> None:
    """Labels of images that are not there are counted."""
    (place / "labels.csv").write_text("image,label\na/1.png,a\na/2.png,b\nb/3.png,b\nc/4.png,a\n")
    found = find_labelled_images(place / "val", place / "labels.csv", CLASSES)
    assert found.unused_labels == 1
    assert found.labels["a/2.png"] == 1


def test_images_without_a_label_are_counted_and_named(place: Path) -> None:
    """The message has the number and the first names; where none fits, it shows how the labels name theirs."""
    (place / "labels.csv").write_text("image,label\na/1.png,a\n")
    with pytest.raises(LabelsError, match=r"no label for 2 of 3 images in .*val \(first: a/2.png, b/3.png\); label"):
        find_labelled_images(place / "val", place / "labels.csv", CLASSES)
    (place / "labels.csv").write_text("image,label\nval/1.png,a\n")
    with pytest.raises(LabelsError, match=r"the labels name images like val/1\.png: names must be the same"):
        find_labelled_images(place / "val", place / "labels.csv", CLASSES)


def test_a_class_folder_that_is_no_class_is_refused(place: Path) -> None:
    """Both lists of names are in the message."""
    with pytest.raises(LabelsError, match="class folders that are no class: b; the classes are a, c"):
        find_labelled_images(place / "val", None, ("a", "c"))


def test_missing_images_are_an_error_of_the_images(place: Path) -> None:
    """A path that is not there is named."""
    with pytest.raises(ImageFolderError, match="nowhere: no such file"):
        find_labelled_images(place / "nowhere", None, CLASSES)


@pytest.mark.parametrize("listed", ["a/1.png", "./a/1.png", ".//a/./1.png"])
@pytest.mark.parametrize("labelled", ["a/1.png", "./a/1.png", "a//1.png"])
def test_one_image_has_one_name_in_lists_and_labels(listed: str, labelled: str, place: Path) -> None:
    """However the list and the labels write a path, it is the same image."""
    (place / "val" / "list.csv").write_text(f"image\n{listed}\n")
    (place / "labels.csv").write_text(f"image,label\n{labelled},b\n")
    assert find_labelled_images(place / "val" / "list.csv", place / "labels.csv", CLASSES).labels == {"a/1.png": 1}


def test_names_like_formulas_match_in_every_form(place: Path) -> None:
    """As predict writes it, with ./ before, or as it is."""
    name = "=1+1.png"
    (place / "val" / name).write_bytes(b"")
    for cell in (name, f"./{name}"):
        (place / "val" / "list.csv").write_text(f"image,label\n{cell},a\n")
        for source in (place / "val" / "list.csv", None):
            assert find_labelled_images(place / "val" / "list.csv", source, CLASSES).labels == {name: 0}


def test_backslashes_are_characters_where_a_file_has_one(place: Path) -> None:
    """Where a file has one in its name, that is meant; else the separator of folders, as Windows has it."""
    (place / "labels.csv").write_text("image,label\na\\1.png,b\na\\2.png,a\nb\\3.png,a\n")
    found = find_labelled_images(place / "val", place / "labels.csv", CLASSES)
    assert found.labels == {"a/1.png": 1, "a/2.png": 0, "b/3.png": 0}
    (place / "val" / "a\\1.png").write_bytes(b"")
    (place / "val" / "list.csv").write_text("image\na\\1.png\n")
    found = find_labelled_images(place / "val" / "list.csv", place / "labels.csv", CLASSES)
    assert found.labels == {"a\\1.png": 1}
