"""How good is the choice? Its regret on real logits, how often it is fooled, and what that costs.

The logits are those of the checkpoints under every candidate correction (``benchmarks/real_logits.py``). A design is a
checkpoint with one fold to choose on and another to score on. From the first, ``--sets`` samples of each size are
drawn without replacement; on each a rule chooses, and the regret is what its choice lacks of the best candidate's mean
class recall on the other fold, in points. Rules: the package's (class-balanced Brier score, eps with its test), the
same without a test, and the highest mean class recall.

Two worlds in which nothing helps. *Exchanged*: the logits of each image are dealt out to the candidates at random, so
that all are alike and differ by noise alone. *Best already*: labels are drawn from the calibrated probabilities, and
candidate 0 is what is best for them, logit adjustment with tau 1; every step away from it harms. Shown: how often a
correction is chosen all the same (the size of the test), and the points of mean class recall that this costs.

    python benchmarks/selection.py FOLDER [--sets 200] [--sizes 500,1000] [--seed 0]
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
from imbalance_perturb.selection.rule import SelectionRule, choose_among

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TESTED, UNTESTED = SelectionRule(), SelectionRule(significance=None)


class Logits(NamedTuple):
    """What one file holds: (N,) labels, (N, C) plain and (K, N, C) moved logits, the last layer if it has one."""

    labels: Ints
    base: torch.Tensor
    moved: torch.Tensor
    counts: ClassCounts
    norms: torch.Tensor | None
    bias: torch.Tensor | None

    @property
    def steps(self) -> list[torch.Tensor]:
        """Logits for eps 0 and every eps of the grid."""
        return [self.base, *self.moved]

    def adjusted(self, logits: torch.Tensor, tau: float) -> torch.Tensor:
        """Logits (N, C) after logit adjustment."""
        return adjust_logits(logits, self.counts, tau)

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


def read_logits(path: Path) -> Logits:
    """One file of ``benchmarks/real_logits.py``."""
    with np.load(path) as data:
        counts = ClassCounts(tuple(map(str, range(len(data["counts"])))), tuple(data["counts"].tolist()))
        layer = [torch.from_numpy(data[name]) for name in ("norms", "bias")] if "norms" in data else [None, None]
        return Logits(data["labels"], torch.from_numpy(data["base"]), torch.from_numpy(data["moved"]), counts, *layer)


def recalls(labels: Ints, preds: Ints) -> float:
    """Mean class recall in points."""
    return 100 * float(np.sum(class_weights(labels, int(labels.max()) + 1) * (preds == labels)))


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
    """Images to choose on and images to score on, of one checkpoint."""

    name: str
    tuned: Logits
    scored: Logits


def regrets(design: Design, size: int, sets: int, random: np.random.Generator) -> Iterator[tuple[str, str, Floats]]:
    """(method, rule, (sets, 2) regret and whether no correction was chosen)."""
    tuned, scored = design.tuned, design.scored
    of_tau = [(tuned.adjusted(tuned.base, tau), scored.adjusted(scored.base, tau)) for tau in TAU_GRID]
    methods = {"la": of_tau, "eps": list(zip(tuned.steps, scored.steps, strict=True))}
    if tuned.norms is not None and tuned.bias is not None:
        methods["tau-norm"] = [
            tuple(normalise_rows(each.base, tuned.norms, tuned.bias, tau) for each in (tuned, scored))  # type: ignore[misc]
            for tau in TAU_GRID
        ]
    samples = [_sample(tuned.labels, size, random) for _ in range(sets)]
    for method, pairs in methods.items():
        found = tuned.candidates([first for first, _ in pairs])
        truth = np.array([recalls(scored.labels, second.argmax(1).numpy()) for _, second in pairs])
        rules = RULES if method == "eps" else {k: v for k, v in RULES.items() if k != "the package's"}
        for name, rule in rules.items():
            chosen = np.array([rule(found.subset(sample), random) for sample in samples])
            yield method, name, np.stack([truth.max() - truth[chosen], chosen == 0], axis=1)
    both = [[(tuned.adjusted(a, tau), scored.adjusted(b, tau)) for a, b in methods["eps"]] for tau in TAU_GRID]
    prepared = [tuned.candidates([first for first, _ in row]) for row in both]
    table = np.array([[recalls(scored.labels, second.argmax(1).numpy()) for _, second in row] for row in both])
    taus = tuned.candidates([first for first, _ in of_tau])
    lacks = []
    for sample in samples:
        tau = choose_among(taus.subset(sample), UNTESTED, random).chosen
        eps = choose_among(prepared[tau].subset(sample), TESTED, random).chosen
        lacks.append((table.max() - table[tau, eps], eps == 0))
    yield "eps + la", "the package's", np.array(lacks, dtype=np.float64)


def _sample(labels: Ints, size: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """(N,) true for ``size`` images drawn at random, two of each class among them."""
    order = random.permutation(len(labels))
    first = np.concatenate([order[labels[order] == label][:2] for label in np.unique(labels)])
    rest = order[~np.isin(order, first)][: max(0, size - len(first))]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.concatenate([first, rest])] = True
    return chosen


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
    """Each checkpoint, chosen on one fold and scored on the other."""
    for path in sorted(folder.glob("*-fold0.npz")):
        name = path.name.removesuffix("-fold0.npz")
        first, second = read_logits(path), read_logits(folder / f"{name}-fold1.npz")
        yield Design(f"{name}, fold 1 -> 0", second, first)
        yield Design(f"{name}, fold 0 -> 1", first, second)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="what benchmarks/real_logits.py wrote")
    parser.add_argument("--sets", type=int, default=200, help="samples of each size")
    parser.add_argument("--sizes", default="500,1000", help="images of a sample")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = list(designs(options.folder))
    if not found:
        raise SystemExit(f"{options.folder}: no logits; run benchmarks/real_logits.py first")
    for size in map(int, options.sizes.split(",")):
        began = time.perf_counter()
        print(f"\n{size} images: regret in points of MCR, mean of {options.sets} sets (share without correction)\n")
        sums: dict[tuple[str, str], list[Floats]] = {}
        for design in found:
            random = np.random.default_rng((options.seed, size))
            for method, rule, values in regrets(design, size, options.sets, random):
                sums.setdefault((method, rule), []).append(values)
        print("| method | rule | " + " | ".join(d.name for d in found) + " | mean |")
        print("| --- | --- |" + " --- |" * (len(found) + 1))
        for (method, rule), values in sums.items():
            cells = [f"{v[:, 0].mean():.2f} ({v[:, 1].mean():.0%})" for v in values]
            print(
                f"| {method} | {rule} | " + " | ".join(cells) + f" | {np.mean([v[:, 0].mean() for v in values]):.2f} |"
            )
        print("\n| nothing helps | design | a correction chosen | points lost |\n| --- | --- | --- | --- |")
        for design in found:
            random = np.random.default_rng((options.seed, size, 1))
            for world, values in fooled(design, size, options.sets, random):
                print(
                    f"| {world} | {design.name} | {values[:, 0].mean():.1%} | {values[:, 1].mean():.3f} |", flush=True
                )
        print(f"\n{time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
