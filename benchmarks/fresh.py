"""Plain eager and corrected predictions in processes that have done nothing else, as users run them.

    python benchmarks/fresh.py [--networks resnet50,mobilenet_v2,densenet169] [--batch-size 32] [--rounds 5]

What plain eager costs depends on the history of its process: glibc fetches blocks above 32 MB from the system anew for
each tensor until the process has freed many, so a forward pass in batches of 32 can take three times as long in a
fresh process as in one that has trained or run other libraries before (as `speed.py` has). Here each network has a
process of its own that builds it with random parameters and goes through one batch again and again, in alternation.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys

import torch
from measuring import Log, alternate, command_line, describe_machine, ratios, table
from ours import plain
from torchvision.models import get_model

from imbalance_perturb.batching import usual_batch_size
from imbalance_perturb.classifier import PerturbedClassifier
from imbalance_perturb.counts import ClassCounts
from imbalance_perturb.optimisation import lower, optimise
from imbalance_perturb.predictor import Predictor

COUNTS = ClassCounts(tuple("abcdefg"), (4023, 668, 659, 308, 195, 86, 69))
PLAIN = "plain eager fp32"


def measure(name: str, batch_size: int, rounds: int) -> None:
    """Print the table of one network."""
    torch.manual_seed(0)
    network = get_model(name, num_classes=len(COUNTS)).eval()
    x = torch.randn(batch_size, 3, 224, 224)
    optimised, _ = optimise(copy.deepcopy(network).requires_grad_(False), x[:2])
    lowered, _ = lower(optimised, x[:2], torch.bfloat16)
    parts = usual_batch_size("cpu")
    reference, low = (PerturbedClassifier(model, COUNTS) for model in (optimised, lowered))
    modes = {
        "ours, fp32": Predictor(reference, precision="fp32", batch_size=parts),
        "ours, bf16 (auto before close calls)": Predictor(reference, low, precision="bf16", batch_size=parts),
    }
    for _ in range(-(-256 // batch_size)):  # past the start of a run, where samples are frequent
        modes["ours, bf16 (auto before close calls)"].predict(x)
    eager = plain(network)
    contenders = {PLAIN: lambda: eager(x), "plain optimised fp32": lambda: reference.predict_plain(x)}
    contenders["plain optimised bf16"] = lambda: low.predict_plain(x)
    contenders |= {mode: lambda p=predictor: p.predict(x).logits for mode, predictor in modes.items()}  # type: ignore[misc]
    measured = alternate(contenders, rounds, torch.device("cpu"))
    rows = []
    for contender, own in measured.items():
        ratio, lowest, highest = ratios(own, measured[PLAIN])
        rows.append([contender, f"{1e3 * own.median / batch_size:.1f}", f"{ratio:.2f}", f"{lowest:.2f}-{highest:.2f}"])
    log = Log()
    log.say(f"**{name}**, batches of {batch_size}, ours in parts of {parts}, median of {rounds}:", "")
    log.say(*table(("contender", "ms an image", "ratio", "min-max"), rows), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", default="resnet50,mobilenet_v2,densenet169", help="torchvision names")
    parser.add_argument("--batch-size", type=int, default=32, help="of plain eager (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each contender (default: 5)")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    options = parser.parse_args()
    if options.here:
        measure(options.networks, options.batch_size, options.rounds)
        return
    print(f"`{command_line()}` on {describe_machine(torch.device('cpu'))}.\n", flush=True)
    for name in options.networks.split(","):
        own = ["--networks", name, "--batch-size", str(options.batch_size), "--rounds", str(options.rounds), "--here"]
        subprocess.run([sys.executable, __file__, *own], check=True)


if __name__ == "__main__":
    main()
