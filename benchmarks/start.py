"""A whole run as its user waits for it: process, imports, loading, calibration, images; beside plain scripts.

    python benchmarks/start.py [--networks resnet50,mobilenet_v2,resnet18] [--images 1,320] [--rounds 5] [--write]

For each network and number of images these commands run in turns, each a process of its own:

- ``imbperturb predict``: plain and corrected predictions; the same with ``--perturb-at auto``; and, of more than one
  image, as one process of one thread for each core, by ``--shard``, and then ``merge``;
- an eager script: the plain prediction as most people write it, torchvision's transforms, a DataLoader, batches of 16;
- a tuned script: the same with batch norm folded, channels-last, and bfloat16 where the CPU has it.

Wall clock and seconds of the processor, medians; ratios are of the medians of wall clock.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from corpus import COUNTS, write_checkpoint
from measuring import Log, alternate, command_line, describe_machine, progress, table, write_section
from subjects import write_photographs

from imbalance_perturb.inference.execution import fast_dtype

#: Images that differ; more are links to these.
DISTINCT = 320

OURS, HIDDEN, SHARDS = "imbperturb predict", "--perturb-at auto", "a process for each core"
EAGER, TUNED = "eager script", "tuned script"

SCRIPT = """
import sys
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms

network, state, folder, tuned, dtype = sys.argv[1:]
model = models.get_model(network, weights=None, num_classes=CLASSES)
model.load_state_dict(torch.load(state, map_location="cpu"))
model.eval()
transform = transforms.Compose([
    transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
])
paths = sorted(Path(folder).glob("*.jpg"))


class Images(Dataset):
    def __len__(self):
        return len(paths)

    def __getitem__(self, index):
        return transform(Image.open(paths[index]).convert("RGB"))


if tuned == "tuned":
    from torch.fx.experimental.optimization import fuse

    model = fuse(model).to(memory_format=torch.channels_last)
loader = DataLoader(Images(), batch_size=16, num_workers=CORES if len(paths) > 16 else 0)
with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
    labels = []
    for x in loader:
        x = x.contiguous(memory_format=torch.channels_last) if tuned == "tuned" else x
        labels += model(x).argmax(1).tolist()
for path, label in zip(paths, labels):
    print(path.name, label)
"""


def commands(network: str, folder: Path, images: Path) -> dict[str, list[str]]:
    """Those for more than one image, by what they are called."""
    state, script = str(folder / f"{network}.pth"), str(folder / "script.py")
    low = "fp32" if fast_dtype(torch.device("cpu")) is None else "bf16"
    ours = ["-m", "imbalance_perturb", "predict", state, str(folder / "counts.json"), str(images), "--arch", network]
    program = [sys.executable, *ours, "--quiet", "-o"]
    predict, cores = [*program, str(folder / "out.csv")], os.cpu_count() or 1
    parts = [str(folder / f"out{number}.csv") for number in range(1, cores + 1)]
    apart = [
        f"OMP_NUM_THREADS=1 {shlex.join([*program, part, '--shard', f'{number}/{cores}'])} & "
        for number, part in enumerate(parts, 1)
    ]
    merge = shlex.join([*program[:3], "merge", *parts, "-o", str(folder / "out.csv"), "--quiet"])
    return {
        OURS: predict,
        HIDDEN: [*predict, "--perturb-at", "auto"],
        SHARDS: ["sh", "-ec", f"{''.join(apart)}wait; {merge}"],
        EAGER: [sys.executable, script, network, state, str(images), "eager", "fp32"],
        TUNED: [sys.executable, script, network, state, str(images), "tuned", low],
    }


def run(command: list[str], folder: Path) -> float:
    """Run one to its end; returns the seconds of the processor that it and its children took."""
    for left in folder.glob("out*.*"):
        left.unlink()
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", default="resnet50,mobilenet_v2,resnet18")
    parser.add_argument("--images", default="1,320", help="numbers of images of a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    options = parser.parse_args()
    log, rows, names = Log(), [], list(commands("", Path(), Path()))
    log.say(f"`{command_line()}`", "", describe_machine(torch.device("cpu")), "")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        script = SCRIPT.replace("CLASSES", str(len(COUNTS))).replace("CORES", str(os.cpu_count()))
        (folder / "script.py").write_text(script)
        for network in options.networks.split(","):
            write_checkpoint(network, torch.randn(16, 3, 224, 224), folder)
        for n in map(int, options.images.split(",")):
            images = folder / f"images{n}"
            write_photographs(images, n, DISTINCT, (300, 400))
            for network in options.networks.split(","):
                progress(f"{network}, {n} images")
                ways = commands(network, folder, images)
                if n == 1:
                    del ways[SHARDS]
                contenders: dict[str, Callable[[], float]] = {
                    name: partial(run, command, folder) for name, command in ways.items()
                }
                began = time.perf_counter()
                for contender in list(contenders.values()) if n == 1 else []:
                    contender()  # files in the machine's memory
                measured = alternate(contenders, options.rounds, torch.device("cpu"))
                progress(f"{time.perf_counter() - began:.0f} s")
                took = dict.fromkeys(names, "-")
                for name, found in measured.items():
                    took[name] = f"{found.median:.1f} ({sorted(found.found)[options.rounds // 2]:.1f})"
                shares = [
                    f"{measured[mine].median / measured[theirs].median:.2f}"
                    for theirs in (EAGER, TUNED)
                    for mine in (OURS, HIDDEN)
                ]
                rows.append([f"{network}, {n}", *took.values(), *shares])
                print(rows[-1], flush=True)
    head = [
        "network, images",
        *(f"{name}, s (of the processor)" for name in names),
        "predict / eager",
        "hidden / eager",
        "predict / tuned",
        "hidden / tuned",
    ]
    log.say(*table(head, rows))
    if options.write:
        sizes = " and ".join(options.images.split(","))
        write_section(f"start {options.images}", f"Whole runs of {sizes} images", log.lines)


if __name__ == "__main__":
    main()
