"""Describe a tuning in words: what was chosen and why, how sure that is, and what a reader must know beside it."""

from __future__ import annotations

from collections.abc import Iterator

from imbalance_perturb.errors import first_few
from imbalance_perturb.evaluation.formatting import p_text, share_text
from imbalance_perturb.selection.rule import COST, SelectionRule
from imbalance_perturb.selection.tuning.results import FIGURES, TriedCorrection, Tuning

#: A class with fewer validation images can hardly decide: half the 95% interval of its recall is then up to 0.2
#: (Wilson, recall 1/2), more than any correction may be expected to move it.
LEAST_IMAGES = 20

#: With fewer images a stated gain was too large by half, on average (500 images of Skin7: +9.0 points, truly +6.3).
FEW_IMAGES = 1000

#: So many images of one class must be gained, and none lost, for a one-sided sign test to reach 5% (1/2 ** 5).
LEAST_GAINED = 5

_OBJECTIVES = {"mcr": "MCR", "scr": "SCR", "worst": "worst class recall", "gmean": "gmean", "cost": "expected cost"}
_FIGURE_OF = {"worst": "worst_class_recall"}


def objective_text(tuning: Tuning) -> str:
    """The objective as tables name it."""
    return _OBJECTIVES[tuning.rule.objective]


def figure_of(objective: str) -> str:
    """The entry of a tuning's figures that an objective is about."""
    return _FIGURE_OF.get(objective, objective)


def correction_text(tuning: Tuning, correction: TriedCorrection) -> str:
    """A correction as ``eps 0.005``, with loss and temperature where several were tried."""
    text = f"eps {correction.eps:g}"
    if correction.eps == 0 or len(tuning.loss_specs) == 1:
        return text
    losses, temperatures = (len(set(entries)) for entries in zip(*tuning.loss_specs, strict=True))
    text += f", T {correction.temperature:g}" if temperatures > 1 else ""
    return text + (f", {correction.loss}" if losses > 1 else "")


def summarise(tuning: Tuning) -> Iterator[str]:
    """The choice and its reason; how sure it is; its figures on images that had no part in it."""
    name, choice, rule = objective_text(tuning), tuning.choice, tuning.rule
    if choice.eps > 0:
        best = f"the best {_brier_text(rule)}" if rule.by_brier else f"the highest {name}"
        test = "" if rule.significance is None else f", more than chance gives (adjusted p {p_text(choice.p_value)})"
        yield f"Chosen: {correction_text(tuning, choice)}, which has {best}{test}."
    else:
        yield f"Chosen: eps 0, no correction: {_why_none(tuning)}."
    yield _how_sure(tuning)
    held_out = tuning.held_out[figure_of(rule.objective)]
    if held_out.difference is not None and choice.eps > 0:
        yield (
            f"On images that had no part in it, this way of choosing takes {name} from {share_text(held_out.base)} to"
            f" {share_text(held_out.tuned)}, accuracy from {share_text(tuning.held_out['accuracy'].base)} to"
            f" {share_text(tuning.held_out['accuracy'].tuned)}."
        )


def list_chosen(tuning: Tuning) -> list[tuple[int, TriedCorrection]]:
    """(splits, correction), most often chosen first, of those chosen at all."""
    found = [(count, correction) for count, correction in zip(tuning.splits, tuning.tried, strict=True) if count]
    return sorted(found, key=lambda item: -item[0])


def _how_sure(tuning: Tuning) -> str:
    total, same = tuning.total_splits, tuning.splits[tuning.chosen]
    others = [
        f"{correction_text(tuning, correction)} in {count}"
        for count, correction in list_chosen(tuning)
        if correction is not tuning.choice
    ]
    rest = f" (else {first_few(others, 4)})" if others else ""
    some = sum(count for count, correction in list_chosen(tuning) if correction.eps > 0)
    start = f"How sure: chosen in {same} of {total} splits{rest}"
    if tuning.choice.eps == 0:
        return f"{start}."
    return f"{start}; some eps above 0 in {some} of {total}."


def _why_none(tuning: Tuning) -> str:
    name, rule = objective_text(tuning), tuning.rule
    tried = [correction for correction in tuning.tried if correction.eps > 0]
    if not any(correction.changed for correction in tried):
        return "no eps changed a single prediction"
    by_brier = rule.by_brier
    name = _brier_text(rule) if by_brier else name
    none = tuning.tried[0]
    gain = {id(c): none.brier - c.brier if by_brier else c.gain for c in tried}
    best = max(tried, key=lambda correction: gain[id(correction)])
    if gain[id(best)] <= 0:
        return f"no eps {'betters' if by_brier else 'raises'} the {name}"
    allowed = [correction for correction in tried if correction.allowed]
    largest = f"{share_text(gain[id(best)], signed=True)} at {correction_text(tuning, best)}"
    if not allowed:
        return f"no eps keeps {_kept(rule)} (largest gain in {name}: {largest})"
    within = max(allowed, key=lambda correction: gain[id(correction)])
    limit = "" if within is best else f" that keeps {_kept(rule)}"
    if gain[id(within)] <= 0:
        return f"no eps{limit} {'betters' if by_brier else 'raises'} the {name} (largest gain without it: {largest})"
    largest = f"{share_text(gain[id(within)], signed=True)} at {correction_text(tuning, within)}"
    tries = f"{len(tried)} attempt{'s' if len(tried) > 1 else ''}"
    return (
        f"the largest gain in {name}{limit}, {largest}, is no more than chance gives among {tries}"
        f" (adjusted p {p_text(within.p_value)})"
    )


def _brier_text(rule: SelectionRule) -> str:
    return f"{'cost-weighted' if rule.objective == COST else 'class-balanced'} Brier score"


def _kept(rule: SelectionRule) -> str:
    """What the rule does not let a correction cost."""
    if rule.max_accuracy_drop is None:
        return "the expected cost" if rule.objective == COST else "the MCR"
    return f"the accuracy within {rule.max_accuracy_drop:g}"


def note(tuning: Tuning) -> Iterator[str]:
    """What limits the choice, the most important first."""
    yield from _grid_notes(tuning)
    if tuning.n < FEW_IMAGES:
        yield (
            f"chosen on {tuning.n:,} images: with fewer than {FEW_IMAGES:,}, expect other images to show less than the"
            " gain that is stated"
        )
    yield from _class_notes(tuning)
    yield from _held_out_notes(tuning)
    if tuning.failed:
        first = first_few([f"{name}: {reason}" for name, reason in tuning.failed.items()])
        yield f"{len(tuning.failed):,} images could not be used and are left out: {first}"
    if tuning.unused_labels:
        yield f"{tuning.unused_labels:,} labels are of images that are not there"


def _grid_notes(tuning: Tuning) -> Iterator[str]:
    grid = sorted({correction.eps for correction in tuning.tried if correction.eps > 0})
    eps = tuning.choice.eps
    if len(grid) > 1 and eps == grid[-1]:
        yield f"eps {eps:g} is the largest of the grid: a larger one may be better (--eps-grid)"
    elif len(grid) > 1 and eps == grid[0]:
        yield f"eps {eps:g} is the smallest of the grid: a smaller one may do (--eps-grid)"
    best = max(tuning.tried, key=lambda correction: correction.gain)
    if best.eps == grid[-1] and eps < best.eps and len(grid) > 1:
        moves = "falls" if tuning.rule.objective == COST else "rises"
        yield f"the {objective_text(tuning)} still {moves} at the largest eps of the grid, {best.eps:g} (--eps-grid)"


def _class_notes(tuning: Tuning) -> Iterator[str]:
    pairs = list(zip(tuning.classes, tuning.support, strict=True))
    empty = [name for name, images in pairs if images == 0]
    few = sorted(((images, name) for name, images in pairs if 0 < images < LEAST_IMAGES))
    if empty:
        yield f"classes without validation images, left out of all figures: {first_few(empty, 10)}"
    if few:
        listed = first_few([f"{name} ({images})" for images, name in few], 10)
        weight = "" if tuning.rule.objective == COST else ", and each class weighs the same"
        yield (
            f"too few validation images to decide on {listed}: with fewer than {LEAST_IMAGES} a recall is known no"
            f" better than about ±0.2{weight}"
        )
    images = dict(pairs)[tuning.smallest_class]
    scr = tuning.tried[0].figures.scr
    missed = 0 if scr is None else round((1 - scr) * images)
    if tuning.rule.objective == "scr" and missed < LEAST_GAINED:
        yield (
            f"{missed} of the {images} images of {tuning.smallest_class} are predicted wrong without correction; at"
            f" least {LEAST_GAINED} must be gained for a higher SCR to be told from chance"
        )


def _held_out_notes(tuning: Tuning) -> Iterator[str]:
    if tuning.choice.eps == 0:
        return
    if tuning.splits[tuning.chosen] * 2 < tuning.total_splits:
        yield (
            f"the choice is not steady: most splits, each without one of {tuning.rule.folds} parts of the images, chose"
            " otherwise; more validation images would settle it"
        )
    name, rule = objective_text(tuning), tuning.rule
    held_out = tuning.held_out[figure_of(rule.objective)]
    wanted = "fall" if rule.objective == COST else "rise"
    gain = None if held_out.difference is None else held_out.difference * (-1 if rule.objective == COST else 1)
    if gain is not None and gain <= 0:
        yield f"on images that had no part in the choice the {name} does not {wanted}: do not count on a gain"
    elif held_out.interval is not None and held_out.interval.low <= 0:
        yield f"on images that had no part in the choice the gain in {name} may be none (its interval holds 0)"
    drop = tuning.held_out["accuracy"].difference
    limit = rule.max_accuracy_drop
    if limit is not None and drop is not None and -drop > limit:
        yield f"on images that had no part in the choice the accuracy falls by {-drop:.4f}, more than {limit:g}"


__all__ = ["FIGURES", "LEAST_IMAGES", "correction_text", "figure_of", "note", "objective_text", "summarise"]
