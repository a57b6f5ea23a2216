"""Model files that are missing, damaged, of another kind, or made to run code when they are loaded."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from imbalance_perturb.errors import ModelFileError, UntrustedModelError
from imbalance_perturb.models import load_classifier
from imbalance_perturb.models.formats.exported_program import _is_arithmetic
from imbalance_perturb.models.formats.trust import tensors_only

SHAPE = (3, 8, 8)


class RunsCode:
    """Pickles to a call that leaves a file behind, which shows whether it ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.fixture(scope="module")
def exported() -> bytes:
    """An honest ``torch.export`` archive with a dynamic batch."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    dynamic = ({0: torch.export.Dim("batch", min=1, max=16)},)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(network, (torch.randn(2, *SHAPE),), dynamic_shapes=dynamic), buffer)
    return buffer.getvalue()


def rewrite(
    archive: bytes, path: Path, change: Callable[[str, bytes], bytes | None], add: dict[str, bytes] | None = None
) -> Path:
    """The archive with parts changed, dropped (None) or added."""
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(path, "w") as new:
        names = old.namelist()
        root = names[0].split("/")[0]
        for name in names:
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in (add or {}).items():
            new.writestr(f"{root}/{name}", content)
    return path


def rewrite_graph(archive: bytes, path: Path, change: Callable[[Any], None]) -> Path:
    def in_graph(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        graph = json.loads(content)
        change(graph)
        return json.dumps(graph).encode()

    return rewrite(archive, path, in_graph)


def refused(path: Path, mark: Path, **arguments: Any) -> str:
    with pytest.raises(UntrustedModelError) as caught:
        load_classifier(path, input_shape=SHAPE, **arguments)
    assert not mark.exists()
    assert "--trust-model-file" in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- files that are no models ----------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda d: d / "nothing.pt", "there is no such model file"),
        (lambda d: d, "this is a folder"),
        (lambda d: write(d / "m.pt", b""), "is empty"),
        (lambda d: write(d / "m.pt", b"\x00"), "no PyTorch model file"),
        (lambda d: write(d / "m.pt", bytes(range(256)) * 64), "no PyTorch model file"),
        (lambda d: write(d / "m.pt", b"some text, say an HTML page of an error 404"), "no PyTorch model file"),
        (lambda d: write(d / "m.h5", b"\x89HDF\r\n\x1a\n" + bytes(99)), "HDF5"),
        (lambda d: write(d / "m.onnx", b"\x08\x0a\x12\x07pytorch" + bytes(99)), "ONNX"),
        (lambda d: write(d / "m.tflite", b"\x1c\0\0\0TFL3" + bytes(99)), "TensorFlow Lite"),
        (lambda d: write(d / "m.pth.gz", b"\x1f\x8b\x08" + bytes(99)), "gzip"),
        (lambda d: zipped(d / "m.keras", "config.json", "model.weights.h5"), "Keras"),
        (lambda d: zipped(d / "m.npz", "arr_0.npy"), "NumPy"),
        (lambda d: zipped(d / "m.pt", "readme.txt"), "without a PyTorch model"),
        (lambda d: write(d / "m.pkl", pickle.dumps({"a": 1})), "not written by torch.save"),
        (lambda d: write(d / "m.pkl", b"\x80\x04"), "damaged"),
        (lambda d: zipped(d / "m.pt", "m/data.pkl"), "damaged|not written"),
        (lambda d: zipped(d / "m.pt", "m/data.pkl", "m/constants.pkl", "m/code/a.py"), "is damaged"),
        (lambda d: zipped(d / "m.pt2", "m/archive_format", "m/models/model.json"), "not JSON"),
        (lambda d: zipped(d / "m.pt2", "m/archive_format", "m/archive_version"), "cannot be read"),
    ],
)
def test_files_that_are_no_models_are_named(make: Callable[[Path], Path], reason: str, tmp_path: Path) -> None:
    """Whatever is given in place of a model ends in one line with the file, the cause and a remedy."""
    path = make(tmp_path)
    with pytest.raises(ModelFileError, match=reason) as caught:
        load_classifier(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "torchscript", "export"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_files_cut_off_are_named(kind: str, share: float, exported: bytes, tmp_path: Path) -> None:
    """A download that stopped half-way is said to be damaged, in every format."""
    whole = tmp_path / "whole"
    state = dict(torchvision.models.squeezenet1_1(num_classes=3).state_dict())
    match kind:
        case "safetensors":
            save_file(state, whole)
        case "torchscript":
            torch.jit.script(nn.Linear(2000, 20)).save(str(whole))
        case "export":
            whole.write_bytes(exported)
        case _:
            torch.save(state, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    path = write(tmp_path / "part.pt", content[: int(len(content) * share)])
    with pytest.raises(ModelFileError, match=r"damaged|cut off") as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without permission to read is an error of the file, not a crash."""
    path = write(tmp_path / "m.pt", b"PK")

    def denied(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ModelFileError, match="Permission denied"):
        load_classifier(path)


# ---- pickles that run code -------------------------------------------------------------------------------------


@pytest.mark.parametrize("modern", [True, False])
def test_a_malicious_pickle_does_not_run(modern: bool, tmp_path: Path, mark: Path) -> None:
    """A checkpoint that would call the system on loading is refused, naming the call, and does not run."""
    path = tmp_path / "m.pth"
    content = {"state_dict": {"fc.weight": torch.zeros(2, 2)}, "extra": RunsCode(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=modern)
    assert "posix.mkdir" in refused(path, mark)


def test_the_malicious_pickle_would_have_run(tmp_path: Path, mark: Path) -> None:
    """The same file runs its code when it is trusted: the test above tests something."""
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}, "extra": RunsCode(mark)}, tmp_path / "m.pth")
    with pytest.raises(ModelFileError):
        load_classifier(tmp_path / "m.pth", trust_model_file=True)
    assert mark.exists()


@pytest.fixture
def pickled_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pickled module whose class is in ``their_module.py`` in another folder, not imported here."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "their_module.py").write_text("from torch import nn\nclass Net(nn.Linear): pass\n")
    with monkeypatch.context() as there:
        there.syspath_prepend(str(folder))
        torch.save(importlib.import_module("their_module").Net(4, 2), folder / "m.pt")
    monkeypatch.delitem(sys.modules, "their_module")
    return folder / "m.pt"


def test_a_trusted_pickle_without_its_classes_is_explained(pickled_elsewhere: Path) -> None:
    """A pickled module whose source is not there says that its code cannot be found."""
    with pytest.raises(ModelFileError, match=r"No module named 'their_module'.*run from the folder"):
        load_classifier(pickled_elsewhere, trust_model_file=True)


def test_a_trusted_pickle_finds_its_classes_in_the_current_folder(
    pickled_elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickled module loads from the folder in which its source lies."""
    monkeypatch.chdir(pickled_elsewhere.parent)
    assert load_classifier("m.pt", trust_model_file=True, input_shape=(4,)).info.num_classes == 2


def test_only_tensors_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch that keeps torch from unpickling objects is set for the time of loading only."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    with tensors_only():
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


# ---- exported programs that run code ---------------------------------------------------------------------------


def evil_pickle(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": RunsCode(mark)}, buffer)
    return buffer.getvalue()


def test_the_untouched_export_loads(exported: bytes, tmp_path: Path) -> None:
    """Rewriting alone does no harm, so that the refusals below are for what was changed."""
    path = rewrite(exported, tmp_path / "m.pt2", lambda name, content: content)
    assert load_classifier(path).info.num_classes == 3


@pytest.mark.parametrize("part", ["data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/model.pt"])
def test_pickles_inside_an_export_do_not_run(part: str, exported: bytes, tmp_path: Path, mark: Path) -> None:
    """Example inputs and the older places of parameters and constants are read as tensors or not at all."""
    path = rewrite(
        exported,
        tmp_path / "m.pt2",
        lambda name, content: None if name.endswith(part) else content,
        {part: evil_pickle(mark)},
    )
    assert "posix.mkdir" in refused(path, mark)


@pytest.mark.parametrize("folder", ["weights", "constants"])
def test_pickled_tensors_inside_an_export_do_not_run(folder: str, exported: bytes, tmp_path: Path, mark: Path) -> None:
    """A tensor marked as pickled is read as a tensor or not at all."""
    name_of = {"weights": "weight_0", "constants": "tensor_0"}[folder]

    def change(name: str, content: bytes) -> bytes | None:
        if name.endswith(f"model_{folder}_config.json"):
            entry = {"path_name": name_of, "is_param": False, "use_pickle": True, "tensor_meta": None}
            config = json.loads(content)
            config["config"]["0.weight" if folder == "weights" else "c"] = entry
            return json.dumps(config).encode()
        return None if name.endswith(f"{folder}/{name_of}") else content

    path = rewrite(exported, tmp_path / "m.pt2", change, {f"data/{folder}/{name_of}": evil_pickle(mark)})
    refused(path, mark)


@pytest.mark.parametrize("prefix", ["custom_obj_", "opaque_obj_"])
def test_objects_inside_an_export_do_not_run(prefix: str, exported: bytes, tmp_path: Path, mark: Path) -> None:
    """Constants that are Python or native objects are refused before they are unpickled."""

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("model_constants_config.json"):
            entry = {"path_name": f"{prefix}0", "is_param": False, "use_pickle": True, "tensor_meta": None}
            return json.dumps({"config": {"c": entry}}).encode()
        return content

    part = {f"data/constants/{prefix}0": pickle.dumps(RunsCode(mark))}
    assert "Python object" in refused(rewrite(exported, tmp_path / "m.pt2", change, part), mark)


def test_compiled_code_inside_an_export_is_refused(exported: bytes, tmp_path: Path, mark: Path) -> None:
    """Native libraries in the archive are not loaded."""
    path = rewrite(exported, tmp_path / "m.pt2", lambda n, c: c, {"data/aotinductor/model/x.so": b"\x7fELF"})
    assert "native code" in refused(path, mark)


def _expression(code: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        for value in graph["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = code

    return change


def _target(name: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        graph["graph_module"]["graph"]["nodes"][0]["target"] = name

    return change


def _placeholder(code: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        text = json.dumps(graph["graph_module"])
        graph["graph_module"] = json.loads(text.replace('"name": "input"', json.dumps({"name": code})[1:-1]))

    return change


def _hidden_under_an_inert_name(code: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        values = graph["graph_module"]["graph"]["tensor_values"]
        values["metadata"] = json.loads(json.dumps(next(iter(values.values()))))
        values["metadata"]["sizes"] = [{"as_expr": {"expr_str": code, "hint": None}}]

    return change


def _tree(text: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        graph["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = text

    return change


def _parameter(name: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        graph["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = name

    return change


_CODE = "__import__('os').mkdir('{mark}')"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: _expression(_CODE.format(mark=m)), "expression"),
        (lambda m: _expression(f"Symbol('s0') + Max(1, exec(\"import os; os.mkdir('{m}')\"))"), "expression"),
        (lambda m: _hidden_under_an_inert_name(_CODE.format(mark=m)), "expression"),
        (lambda m: _target("torch.serialization.os.mkdir"), "calls 'torch.serialization.os.mkdir'"),
        (lambda m: _target("torch.hub.load"), "calls 'torch.hub.load'"),
        (lambda m: _target("torch.ops.load_library"), "calls 'torch.ops.load_library'"),
        (lambda m: _target("torch.ops.aten.from_file.default"), "from_file"),
        (lambda m: _target("math.__loader__.load_module"), "calls"),
        (lambda m: _placeholder(f"x=__import__('os').mkdir('{m}')"), "a node named"),
        (lambda m: _parameter(f'a"+__import__("os").mkdir("{m}")+"'), "where a name is expected"),
        (
            lambda m: _tree('[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'),
            "Python type",
        ),
        (
            lambda m: _tree(
                '[1, {"type": "builtins.dict", "context": "[{\\"__enum__\\": 1, \\"fqn\\": \\"antigravity:X\\"}]",'
                ' "children_spec": []}]'
            ),
            "Python type",
        ),
    ],
)
def test_code_inside_an_exported_graph_does_not_run(
    change: Callable[[Path], Callable[[Any], None]], reason: str, exported: bytes, tmp_path: Path, mark: Path
) -> None:
    """Strings that torch would evaluate, import or paste into source code are refused."""
    path = rewrite_graph(exported, tmp_path / "m.pt2", change(mark))
    assert reason in refused(path, mark)


def test_the_malicious_expression_would_have_run(exported: bytes, tmp_path: Path, mark: Path) -> None:
    """The same expression runs when the file is trusted: the test above tests something."""
    path = rewrite_graph(exported, tmp_path / "m.pt2", _expression(_CODE.format(mark=mark)))
    with pytest.raises(ModelFileError):
        load_classifier(path, trust_model_file=True)
    assert mark.exists()


def test_guards_of_an_export_are_not_executed(exported: bytes, tmp_path: Path, mark: Path) -> None:
    """The guards in the file, which torch would run as source code, are left alone."""

    def change(graph: Any) -> None:
        graph["guards_code"] = [_CODE.format(mark=mark)]

    loaded = load_classifier(rewrite_graph(exported, tmp_path / "m.pt2", change))
    loaded(torch.randn(3, *SHAPE))
    assert not mark.exists()


def test_two_parts_of_one_name_are_refused(exported: bytes, tmp_path: Path, mark: Path) -> None:
    """An archive that two readers could read differently is not read at all."""
    path = tmp_path / "m.pt2"
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewrite(exported, path, lambda n, c: c, {"models/model.json": b"{}"})
    assert "two parts of the same name" in refused(path, mark)


def test_two_parts_whose_names_differ_in_case_are_refused(exported: bytes, tmp_path: Path, mark: Path) -> None:
    """To torch they have one name, and it reads the same one for both."""
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
    for content, part, added in (
        (exported, "MODELS/model.json", b"{}"),
        (script.getvalue(), "VERSION", b"3\n"),
    ):
        path = rewrite(content, tmp_path / "m.pt", lambda n, c: c, {part: added})
        assert "two parts of the same name" in refused(path, mark)


def test_the_older_layout_of_an_export_loads_quietly(
    exported: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The layout of torch 2.5 to 2.7, a plain zip with pickled tensors, loads without torch's warnings."""
    from torch._export.serde.schema import SCHEMA_VERSION
    from torch._export.serde.serialize import serialize

    parts = serialize(torch.export.load(io.BytesIO(exported)))
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
        archive.writestr("serialized_exported_program.json", parts.exported_program)
        archive.writestr("serialized_state_dict.pt", parts.state_dict)
        archive.writestr("serialized_constants.pt", parts.constants)
        archive.writestr("serialized_example_inputs.pt", parts.example_inputs)
    capfd.readouterr()
    assert load_classifier(path).info.num_classes == 3
    assert capfd.readouterr() == ("", "")


def test_the_older_layout_of_an_export_is_checked_too(tmp_path: Path, mark: Path) -> None:
    """Files as torch 2.5 to 2.7 wrote them may bring no code either."""
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.8")
        graph = {"graph_module": {"graph": {"nodes": [{"target": "torch.hub.load"}]}}}
        archive.writestr("serialized_exported_program.json", json.dumps(graph))
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", evil_pickle(mark))
    assert "torch.hub.load" in refused(path, mark)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", json.dumps(_empty_program()))
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", evil_pickle(mark))
    assert "posix.mkdir" in refused(path, mark)


def _empty_program() -> Any:
    graph = {
        "inputs": [],
        "outputs": [],
        "nodes": [],
        "tensor_values": {},
        "sym_int_values": {},
        "sym_bool_values": {},
        "is_single_tensor_return": False,
        "custom_obj_values": {},
    }
    signature = {"input_specs": [], "output_specs": []}
    module = {"graph": graph, "signature": signature, "module_call_graph": [], "metadata": {}}
    version = {"major": 8, "minor": 8}
    return {"graph_module": module, "opset_version": {"aten": 10}, "range_constraints": {}, "schema_version": version,
            "verifiers": [], "torch_version": "2.6"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("s0", True),
        ("Symbol('s77', positive=True, integer=True)", True),
        ("Add(FloorDiv(Add(Symbol('s82', positive=True, integer=True), Integer(-3)), Integer(2)), Integer(1))", True),
        ("Max(1, 2*s0 - 1)", True),
        ("(s0 + 1)//2", True),
        ("Mod(s0, 4) == 0", True),
        ("IntTrueDiv(u0, 2.5)", True),
        ("__import__('os')", False),
        ("().__class__", False),
        ("[x for x in (1,)]", False),
        ("lambda: 1", False),
        ("Symbol('__import__(1)')", False),
        ("Max('os', 1)", False),
        ("s0.func", False),
        ("open", False),
        ("f'{s0}'", False),
        ("(s0 := 1)", False),
        ("", False),
        ("1; 2", False),
        ("Symbol(*s0)", False),
        ("Max(1, **s0)", False),
    ],
)
def test_expressions_of_shapes_are_arithmetic_only(text: str, safe: bool) -> None:
    """Sizes may be symbols, numbers, operators and torch's own functions of them, and nothing else."""
    assert _is_arithmetic(text) == safe


# ---- TorchScript that reaches for files ------------------------------------------------------------------------


class Saves(nn.Module):
    """Scripted code that writes a file when it runs."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.where)
        return x.flatten(1)[:, :3]


def test_torchscript_that_writes_files_is_refused(tmp_path: Path, mark: Path) -> None:
    """TorchScript is no Python, yet has an operator that writes files; the file is refused before it runs."""
    torch.jit.script(Saves(str(mark))).save(str(tmp_path / "m.pt"))
    assert "'save'" in refused(tmp_path / "m.pt", mark)
    load_classifier(tmp_path / "m.pt", input_shape=SHAPE, trust_model_file=True)
    assert mark.exists()


def test_torchscript_that_only_mentions_files_loads(tmp_path: Path) -> None:
    """The word in a message or a longer name is no call."""

    class Mentions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            saved = x.flatten(1)
            if saved.shape[1] < 3:
                raise ValueError("cannot save so little")
            return saved[:, :3]

    torch.jit.script(Mentions()).save(str(tmp_path / "m.pt"))
    assert load_classifier(tmp_path / "m.pt", input_shape=SHAPE).info.num_classes == 3
