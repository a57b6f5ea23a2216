"""Model folders from somebody else: nothing in them runs, leads out of them, or makes anything be downloaded."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from imbalance_perturb.errors import ArchitectureError, ModelFileError, UntrustedModelError
from imbalance_perturb.models import load_classifier
from imbalance_perturb.models.folders import model_folder
from tests.faults.test_code_from_folders import TRAP, TRAPS, Trapped
from tests.faults.test_model_files import RunsCode
from tests.model_folders import change_json, write_timm, write_transformers

pytest.importorskip("timm")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("originals")
    write_transformers(root / "vit")
    write_transformers(root / "parts", "resnet", max_shard_size="8KB")
    write_timm(root / "timm")
    return root


@pytest.fixture
def root(originals: Path, tmp_path: Path) -> Path:
    """Copies of them, to be changed."""
    return Path(shutil.copytree(originals, tmp_path / "models"))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("somebody asks for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_code_in_a_folder_does_not_run(kind: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of all names that a config could mean lie there, and none is imported, from within the folder either."""
    (tmp_path / "marks").mkdir()
    names = ("modeling_vit", "configuration_vit", "helpers", "hubconf", "model", "test_resnet", "timm", "transformers")
    for name in names:
        (root / kind / f"{name}.py").write_text(TRAP.format(marks=str(tmp_path / "marks")))
    monkeypatch.chdir(root / kind)
    load_classifier(".")
    load_classifier("model.safetensors")
    assert not list((tmp_path / "marks").iterdir())
    assert not {"helpers", "hubconf", "modeling_vit"} & set(sys.modules)


def test_a_command_with_a_folder_among_traps(
    originals: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What transformers imports is not looked for beside images or weights; of the folder three files are read."""
    trapped = Trapped(tmp_path, tmp_path_factory.mktemp("watching"))
    shutil.copytree(originals / "vit", tmp_path / "vit")
    for name in (*TRAPS, "transformers", "tokenizers", "modeling_vit"):
        for folder in (tmp_path, tmp_path / "vit"):
            (folder / f"{name}.py").write_text(TRAP.format(marks=str(trapped.marks)))
    assert trapped.run_all([("inspect", "vit")]) == [0]
    assert trapped.marked() == []
    files = {f"vit/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json")}
    assert trapped.opened() == files


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_that_a_config_asks_for_is_refused(file: str, root: Path) -> None:
    """``auto_map`` names code of the folder or of the hub: refused, also where it is not needed."""
    change_json(root / "vit" / file, auto_map={"AutoConfig": "elsewhere--configuration_vit.Config"})
    with pytest.raises(ModelFileError, match=r"code of the folder's own.*never run"):
        load_classifier(root / "vit")


@pytest.mark.usefixtures("alone")
def test_a_config_cannot_choose_what_computes(root: Path) -> None:
    """Implementations of attention may be downloaded code: the library's own is taken."""
    expected = load_classifier(root / "vit")
    x = torch.randn(2, 3, 32, 32)
    name = "somebody/attention"
    change_json(root / "vit" / "config.json", attn_implementation=name, _attn_implementation=name)
    change_json(root / "vit" / "config.json", _attn_implementation_internal=name, _name_or_path=name)
    torch.testing.assert_close(load_classifier(root / "vit")(x), expected(x))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model_type": "no_such"}, "no classifier of images for model_type 'no_such'"),
        ({"model_type": "bert"}, "no classifier of images for model_type 'bert'"),
        ({"model_type": "imagegpt"}, "ImageGPTForImageClassification"),
        ({"architectures": ["ViTModel"]}, "this is a 'ViTModel'"),
        ({"architectures": ["os.system"]}, "this is a 'os.system'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({"hidden_size": 10**6}, "far larger than the weights"),
        ({"num_hidden_layers": 10**9}, "far larger than the weights"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unexpected"),
        ({"intermediate_size": 48}, "instead of"),
        ({"hidden_size": "16"}, "transformers cannot"),
        ({"hidden_act": "__import__('os')"}, "transformers cannot"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(next(iter(value.items())))[:40],
)
def test_odd_configs_of_transformers(change: dict[str, Any], what: str, root: Path) -> None:
    """What is no classifier of images, does not fit its weights or is boundless ends in one line."""
    change_json(root / "vit" / "config.json", entries=change)
    with pytest.raises(ModelFileError, match=what) as caught:
        load_classifier(root / "vit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "run.py", 3, "..\\x.bin"]
)
def test_an_index_does_not_lead_out_of_its_folder(file: object, root: Path) -> None:
    """Files that an index names lie beside it, and are weights."""
    save_file({"x": torch.zeros(1)}, root / "outside.safetensors")
    change_json(root / "parts" / "model.safetensors.index.json", weight_map={"x": file})
    with pytest.raises(ModelFileError, match="expected a file of weights beside it"):
        load_classifier(root / "parts")


def test_parts_that_do_not_make_a_whole(root: Path) -> None:
    """A part that is missing, or holds other tensors than the index lists, is named."""
    part = sorted((root / "parts").glob("model-*.safetensors"))[0]
    tensors = load_file(part)
    save_file({**tensors, "odd": torch.zeros(1)}, part)
    with pytest.raises(ModelFileError, match=r"does not hold the tensors that the index beside it lists \(odd\)"):
        load_classifier(root / "parts")
    part.unlink()
    with pytest.raises(ModelFileError, match=part.name):
        load_classifier(root / "parts")


def test_pickles_in_a_folder_are_guarded(root: Path, tmp_path: Path) -> None:
    """``pytorch_model.bin`` is read as tensors alone; trust is bound to the hash of all that is read."""
    for kind in ("vit", "timm"):
        folder, mark = root / kind, tmp_path / f"{kind}-ran"
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").unlink(missing_ok=True)
        torch.save({**tensors, "extra": RunsCode(mark)}, folder / "pytorch_model.bin")
        for trust in (False, "0" * 64):
            with pytest.raises(UntrustedModelError):
                load_classifier(folder, trust_model_file=trust)
        assert not mark.exists()


@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_files_replaced_after_they_were_read(kind: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of a folder is read once: what was checked is what is loaded and what the hash is of."""
    folder, x = root / kind, torch.randn(2, 3, 32, 32)
    names = [
        name for name in ("config.json", "model.safetensors", "preprocessor_config.json") if (folder / name).exists()
    ]
    lines = "".join(f"{sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    expected = load_classifier(folder)
    assert expected.info.sha256 == sha256(lines.encode()).hexdigest()
    read, seen = model_folder.read_snapshot, []

    def read_and_replace(path: Path) -> Any:
        snapshot = read(path)
        assert path.name not in seen
        seen.append(path.name)
        path.write_bytes(b"{}")
        return snapshot

    monkeypatch.setattr(model_folder, "read_snapshot", read_and_replace)
    loaded = load_classifier(folder)
    assert sorted(seen) == names
    torch.testing.assert_close(loaded(x), expected(x))
    assert loaded.info.sha256 == expected.info.sha256
    assert loaded.preprocessing == expected.preprocessing


def test_folders_that_are_none(root: Path, tmp_path: Path) -> None:
    """A folder without a config, without weights, or with another program's config is told from a model."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelFileError, match=r"without a config\.json"):
        load_classifier(empty)
    (empty / "config.json").write_text('{"lr": 0.1, "architecture": "resnet18"}')
    with pytest.raises(ModelFileError, match="neither timm's"):
        load_classifier(empty)
    (empty / "config.json").write_text('{"model_type": "vit", "model_type": "swin"}')
    with pytest.raises(ModelFileError, match=r"config\.json: 'model_type' stands more than once"):
        load_classifier(empty)
    (root / "vit" / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="no weights"):
        load_classifier(root / "vit")
    with pytest.raises(ModelFileError, match="there is no such model file"):
        load_classifier("local-dir:nowhere")


def test_anybodys_config_beside_a_file(root: Path, tmp_path: Path) -> None:
    """A ``config.json`` of other programs beside weights is left alone, whatever is in it."""
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1(num_classes=3).state_dict(), tmp_path / "m.pth")
    for text in ("[1, 2]", "{", '{"architecture": "resnet50", "lr": NaN}', '{"architecture": "resnet50"}', ""):
        (tmp_path / "config.json").write_text(text)
        assert load_classifier(tmp_path / "m.pth").info.arch == "squeezenet1_1"


def test_weights_of_transformers_without_their_config(root: Path, tmp_path: Path) -> None:
    """Safetensors alone end in one line that says to keep the config beside them; so do pickles."""
    for kind in ("vit", "parts"):
        tensors: dict[str, torch.Tensor] = {}
        for path in sorted((root / kind).glob("*.safetensors")):
            tensors |= load_file(path)
        save_file(tensors, tmp_path / "m.safetensors")
        torch.save(tensors, tmp_path / "m.bin")
        for name in ("m.safetensors", "m.bin"):
            with pytest.raises(ArchitectureError, match=r"keep config\.json and preprocessor_config\.json there"):
                load_classifier(tmp_path / name)


@pytest.mark.parametrize(("kind", "module"), [("vit", "transformers"), ("timm", "timm")])
def test_a_library_that_is_not_installed(kind: str, module: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says which extra to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ArchitectureError, match=rf"pip install\s+'imbalance-perturb\[{module}\]'"):
        load_classifier(root / kind)


def test_without_its_preprocessing_a_folder_needs_to_be_told(root: Path) -> None:
    """No ``preprocessor_config.json``: nothing is guessed, the network loads, and what to say is said."""
    (root / "vit" / "preprocessor_config.json").unlink()
    own = load_classifier(root / "vit").preprocessing
    assert own is not None
    assert own.settings is None
    assert "no preprocessor_config.json" in own.refusal
    assert "--preset imagenet" in own.refusal
    text = json.dumps({"image_processor": {"image_processor_type": "DonutImageProcessor"}})
    (root / "vit" / "processor_config.json").write_text(text)
    assert "Donut" in load_classifier(root / "vit").preprocessing.refusal  # type: ignore[union-attr]


def test_weights_in_half_precision_are_told(root: Path) -> None:
    """A network in bfloat16 is computed in float32, which is said."""
    tensors = load_file(root / "vit" / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, root / "vit" / "model.safetensors")
    change_json(root / "vit" / "config.json", dtype="bfloat16")
    loaded = load_classifier(root / "vit")
    assert loaded(torch.randn(2, 3, 32, 32)).dtype == torch.float32
    assert "tensors stored as torch.bfloat16 were converted to float32" in loaded.info.notes
