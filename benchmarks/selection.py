"""How good is the choice? Its regret on real logits, how often it is fooled, and what that costs.

The logits are those of real networks under every candidate correction (``benchmarks/real_logits.py``). From the images
to choose on ``--sets`` samples of each size are drawn without replacement; on each a rule chooses, and its choice is
scored on images that had no part in it. *Pooled*: all images that the network was not trained on; what a sample leaves
is scored, but for lesions that it holds. *Across folds*: chosen on one fold, scored on the whole other one, whose
best candidate may be another for reasons that no image of the first can tell. Regret is what the choices lack, on
average, of the candidate that is the best for the design, in points of mean class recall. Rules: the package's
(class-balanced Brier score, eps with its test), the same without a test, and the highest mean class recall.

Two worlds in which nothing helps. *Exchanged*: the logits of each image are dealt out to the candidates at random, so
that all are alike and differ by noise alone. *Best already*: labels are drawn from the calibrated probabilities, and
candidate 0 is what is best for them, logit adjustment with tau 1; every step away from it harms. Shown: how often a
correction is chosen all the same (the size of the test), and the points of mean class recall that this costs.

``--part intervals`` asks of pooled designs how often the interval that `tune-eps` states holds the gain of its way of
choosing, and that of the eps it chose.

    python benchmarks/selection.py FOLDER [--part choices|intervals] [--sets 200] [--sizes 500,1000] [--seed 0]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.method.logit_corrections import adjust_logits, normalise_rows
from imbalance_perturb.selection.brier import class_weights, fitted_brier_scores
from imbalance_perturb.selection.candidates import Candidates, make_candidates
from imbalance_perturb.selection.comparison.methods import TAU_GRID
from imbalance_perturb.selection.cross_validation import select_by_cross_validation
from imbalance_perturb.selection.rule import SelectionRule, choose_among
from imbalance_perturb.selection.tuning.held_out import held_out_intervals

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TESTED, UNTESTED = SelectionRule(), SelectionRule(significance=None)


class Logits(NamedTuple):
    """(N,) labels and groups; (N, C) plain logits, (K, N, C) moved, (N, C) at the paper's eps; the last layer."""

    labels: Ints
    base: torch.Tensor
    moved: torch.Tensor
    counts: ClassCounts
    norms: torch.Tensor | None
    bias: torch.Tensor | None
    groups: NDArray[np.str_]
    paper: torch.Tensor

    @property
    def steps(self) -> list[torch.Tensor]:
        """Logits for eps 0 and every eps of the grid."""
        return [self.base, *self.moved]

    def adjusted(self, logits: torch.Tensor, tau: float) -> torch.Tensor:
        """Logits (N, C) after logit adjustment."""
        return adjust_logits(logits, self.counts, tau)

    def part(self, kept: NDArray[np.bool_]) -> Logits:
        """Some of the images."""
        rows = torch.from_numpy(kept)
        return self._replace(
            labels=self.labels[kept], groups=self.groups[kept], base=self.base[rows], moved=self.moved[:, rows],
            paper=self.paper[rows],
        )  # fmt: skip

    def candidates(self, logits: Sequence[torch.Tensor], labels: Ints | None = None) -> Candidates:
        """All images under these candidates."""
        return make_candidates(
            self.labels if labels is None else labels,
            np.stack([each.argmax(1).numpy() for each in logits], axis=1),
            range(len(logits)),
            num_classes=len(self.counts),
            smallest_class=self.counts.smallest,
            logits=[each.numpy() for each in logits],
        )


def read_logits(*paths: Path) -> Logits:
    """Files of ``benchmarks/real_logits.py``, of one network, one behind the other."""
    files = [dict(np.load(path)) for path in paths]
    first = files[0]
    counts = ClassCounts(tuple(map(str, range(len(first["counts"])))), tuple(first["counts"].tolist()))
    layer = [torch.from_numpy(first[name]) for name in ("norms", "bias")] if "norms" in first else [None, None]
    labels, groups = (np.concatenate([file[name] for file in files]) for name in ("labels", "groups"))
    base, moved, paper = (
        torch.from_numpy(np.concatenate([file[name] for file in files], axis=-2)) for name in ("base", "moved", "paper")
    )
    return Logits(labels, base, moved, counts, *layer, groups, paper)


def by_recall(candidates: Candidates) -> int:
    """The candidate with the highest mean class recall, the mildest of equals."""
    return int(np.argmax(class_weights(candidates.labels, candidates.num_classes) @ candidates.correct))


#: Chooses one of the candidates.
Rule = Callable[[Candidates, np.random.Generator], int]

RULES: dict[str, Rule] = {
    "the package's": lambda found, random: choose_among(found, TESTED, random).chosen,
    "Brier, no test": lambda found, random: choose_among(found, UNTESTED, random).chosen,
    "highest MCR": lambda found, random: by_recall(found),
}


@dataclass(frozen=True)
class Design:
    """Images to choose on and images to score on, of one network; without ``scored`` those that a sample leaves."""

    name: str
    tuned: Logits
    scored: Logits | None = None

    def pair(self, correct: Callable[[Logits, int], torch.Tensor], count: int) -> tuple[Candidates, Hits]:
        """``count`` corrections of the images to choose on, and their hits on those that score."""
        found = [correct(self.tuned, index) for index in range(count)]
        other = found if self.scored is None else [correct(self.scored, index) for index in range(count)]
        labels = (self.scored or self.tuned).labels
        hits = np.stack([each.argmax(1).numpy() for each in other], axis=1) == labels[:, None]
        return self.tuned.candidates(found), hits

    def weigh(self, sample: NDArray[np.bool_]) -> Floats:
        """(N,) weights of the images that score a choice made on the sample: their hits sum to points of MCR."""
        scored = self.scored or self.tuned
        kept = np.ones(len(scored.labels), dtype=bool)
        if self.scored is None:
            kept = ~np.isin(scored.groups, scored.groups[sample])
        weights = np.zeros(len(kept))
        weights[kept] = 100 * class_weights(scored.labels[kept], len(scored.counts))
        return weights


#: (N, K) whether each candidate is right on each image.
Hits = NDArray[np.bool_]


def regrets(design: Design, size: int, sets: int, random: np.random.Generator) -> Iterator[tuple[str, str, Floats]]:
    """(method, rule, (sets, 2) regret and whether no correction was chosen)."""
    tuned = design.tuned
    samples = [_sample(tuned.labels, size, random) for _ in range(sets)]
    weights = np.stack([design.weigh(sample) for sample in samples])
    of_tau = design.pair(lambda logits, index: logits.adjusted(logits.base, TAU_GRID[index]), len(TAU_GRID))
    of_eps = design.pair(lambda logits, index: logits.steps[index], len(tuned.steps))
    methods = {"la": of_tau, "eps": of_eps}
    if tuned.norms is not None and tuned.bias is not None:
        methods["tau-norm"] = design.pair(_normalised, len(TAU_GRID))
    for method, (found, hits) in methods.items():
        truth = weights @ hits
        rules = RULES if method == "eps" else {k: v for k, v in RULES.items() if k != "the package's"}
        for name, rule in rules.items():
            chosen = np.array([rule(found.subset(sample), random) for sample in samples])
            lacks = truth.mean(axis=0).max() - truth[np.arange(sets), chosen]
            yield method, name, np.stack([lacks, chosen == 0], axis=1)
    both = [
        design.pair(lambda logits, index, tau=tau: logits.adjusted(logits.steps[index], tau), len(tuned.steps))  # type: ignore[misc]
        for tau in TAU_GRID
    ]
    truth = np.stack([weights @ hits for _, hits in both], axis=1)  # (sets, taus, K)
    for name, then in (("the package's", TESTED), ("Brier, no test", UNTESTED)):
        taken = []
        for index, sample in enumerate(samples):
            tau = choose_among(of_tau[0].subset(sample), UNTESTED, random).chosen
            eps = choose_among(both[tau][0].subset(sample), then, random).chosen
            taken.append((truth[index, tau, eps], eps == 0))
        lacks, none = np.array(taken, dtype=np.float64).T
        yield "eps + la", name, np.stack([truth.mean(axis=0).max() - lacks, none], axis=1)


def _normalised(logits: Logits, index: int) -> torch.Tensor:
    assert logits.norms is not None
    assert logits.bias is not None
    return normalise_rows(logits.base, logits.norms, logits.bias, TAU_GRID[index])


def _sample(labels: Ints, size: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """(N,) true for ``size`` images drawn at random, two of each class among them."""
    order = random.permutation(len(labels))
    first = np.concatenate([order[labels[order] == label][:2] for label in np.unique(labels)])
    rest = order[~np.isin(order, first)][: max(0, size - len(first))]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.concatenate([first, rest])] = True
    return chosen


def covered(design: Design, size: int, sets: int, random: np.random.Generator) -> Floats:
    """(sets, 3): is the procedure's gain in the interval that `tune-eps` states, that of its eps, the interval's width.

    Both gains are means over all images that score, so of a sample's own luck nothing is left in them. The second is
    not there (NaN) where no eps is chosen.
    """
    tuned = design.tuned
    found, hits = design.pair(lambda logits, index: logits.steps[index], len(tuned.steps))
    preds = np.stack([each.argmax(1).numpy() for each in tuned.steps], axis=1)
    intervals, chosen, gains = [], [], []
    for _ in range(sets):
        sample = _sample(tuned.labels, size, random)
        part = tuned.part(sample)
        logits = [each.numpy() for each in part.steps]
        selection = select_by_cross_validation(
            part.labels, preds[sample], found.strengths, num_classes=len(tuned.counts),
            smallest_class=tuned.counts.smallest, logits=logits,
        )  # fmt: skip
        held_out = preds[sample][np.arange(len(part.labels)), selection.held_out.held_out_candidates]
        plain, right = preds[sample][:, 0] == part.labels, held_out == part.labels
        lost, gained = (moved.mean(axis=0) for moved in (plain & ~right, right & ~plain))
        interval = held_out_intervals(part.labels, lost, gained, tuned.counts, 0.95, seed=0, groups=None)["mcr"]
        assert interval is not None
        intervals.append(interval)
        chosen.append(selection.chosen)
        points = design.weigh(sample) @ hits / 100
        gains.append(points - points[0])
    truth = np.stack(gains)
    procedure = truth[np.arange(sets), chosen].mean()
    return np.array(
        [
            (i.low <= procedure <= i.high, i.low <= truth[:, k].mean() <= i.high if k else np.nan, i.high - i.low)
            for i, k in zip(intervals, chosen, strict=True)
        ],
        dtype=np.float64,
    )


def fooled(design: Design, size: int, sets: int, random: np.random.Generator) -> Iterator[tuple[str, Floats]]:
    """(world, (sets, 2): whether a correction was chosen, and the points of MCR lost by it)."""
    tuned = design.tuned
    columns = torch.stack(tuned.steps)
    found = []
    for _ in range(sets):
        deal = torch.from_numpy(random.permuted(np.tile(np.arange(len(columns)), (columns.shape[1], 1)), axis=1).T)
        dealt = [columns.gather(0, row[None, :, None].expand(1, -1, columns.shape[2]))[0] for row in deal]
        part = _sample(tuned.labels, size, random)
        candidates = tuned.candidates(dealt).subset(part)
        found.append((choose_among(candidates, TESTED, random).chosen != 0, 0.0))
    yield "exchanged", np.array(found, dtype=np.float64)
    temperature = _temperature(tuned)
    posterior = torch.softmax(tuned.base.double() / temperature, dim=1).numpy()
    share = posterior.mean(axis=0)
    best = tuned.base.double() / temperature - torch.from_numpy(np.log(share))
    moved = [each.double() / temperature - torch.from_numpy(np.log(share)) for each in tuned.moved]
    preds = [each.argmax(1).numpy() for each in (best, *moved)]
    # The true recalls: each image is of each class with its probability.
    truth = np.array(
        [100 * np.mean([posterior[p == c, c].sum() / posterior[:, c].sum() for c in range(len(share))]) for p in preds]
    )
    lost = []
    for _ in range(sets):
        labels = (posterior.cumsum(axis=1) > random.random((len(posterior), 1))).argmax(axis=1)
        if len(np.unique(labels)) < len(share):
            continue
        part = _sample(labels, size, random)
        candidates = Candidates(
            labels[part],
            np.stack(preds, axis=1)[part] == labels[part, None],
            np.arange(float(len(preds))),
            len(share),
            tuned.counts.smallest,
            np.stack(
                [fitted_brier_scores(each.numpy()[part], labels[part], len(share)) for each in (best, *moved)], axis=1
            ),
        )
        chosen = choose_among(candidates, TESTED, random).chosen
        lost.append((chosen != 0, truth[0] - truth[chosen]))
    yield "best already", np.array(lost, dtype=np.float64)


def _temperature(logits: Logits) -> float:
    """The temperature with the least log-loss, all images alike."""
    z, y = logits.base.double(), torch.from_numpy(logits.labels)
    grid = np.geomspace(0.3, 10, 60)
    return float(min(grid, key=lambda t: float(torch.nn.functional.cross_entropy(z / t, y))))


def designs(folder: Path) -> Iterator[Design]:
    """Each network on all its images; each Skin7 checkpoint also chosen on one fold and scored on the other."""
    for path in sorted(folder.glob("*-pool.npz")):
        yield Design(f"{path.name.removesuffix('-pool.npz')}, pooled", read_logits(path))
    for path in sorted(folder.glob("*-fold0.npz")):
        name = path.name.removesuffix("-fold0.npz")
        other = folder / f"{name}-fold1.npz"
        first, second = read_logits(path), read_logits(other)
        yield Design(f"{name}, pooled", read_logits(path, other))
        yield Design(f"{name}, fold 1 -> 0", second, first)
        yield Design(f"{name}, fold 0 -> 1", first, second)


def _show(table: dict[str, dict[tuple[str, str], Floats]]) -> None:
    """Print designs and their means by kind as rows, methods and rules as columns."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    print("| design | " + " | ".join(", ".join(column) for column in columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for name, row in table.items():
        cells = [f"{row[c][0]:.2f} ({row[c][1]:.0%})" if c in row else "-" for c in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for kind in ("pooled", "fold"):
        rows = [row for name, row in table.items() if kind in name.rpartition(", ")[2]]
        cells = [f"{np.mean([row[c][0] for row in rows if c in row] or np.nan):.2f}" for c in columns]
        print(f"| mean, {'pooled' if kind == 'pooled' else 'across folds'} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="what benchmarks/real_logits.py wrote")
    parser.add_argument("--part", choices=("choices", "intervals"), default="choices", help="what is measured")
    parser.add_argument("--sets", type=int, default=200, help="samples of each size")
    parser.add_argument("--sizes", default="500,1000", help="images of a sample")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = list(designs(options.folder))
    if not found:
        raise SystemExit(f"{options.folder}: no logits; run benchmarks/real_logits.py first")
    for size in map(int, options.sizes.split(",")):
        began = time.perf_counter()
        if options.part == "intervals":
            _show_intervals(found, size, options.sets, options.seed)
        else:
            _show_choices(found, size, options.sets, options.seed)
        print(f"\n{time.perf_counter() - began:.0f} s", flush=True)


def _show_choices(found: list[Design], size: int, sets: int, seed: int) -> None:
    print(f"\n{size} images: regret in points of MCR, mean of {sets} sets (share without correction)\n")
    table = {}
    for design in found:
        random = np.random.default_rng((seed, size))
        table[design.name] = {(m, r): v.mean(axis=0) for m, r, v in regrets(design, size, sets, random)}
    _show(table)
    print("\n| nothing helps | design | a correction chosen | points lost |\n| --- | --- | --- | --- |")
    for design in found:
        if "->" in design.name:
            continue  # the images that choose are a part of a pooled design's
        random = np.random.default_rng((seed, size, 1))
        for world, values in fooled(design, size, sets, random):
            print(f"| {world} | {design.name} | {values[:, 0].mean():.1%} | {values[:, 1].mean():.3f} |", flush=True)


def _show_intervals(found: list[Design], size: int, sets: int, seed: int) -> None:
    print(f"\n{size} images: 95% intervals of the gain in MCR on images that had no part in the choice, {sets} sets\n")
    print("| design | hold the procedure's gain | hold the gain of the eps chosen | width |\n| --- | --- | --- | --- |")
    for design in found:
        if design.scored is None:
            values = np.nanmean(covered(design, size, sets, np.random.default_rng((seed, size, 2))), axis=0)
            print(f"| {design.name} | {values[0]:.1%} | {values[1]:.1%} | {values[2]:.4f} |", flush=True)


if __name__ == "__main__":
    main()
