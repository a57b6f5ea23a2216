"""Small model files that declare, or unpack to, far more than they hold: refused before memory is taken."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from imbalance_perturb.errors import ModelFileError
from imbalance_perturb.models import load_classifier
from imbalance_perturb.models.formats.checkpoint import check_checkpoint
from imbalance_perturb.models.formats.pickles import describe
from imbalance_perturb.models.formats.snapshot import read_snapshot
from imbalance_perturb.models.formats.torchscript import code_depth, has_long_chain
from tests.faults.test_model_files import rewrite

_PEAK = """
import resource, sys, torch, torchvision
from imbalance_perturb.errors import ModelFileError
from imbalance_perturb.models import load_classifier
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_classifier(sys.argv[1], trust_model_file=len(sys.argv) > 2)
except ModelFileError as error:
    print(error, file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def saved(content: Any, **arguments: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **arguments)
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(20, 50)), buffer)
    return buffer.getvalue()


def bomb(path: Path, part: str, megabytes: int) -> Path:
    """An archive like a model's with one part of zeros, deflated."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        names = {"m/data.pkl": b"\x80\x02}.", "m/version": b"3\n"}
        if part.endswith((".py", ".json")):
            names |= {"m/constants.pkl": b"\x80\x02).", "m/archive_format": b"pt2"}
        for name, content in names.items():
            if name != part:
                archive.writestr(name, content)
        with archive.open(part, "w") as file:
            for _ in range(megabytes):
                file.write(bytes(2**20))
    return path


def refusal(path: Path, **arguments: Any) -> str:
    with pytest.raises(ModelFileError) as caught:
        load_classifier(path, **arguments)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    ("part", "trust"),
    [("m/data.pkl", False), ("m/data/0", True), ("m/code/a.py", False), ("m/models/model.json", True)],
)
def test_a_zip_bomb_takes_no_memory(part: str, trust: bool, tmp_path: Path) -> None:
    """A megabyte that would unpack to one gigabyte is refused, trusted or not, with next to no memory taken."""
    path = bomb(tmp_path / "m.pt", part, 1024)
    assert path.stat().st_size < 2**21
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path), *["trust"] * trust], capture_output=True, text=True, timeout=120
    )
    assert "would unpack to 1,07" in done.stderr
    assert int(done.stdout) < 100 * 1024  # kilobytes


def test_legacy_storages_of_any_size_are_refused(tmp_path: Path) -> None:
    """A file of the older layout whose pickle declares terabytes is refused before they are allocated."""
    whole = saved({"a": torch.zeros(1000)}, _use_new_zipfile_serialization=False)
    path = tmp_path / "m.pt"
    path.write_bytes(whole.replace(b"M\xe8\x03", b"\x8a\x06" + b"\xff" * 5 + b"\x0f"))
    assert "its tensors take" in refusal(path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"K2K\x14t", b"J\0\0\0\x10K\x14t", "reaches element"),
        (b"M\xe8\x03", b"J\0\0\0\x10", "bytes are declared"),
        (b"q\x01", b"r\xff\xff\xff\x7f", "numbers an object"),
    ],
)
def test_script_that_reads_beyond_its_tensors_is_refused(old: bytes, new: bytes, reason: str, tmp_path: Path) -> None:
    """Sizes and memo numbers, which TorchScript's reader takes as they are, must fit what is there."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("/data.pkl"):
            return content
        assert old in content
        return content.replace(old, new, 1)

    for trust in (False, True):
        path = rewrite(scripted(), tmp_path / "m.pt", change)
        assert reason in refusal(path, trust_model_file=trust)


@pytest.mark.parametrize(
    "notes",
    [
        pickle.dumps(("FORMAT_WITH_STRING_TABLE", ["a text"], [0, 931]), protocol=2),
        b"\x80\x02N" + b"\x85" * 100_000 + b".",
        bytes(70 * 2**20),
        b"no pickle",
    ],
    ids=["point nowhere", "nested", "zeros", "damaged"],
)
def test_notes_on_the_source_are_left_out(notes: bytes, tmp_path: Path) -> None:
    """The notes beside TorchScript's code, which torch would act on unchecked, are nowhere read whatever they hold."""
    path, whole, seen = tmp_path / "m.pt", scripted(), []
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            seen += [name] if name.endswith("debug_pkl") else []
            new.writestr(name, notes if name.endswith("debug_pkl") else old.read(name))
    assert seen
    assert not any("debug_pkl" in part.filename for part in read_snapshot(path).archive.parts)
    loaded = load_classifier(path, input_shape=(20,))
    assert loaded.info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(loaded(torch.ones(2, 20)), torch.jit.load(io.BytesIO(whole))(torch.ones(2, 20)))


def test_what_hides_behind_the_notes_is_still_refused(tmp_path: Path) -> None:
    """An archive that two readers could read differently is not put right by leaving its notes out."""
    for change in (lambda d: d[:-2] + b"\4\0" + b"more", lambda d: b"before" + d, _overlapping):
        (tmp_path / "m.pt").write_bytes(change(scripted()))
        refusal(tmp_path / "m.pt")


def test_limits_grow_with_the_file(tmp_path: Path) -> None:
    """A pickle of more objects than a small file may have is fine in a large one; sharing is not repetition."""
    several = b"\x80\x02]q\0" + b"N0" * 1_100_000 + b"."
    with pytest.raises(ValueError, match="more objects"):
        describe(io.BytesIO(several), strict=True)
    describe(io.BytesIO(several), strict=True, size=len(several))
    shared = ["one", ("two",)]
    torch.save({"a": torch.zeros(2, 2), "b": [[shared] * 300] * 300}, tmp_path / "m.pth")
    check_checkpoint(read_snapshot(tmp_path / "m.pth"))


@pytest.mark.parametrize("nested", ["(" * 100_000, "-" * 100_000, "input" + "[0]" * 50_000])
def test_deeply_nested_script_is_refused(nested: str, tmp_path: Path) -> None:
    """Code whose nesting would overflow the stack of TorchScript's reader is refused."""
    path = rewrite(
        scripted(),
        tmp_path / "m.pt",
        lambda name, content: (
            content.replace(b"return ", b"return " + nested.encode())
            if "/linear" in name and name.endswith(".py")  # or linear/___torch_mangle_1.py, after other tests
            else content
        ),
    )
    assert "nested too deeply" in refusal(path)


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"N" + b"\x85" * 100_000, "nested too deeply"),
        (b"]q\0" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)),
         "repeats itself"),
        (b"c__builtin__\nbytearray\n\x8a\x06" + b"\xff" * 5 + b"\x7f\x85R", "tensors take"),
        (b"ctorch\nFloatTensor\n\x8a\x06" + b"\xff" * 5 + b"\x7f\x85R", "tensors take"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
         b"0X\3\0\0\0cpuK\1tQK\0\x8a\x06" + b"\xff" * 5 + b"\x7f\x85K\0\x85\x89NtR", "tensors take"),
    ],
)  # fmt: skip
def test_pickles_that_exhaust_their_reader_are_refused(pickled: bytes, reason: str, tmp_path: Path) -> None:
    """Depth, repetition and calls that allocate what a number says are found without making any of it."""
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("m/data/0", bytes(4))
        archive.writestr("m/version", b"3\n")
    assert reason in refusal(path)


def _overlapping(data: bytes) -> bytes:
    at = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    return data[: at + 42] + data[data.index(b"PK\1\2") + 42 :][:4] + data[at + 46 :]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: _overlapping(d),
        lambda d: d[:22] + b"\1\0\0\0" + d[26:] if d[22:26] != b"\0\0\0\0" else d[:8] + b"\x0c\0" + d[10:],
        lambda d: d[:-2] + b"\4\0" + b"more",
        lambda d: b"before" + d,
    ],
)
def test_archives_that_two_readers_could_read_differently_are_refused(
    change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """Parts within parts, headers that disagree and bytes around the archive are refused."""
    path = tmp_path / "m.pt"
    path.write_bytes(change(saved({"a": torch.zeros(10)})))
    refusal(path)


def test_a_bomb_inside_an_export_is_found(tmp_path: Path) -> None:
    """The archives within an exported program are held to the same."""
    inner = bomb(tmp_path / "inner", "m/data.pkl", 100).read_bytes()
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/archive_format", b"pt2")
        archive.writestr("m/data/sample_inputs/model.pt", inner)
    assert "sample_inputs" in refusal(path)


def test_nested_json_is_an_error(tmp_path: Path) -> None:
    """A graph nested a hundred thousand times is refused."""
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/archive_format", b"pt2")
        archive.writestr("m/models/model.json", b"[" * 100_000 + b"]" * 100_000)
    assert "nested too deeply" in refusal(path)


def test_names_are_made_printable(tmp_path: Path) -> None:
    """A tensor's name with a line end or a terminal's escape does not reach the terminal as it is."""
    path = tmp_path / "m.pt"
    torch.save({"a\n\x1b[31m": torch.zeros(2, 2)}, path)
    assert "\\n\\x1b" in refusal(path)


def test_a_description_does_not_make_anything() -> None:
    """What a pickle declares is read from it without a call."""
    found = describe(io.BytesIO(pickle.dumps({"a": [1, (2,)]}, protocol=2)), strict=True)
    assert found.shown == 0
    assert found.texts == ["a"]


def test_honest_code_is_not_deep() -> None:
    """Long lists and many statements are not nesting, long chains of operators are."""
    assert code_depth("x = [" + "CONSTANTS.c0, " * 10_000 + "]\n" + "y = a.b.c + 1\n" * 10_000) < 20
    assert code_depth("x = a" + "+a" * 2000) > 1000


def test_classes_in_a_circle_are_found() -> None:
    """Classes of two files may use one another's neighbours, but not each other."""
    one, two = "class A(Module):\n  x : __torch__.b.B\nclass C(Module):\n  y : int\n", "class B(Module):\n  y : {}\n"
    assert not has_long_chain({"__torch__.a": one, "__torch__.b": two.format("__torch__.a.C")})
    assert has_long_chain({"__torch__.a": one, "__torch__.b": two.format("__torch__.a.A")})
