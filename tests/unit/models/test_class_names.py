"""imbalance_perturb.models: the names of the classes, where a file has them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from imbalance_perturb.errors import ModelFileError, UntrustedModelError
from imbalance_perturb.models import load_classifier, read_class_names
from imbalance_perturb.models.class_names import find_class_names, select_class_names

NAMES = ("nv", "mel", "df")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    from torchvision.models import get_model

    found: dict[str, torch.Tensor] = get_model("shufflenet_v2_x0_5", weights=None, num_classes=3).state_dict()
    return found


_INDEXED = {name: index for index, name in enumerate(NAMES)}


@pytest.mark.parametrize(
    "key", ["class_to_idx", "classes", "class_names", "names", "id2label", "label2id", "idx_to_class", "labels"]
)
@pytest.mark.parametrize(
    "value", [_INDEXED, dict(enumerate(NAMES)), {str(i): n for i, n in enumerate(NAMES)}, list(NAMES)]
)
@pytest.mark.parametrize("table", [None, "hyper_parameters", "hparams", "args", "config", "meta", "model_args"])
def test_every_way_of_naming_is_read(key: str, value: Any, table: str | None) -> None:
    """A list, names by index or indices by name, at the top or in a table, in whatever order, give one order."""
    if isinstance(value, dict):
        value = dict(reversed(value.items()))
    content = {"state_dict": {}, **({key: value} if table is None else {table: {key: value, "lr": 0.1}})}
    (found,) = find_class_names(content)
    assert found.names == NAMES
    assert found.key == (key if table is None else f"{table}.{key}")


@pytest.mark.parametrize(
    "value",
    [
        3,
        "nv",
        ["nv"],
        ["nv", "nv", "df"],
        ["nv", None, "df"],
        {"nv": 0, "mel": 0, "df": 1},
        {"nv": 1, "mel": 2, "df": 3},
    ],
)
def test_what_names_no_classes_is_none(value: Any) -> None:
    """Numbers of classes, lists with doubles and mappings that are no numbering from 0 are not taken for names."""
    assert find_class_names({"classes": value}) == []


def test_names_that_say_nothing_or_too_many_are_left(tmp_path: Path) -> None:
    """Indices and transformers' LABEL_0 are no names; other numbers of names than classes are left with a note."""
    for names in (["0", "1", "2"], [0, 1, 2], ["LABEL_0", "LABEL_1", "LABEL_2"]):
        assert select_class_names(find_class_names({"classes": names}), 3, tmp_path) == (None, ())
    found, notes = select_class_names(find_class_names({"labels": ["a", "b"]}), 3, tmp_path)
    assert found is None
    assert "'labels' in the file has 2 entries" in notes[0]


def test_two_orders_in_one_file_are_refused(tmp_path: Path) -> None:
    """A file that contradicts itself cannot say which is right."""
    content = {"classes": ["mel", "nv", "df"], "class_to_idx": _INDEXED}
    with pytest.raises(ModelFileError, match="two orders: class 0 is 'nv' in 'class_to_idx' and 'mel' in 'classes'"):
        select_class_names(find_class_names(content), 3, tmp_path)


def test_checkpoints_and_safetensors(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The names come with the loaded model, with a note, and can be read without building it."""
    torch.save({"state_dict": state, "hyper_parameters": {"class_to_idx": _INDEXED}}, tmp_path / "m.pth")
    save_file(state, tmp_path / "m.safetensors", {"class_to_idx": json.dumps(_INDEXED)})
    save_file(state, tmp_path / "config.safetensors", {"config": json.dumps({"id2label": dict(enumerate(NAMES))})})
    torch.save(state, tmp_path / "none.pth")
    for name in ("m.pth", "m.safetensors", "config.safetensors"):
        info = load_classifier(tmp_path / name).info
        assert info.classes == NAMES
        assert any("nv, mel, df" in note for note in info.notes)
        found = read_class_names(tmp_path / name, 3)
        assert found is not None
        assert found.names == NAMES
    assert load_classifier(tmp_path / "none.pth").info.classes is None
    assert read_class_names(tmp_path / "none.pth", 3) is None


def test_extra_files_of_archives(tmp_path: Path) -> None:
    """TorchScript and exported programs may carry names as extra files: JSON, or a name a line."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    extra = {"classes.txt": "nevus [benign]\nmel\ndf\n"}
    torch.jit.save(torch.jit.script(network), tmp_path / "m.pt", _extra_files=extra)  # type: ignore[no-untyped-call]
    assert load_classifier(tmp_path / "m.pt", input_shape=(3, 2, 2)).info.classes == ("nevus [benign]", "mel", "df")
    program = torch.export.export(network, (torch.randn(2, 3, 2, 2),))
    names = {"class_to_idx.json": json.dumps({"nevus [benign]": 0, "mel": 1, "df": 2})}
    torch.export.save(program, tmp_path / "m.pt2", extra_files=names)
    assert load_classifier(tmp_path / "m.pt2", input_shape=(3, 2, 2)).info.classes == ("nevus [benign]", "mel", "df")


@pytest.mark.parametrize("place", ["models/extra/evil.json", "extra/models/evil.json", "models/evil.json"])
def test_only_texts_are_extra_files(place: str, tmp_path: Path) -> None:
    """A graph does not escape its check by lying in a folder that is called like that of the extra files."""
    program = torch.export.export(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval(), (torch.randn(2, 3, 2, 2),))
    torch.export.save(program, tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2", "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/{place}", json.dumps({"target": "os.system"}))
    with pytest.raises(UntrustedModelError, match=r"calls 'os\.system'"):
        load_classifier(tmp_path / "m.pt2", input_shape=(3, 2, 2))
