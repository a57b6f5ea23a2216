"""The step at a hidden layer beside that at the input: MCR, SCR, accuracy, their paired differences, and seconds.

Both are tuned alike, on images that have no part in the score, as `tune-eps` chooses, without a limit and with at most
a point of accuracy to lose; beside them the full correction of either (``--eps auto``), which needs no labels. Images
are resampled by lesion in the intervals. Seconds are of the networks alone, all ways in turns on the same batches.

    python benchmarks/real_logits.py INPUT --shared SHARED
    python benchmarks/real_logits.py HIDDEN --shared SHARED --hidden
    python benchmarks/hidden.py INPUT HIDDEN --shared SHARED [--write]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from checkpoints import CHECKPOINTS
from measuring import Log, alternate, command_line, describe_machine, table, write_section
from real_logits import image_sets, load_checkpoint, load_digits_network, stage
from selection import TESTED, Logits, read_logits
from torch import Tensor
from worth import choose

from imbalance_perturb.evaluation.groups import Groups
from imbalance_perturb.evaluation.paired_evaluation import evaluate
from imbalance_perturb.evaluation.results import Difference
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.models.classifier import LoadedClassifier
from imbalance_perturb.selection.sweep import STRENGTH_GRID

#: What is chosen on beside what scores it.
PAIRS = (("fold1", "fold0"), ("fold0", "fold1"), ("fold1-square", "test"))

#: Accuracy that a choice may cost.
LIMITS = (None, 0.01)


def designs(given: Path, hidden: Path) -> Iterator[tuple[str, list[Logits], list[Logits]]]:
    """Each set to choose on beside that which scores it: logits of the step at the input, and of the other."""
    for name in CHECKPOINTS:
        for first, second in PAIRS:
            at_input, behind = (
                [read_logits(folder / f"{name}-{part}.npz") for part in (first, second)] for folder in (given, hidden)
            )
            yield f"{name}, {first} -> {second}", at_input, behind
    pools = [read_logits(folder / "digits-pool.npz") for folder in (given, hidden)]
    half = np.random.default_rng(0).random(len(pools[0].labels)) < 0.5
    at_input, behind = ([pool.part(half), pool.part(~half)] for pool in pools)
    yield "digits, half -> half", at_input, behind


def figures(scored: Logits, logits: Tensor) -> list[str]:
    """MCR, SCR and accuracy in percent."""
    preds = logits.argmax(1).numpy()
    found = evaluate(scored.labels, preds, preds, scored.counts).base
    return [f"{100 * value:.1f}" for value in (found.mcr, found.scr or 0.0, found.accuracy)]


def gap(scored: Logits, first: Tensor, second: Tensor) -> list[str]:
    """MCR and accuracy of the second minus the first, in points, with 95% intervals, by lesion."""
    groups = Groups.from_names("lesion", scored.groups)
    alike = groups if groups.number < len(scored.labels) else None
    before, after = first.argmax(1).numpy(), second.argmax(1).numpy()
    found = evaluate(scored.labels, before, after, scored.counts, groups=alike).differences
    return [_points(found[name]) for name in ("mcr", "accuracy")]


def _points(difference: Difference) -> str:
    interval = difference.interval
    ends = "" if interval is None else f" ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
    return f"{100 * difference.value:+.1f}{ends}"


def rows(given: list[Logits], hidden: list[Logits]) -> Iterator[list[str]]:
    """Plain, then each way to settle eps for both places."""
    (tuned, scored), (tuned_behind, scored_behind) = given, hidden
    yield ["none", *figures(scored, scored.base), "", ""]
    full = STRENGTH_GRID.index(1.0)
    ways = [("auto", scored.moved[full], scored_behind.moved[full])]
    for limit in LIMITS:
        rule = replace(TESTED, max_accuracy_drop=limit)
        first, second = choose(tuned, tuned.steps, rule), choose(tuned_behind, tuned_behind.steps, rule)
        names = "/".join(f"{STRENGTH_GRID[index - 1]:g}" if index else "0" for index in (first, second))
        title = f"tuned{'' if limit is None else f', accuracy -{limit:.0%} at most'} (strength {names})"
        ways.append((title, scored.steps[first], scored_behind.steps[second]))
    for title, at_input, behind in ways:
        yield [f"input, {title}", *figures(scored, at_input), "", ""]
        yield [f"hidden, {title}", *figures(scored, behind), *gap(scored, at_input, behind)]


def seconds(whole: LoadedClassifier, cut: LoadedClassifier, counts: ClassCounts, x: Tensor, rounds: int) -> list[str]:
    """Milliseconds an image of the plain prediction and both corrections, and the corrections' over the plain."""
    front, back = stage(cut)
    ways = {
        "plain": PerturbedClassifier(whole, counts, eps=0.0),
        "input": PerturbedClassifier(whole, counts, eps=1e-3),
        "hidden": PerturbedClassifier(back, counts, eps=0.1, front=front),
    }
    measured = alternate({name: partial(way.predict_both, x) for name, way in ways.items()}, rounds, x.device)
    medians = [measured[name].median for name in ways]
    return [*(f"{1000 * one / len(x):.2f}" for one in medians), *(f"{one / medians[0]:.2f}" for one in medians[1:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("given", type=Path, metavar="INPUT", help="what benchmarks/real_logits.py wrote")
    parser.add_argument("hidden", type=Path, metavar="HIDDEN", help="the same, with --hidden")
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/skin7 and models")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    options = parser.parse_args()
    log = Log()
    log.say(f"`{command_line()}`", "", describe_machine(torch.device("cpu")), "")
    head = ["step", "MCR", "SCR", "accuracy", "MCR, hidden minus input", "accuracy, hidden minus input"]
    for title, given, hidden in designs(options.given, options.hidden):
        log.say(f"**{title}** ({len(given[0].labels):,} -> {len(given[1].labels):,} images)", "")
        log.say(*table(head, [*rows(given, hidden)]), "")
    drawn = image_sets(options.shared)["fold1"]
    drawn = drawn._replace(paths=drawn.paths[:32])
    times = []
    for name, checkpoint in CHECKPOINTS.items():
        whole, cut = (load_checkpoint(checkpoint, drawn, options.shared, hidden=way)[0] for way in (False, True))
        times.append([name, *seconds(whole.model, cut.model, whole.counts, whole.drawn, options.rounds)])
    digits, read, _ = load_digits_network()
    behind, _, _ = load_digits_network(hidden=True)
    times.append(["digits", *seconds(digits.model, behind.model, digits.counts, read(slice(0, 32)), options.rounds)])
    head = ["network, batches of 32", "plain, ms", "input, ms", "hidden, ms", "input / plain", "hidden / plain"]
    log.say(*table(head, times))
    if options.write:
        write_section("hidden", "The step at a hidden layer", log.lines)


if __name__ == "__main__":
    main()
