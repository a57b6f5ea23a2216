"""What each correction is worth on the networks at hand: MCR, SCR, accuracy and passes, side by side.

Parameters are chosen on labelled images of one set, as `tune-eps` and `compare` choose them, and scored on another that
had no part in it: Skin7's folds 0 and 1 either way, the official test set (the folds cropped like its images), and the
digits, half and half. ``eps 0.001`` is the paper's; ``auto`` needs no labels.

    python benchmarks/worth.py FOLDER [--max-accuracy-drop 0.01]        # FOLDER: what benchmarks/real_logits.py wrote
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from selection import TESTED, UNTESTED, Design, Logits, read_logits
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from imbalance_perturb.method.logit_corrections import normalise_rows
from imbalance_perturb.selection.comparison.class_offsets import fit_offsets
from imbalance_perturb.selection.comparison.methods import TAU_GRID
from imbalance_perturb.selection.rule import SelectionRule, choose_among
from imbalance_perturb.selection.sweep import STRENGTH_GRID


class Row(NamedTuple):
    """A method with what was chosen, its (N, C) logits of the images that score, and its passes an image."""

    method: str
    logits: torch.Tensor
    passes: int


def choose(tuned: Logits, logits: list[torch.Tensor], rule: SelectionRule) -> int:
    """The package's choice among these logits of the images to choose on."""
    return choose_among(tuned.candidates(logits), rule, np.random.default_rng(0)).chosen


def rows(tuned: Logits, scored: Logits, drop: float | None) -> Iterator[Row]:
    """Every method of the table; ``drop`` is the accuracy that a choice may cost."""
    tested, untested = (replace(rule, max_accuracy_drop=drop) for rule in (TESTED, UNTESTED))
    yield Row("none", scored.base, 1)
    yield Row("eps 0.001", scored.paper, 3)
    yield Row("eps auto", scored.moved[STRENGTH_GRID.index(1.0)], 3)
    eps = choose(tuned, tuned.steps, tested)
    yield Row(f"eps tuned ({_strength(eps)})", scored.steps[eps], 3 if eps else 1)
    tau = TAU_GRID[choose(tuned, [tuned.adjusted(tuned.base, tau) for tau in TAU_GRID], untested)]
    yield Row(f"la (tau {tau:g})", scored.adjusted(scored.base, tau), 1)
    both = choose(tuned, [tuned.adjusted(each, tau) for each in tuned.steps], tested)
    title = f"perturb+la (tau {tau:g}, {_strength(both)})"
    yield Row(title, scored.adjusted(scored.steps[both], tau), 3 if both else 1)
    if tuned.norms is not None and tuned.bias is not None:
        layer = tuned.norms, tuned.bias
        strength = TAU_GRID[choose(tuned, [normalise_rows(tuned.base, *layer, tau) for tau in TAU_GRID], untested)]
        yield Row(f"tau-norm ({strength:g})", normalise_rows(scored.base, *layer, strength), 1)
    offsets = fit_offsets(tuned.base.numpy(), tuned.labels, len(tuned.counts))
    yield Row("offsets", scored.base + torch.tensor(offsets), 1)


def _strength(eps: int) -> str:
    return f"auto*{STRENGTH_GRID[eps - 1]:g}" if eps else "none"


def designs(folder: Path) -> Iterator[Design]:
    """Every set to choose on beside the sets that score it."""
    for path in sorted(folder.glob("*-fold0.npz")):
        name = path.name.removesuffix("-fold0.npz")
        for first, second in (
            ("fold1", "fold0"),
            ("fold0", "fold1"),
            ("fold1-square", "test"),
            ("fold0-square", "test"),
        ):
            pair = (read_logits(folder / f"{name}-{part}.npz") for part in (first, second))
            yield Design(f"{name}, {first} -> {second}", *pair)
    for path in sorted(folder.glob("*-pool.npz")):
        pool = read_logits(path)
        half = np.random.default_rng(0).random(len(pool.labels)) < 0.5
        yield Design(f"{path.name.removesuffix('-pool.npz')}, half -> half", pool.part(half), pool.part(~half))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="what benchmarks/real_logits.py wrote")
    parser.add_argument("--max-accuracy-drop", type=float, help="as of tune-eps and compare (default: no limit)")
    options = parser.parse_args()
    for design in designs(options.folder):
        scored = design.scored
        assert scored is not None
        print(f"\n**{design.name}** ({len(design.tuned.labels):,} -> {len(scored.labels):,} images)\n")
        print("| method | MCR | SCR | accuracy | changed | passes |\n| --- | --- | --- | --- | --- | --- |")
        plain = scored.base.argmax(1).numpy()
        for method, logits, passes in rows(design.tuned, scored, options.max_accuracy_drop):
            preds = logits.argmax(1).numpy()
            scr = recall_score(scored.labels, preds, labels=[scored.counts.smallest], average=None)[0]
            mcr, accuracy = balanced_accuracy_score(scored.labels, preds), accuracy_score(scored.labels, preds)
            changed = (preds != plain).mean()
            print(f"| {method} | {mcr:.4f} | {scr:.4f} | {accuracy:.4f} | {changed:.1%} | {passes} |", flush=True)


if __name__ == "__main__":
    main()
