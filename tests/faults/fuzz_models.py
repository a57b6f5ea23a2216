"""Model files damaged at random: loading ends in a classifier or in an error of one line, and runs no code of theirs.

``python -m tests.faults.fuzz_models --models 10000`` runs longer than the tests do, in a process of its own, which a
crash or a hang does not outlive. Findings are kept as files.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import random
import resource
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from imbalance_perturb.errors import ImbperturbError
from imbalance_perturb.models import LoadedClassifier, load_classifier
from tests.faults.fuzzing import Edit, Target, damage, run

#: Of address space in the worker, beyond which memory is refused: torch alone maps some 4 GB.
MEMORY = 12 * 2**30
SHAPE = (3, 16, 16)
CHOICES = 8
FINE = ("classifier", "error")

_MARK = "code-of-the-file-ran"
#: What no model file has any business doing; ``exec`` is left out, since torch runs source that it makes of a graph.
_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.mkdir", "os.rename", "os.remove")
_EVENTS += ("subprocess.", "socket.", "shutil.", "ctypes.dlopen", "pty.spawn", "urllib.", "webbrowser.")
_watching = False
_seen: list[str] = []


class _RunsCode:
    def __reduce__(self) -> Any:
        return os.mkdir, (_MARK,)


def factory(num_classes: int = 3) -> nn.Module:
    """A network of a few hundred parameters."""
    layers = (nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4, num_classes)).eval()


def samples() -> dict[str, bytes]:
    """A file of every format, and files that would run code."""
    torch.manual_seed(0)
    network = factory()
    state = dict(network.state_dict())
    warnings.filterwarnings("ignore", message=".*torch.jit.*")  # deprecated, but people's files are in it
    script, traced, exported = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.script(network), script)
    torch.jit.save(torch.jit.trace(network, torch.ones(2, *SHAPE)), traced)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=16)},)
    torch.export.save(torch.export.export(network, (torch.ones(2, *SHAPE),), dynamic_shapes=dynamic), exported)
    return {
        "zip": _saved({"state_dict": state, "epoch": 3}),
        "legacy": _saved(state, _use_new_zipfile_serialization=False),
        "safetensors": save(state),
        "script": script.getvalue(),
        "traced": traced.getvalue(),
        "export": exported.getvalue(),
        "evil-zip": _saved({"state_dict": state, "extra": _RunsCode()}),
        "evil-legacy": _saved({"state_dict": state, "extra": _RunsCode()}, _use_new_zipfile_serialization=False),
        "evil-export": _with_parts(exported.getvalue(), _make_evil),
    }


def damaged(data: bytes, edits: Sequence[Edit], number: int) -> bytes:
    """The file with its bytes edited, or the parts inside it, with whatever vouches for them made right again."""
    if number < 2 or not edits:
        return damage(data, edits)
    source = random.Random(f"{number} {edits}")
    if data.startswith(b"PK"):
        names = _worth_editing(data)
        chosen = set(source.choices(names, k=source.choice((1, 1, 2))))
        return _with_parts(data, lambda name, part: _edited(name, part, edits, source) if name in chosen else part)
    if data[8:9] == b"{":
        length = int.from_bytes(data[:8], "little")
        header = _mutated_json(data[8 : 8 + length], source)
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    return _mutated_pickle(data, source)


def check(path: Path, number: int = 0) -> str:
    """Load a file: ``classifier`` or ``error``; anything else raises."""
    global _watching
    given = f"{__spec__.name if __spec__ else __name__}:factory" if number % 2 else None
    _seen.clear()
    _watching = True
    try:
        loaded = load_classifier(path, factory=given, input_shape=SHAPE)
    except ImbperturbError as error:
        message = str(error)
        assert message.isprintable(), f"more than one line: {message!r}"
        assert str(path) in message or len(message) >= 2000, f"the file is not named: {message!r}"
        assert len(message) <= 2000, f"a long message: {message!r}"
        outcome = "error"
    else:
        assert isinstance(loaded, LoadedClassifier)
        assert all(note.isprintable() for note in loaded.info.notes)
        outcome = "classifier"
    finally:
        _watching = False
    assert not _seen, f"it did what no model file may: {_seen}"
    assert not Path(_MARK).exists(), "code of the file ran"
    return outcome


def watch() -> None:
    """From now on note what a file under ``check`` does to the machine."""
    sys.addaudithook(_note)


def start() -> None:
    """Watch, and limit memory to what a file may take."""
    import torchvision  # noqa: F401 - its libraries are not the file's doing

    watch()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event.startswith(_EVENTS) or writes:
        _seen.append(f"{event} {arguments!r}"[:150])


def _saved(content: Any, **arguments: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **arguments)
    return buffer.getvalue()


def _with_parts(data: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for part in old.infolist():
            new.writestr(part.filename, change(part.filename, old.read(part)), part.compress_type)
    return buffer.getvalue()


def _make_evil(name: str, content: bytes) -> bytes:
    if name.endswith("sample_inputs/model.pt"):
        return _saved(_RunsCode())
    if name.endswith("models/model.json"):
        return content.replace(b'"expr_str": "', f"\"expr_str\": \"__import__('os').mkdir('{_MARK}') or ".encode())
    return content


def _worth_editing(data: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    structured = [name for name in names if name.endswith((".pkl", ".json", ".py", ".pt", "version", "byteorder"))]
    return structured * 4 + names


def _edited(name: str, content: bytes, edits: Sequence[Edit], source: random.Random) -> bytes:
    if source.random() < 0.3:
        return damage(content, edits)
    if name.endswith("pkl"):
        return _mutated_pickle(content, source)
    if name.endswith(".json"):
        return _mutated_json(content, source)
    if name.endswith(".pt") and content.startswith(b"PK"):
        return damaged(content, edits, 2)
    if name.endswith(".py"):
        words = content.split(b" ")
        for _ in range(source.choice((1, 2, 4))):
            words[source.randrange(len(words))] = source.choice((source.choice(words), *_ODD_WORDS))
        return b" ".join(words)
    return damage(content, edits)


_ODD_WORDS = (
    b"None",
    b"-1",
    b"4294967296",
    b"[[[]]]",
    b"self",
    b"torch.save",
    b"1e999",
    b"not",
    b"\n",
    b"CONSTANTS.c9",
)
_ODD_VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**70,
    1e308,
    "",
    "x",
    "0.weight",
    "\u202e\x1b\n",
    [],
    {},
    [[1]],
    "s0",
)


def _mutated_json(content: bytes, source: random.Random) -> bytes:
    try:
        root = [json.loads(content)]
    except ValueError:
        return content
    for _ in range(source.choice((1, 1, 2, 4))):
        places = list(_places(root))
        holder, key = source.choice(places)
        action = source.randrange(5)
        if action == 0 and holder is not root:
            del holder[key]
        elif action == 1:
            other, name = source.choice(places)
            holder[key] = json.loads(json.dumps(other[name]))
        elif action == 2 and isinstance(holder, dict):
            holder[str(source.choice(_ODD_VALUES))] = holder.pop(key)
        elif action == 3:
            for _ in range(source.choice((1, 100, 2000))):
                holder[key] = [holder[key]]
            return _dumped(root[0], content)
        else:
            holder[key] = source.choice(_ODD_VALUES)
    return _dumped(root[0], content)


def _dumped(value: Any, otherwise: bytes) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 5000 + otherwise + b"]" * 5000


def _places(value: Any) -> Any:
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        for key, inside in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            yield holder, key
            if isinstance(inside, dict | list):
                waiting.append(inside)


def _mutated_pickle(content: bytes, source: random.Random) -> bytes:
    """The pickle (or pickles, with what follows them) with operations dropped, doubled, exchanged or given numbers."""
    pieces, file = [], io.BytesIO(content)
    try:
        while file.tell() < len(content) and len(pieces) < 100_000:
            places = [place for _, _, place in pickletools.genops(file)]
            pieces += [content[a:b] for a, b in zip(places, [*places[1:], file.tell()], strict=True)]
    except Exception:  # noqa: BLE001 - tensors follow the pickles of the older layout
        file.seek(sum(map(len, pieces)))
    rest = content[sum(map(len, pieces)) :]
    if not pieces:
        return content
    for _ in range(source.choice((1, 1, 2, 4))):
        place = source.randrange(len(pieces))
        action = source.randrange(6)
        if action == 0:
            pieces[place] = b""
        elif action == 1:
            pieces[place] *= source.choice((2, 3, 1000))
        elif action == 2:
            pieces[place] = source.choice(pieces)
        elif action == 3:
            pieces[place] = source.choice(_ODD_OPERATIONS)
        elif action == 4:
            numbers = [i for i, piece in enumerate(pieces) if piece[:1] in (b"K", b"M", b"J")]
            pieces[source.choice(numbers or [place])] = source.choice(_NUMBERS)
        else:
            pieces.insert(place, source.choice(pieces))
    return b"".join(pieces) + rest


_NUMBERS = (b"K\0", b"K\1", b"K\x7f", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff")
_ODD_OPERATIONS = (
    b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"\x85" * 5000, b"(" * 5000, b"]" * 3000 + b"a" * 2999, b"N", b"(",
    b"0", b"2", b"t", b"R", b"b", b"Q", b"}", b")", b"cposix\nmkdir\n", b"c__builtin__\nbytearray\n", b"h\0",
    b"X\4\0\0\0data", b"G\x7f\xf0\0\0\0\0\0\0", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"c__builtin__\nbytearray\n\x8a\x06\xff\xff\xff\xff\xff\x7f\x85R", pickle.dumps(_RunsCode())[:-1],
)  # fmt: skip


if __name__ == "__main__":
    # By its full name: the child process would not find what it needs in __main__.
    from tests.faults import fuzz_models as here

    sys.exit(run(Target("model", here.samples, here.damaged, here.check, CHOICES, FINE, here.start)))
