"""The plots of an evaluation: recall before and after, gain against training count, confusion matrices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from imbalance_perturb.errors import printable
from imbalance_perturb.evaluation.formatting import by_count
from imbalance_perturb.evaluation.results import MOST_MATRIX_CLASSES, ClassScores, Evaluation, Scores
from imbalance_perturb.reports.calibration_plots import draw_reliability
from imbalance_perturb.reports.drawing import BASE, HEAT, INK, PERTURBED, RULE, SOFT, draw_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Above these numbers of classes names, and numbers in the cells of a matrix, could not be read any more.
_MOST_NAMES, _MOST_NUMBERS = 40, 15

#: Above so many points they are one picture within the drawing: each for itself would be megabytes.
_MOST_POINTS = 1000

#: Longest class name in a plot, in characters.
_LONGEST_NAME = 18


def recall_size(evaluation: Evaluation) -> tuple[float, float]:
    """Compute width and height in inches that the recall plot needs."""
    longest = max(map(len, _names(evaluation))) if _crowded(evaluation) else 0
    return min(max(7.0, 0.45 * len(evaluation.classes) + 2), 14.0), 4.0 + 0.08 * longest


def draw_recalls(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the recall of each class before and after, from the largest class to the smallest (Fig. 2 of the paper)."""
    order = by_count(evaluation.counts)
    many = len(order) > _MOST_NAMES
    for scores, colour, label, shift in (
        (evaluation.base, BASE, "base", -0.14),
        (evaluation.perturbed, PERTURBED, "perturbed", 0.14),
    ):
        points = [(x, entry) for x, c in enumerate(order) if (entry := scores.per_class[c]).recall is not None]
        xs = [x + (0 if many else shift) for x, _ in points]
        recalls = [entry.recall or 0.0 for _, entry in points]
        if not many:
            _error_bars(axes, xs, [entry for _, entry in points], colour)
        size, pixels = 3 if many else 6.5, len(points) > _MOST_POINTS
        axes.plot(xs, recalls, "o", color=colour, markersize=size, label=label, rasterized=pixels)
        axes.axhline(scores.mcr, color=colour, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(ylim=(-0.03, 1.03), xlim=(-0.6, len(order) - 0.4), ylabel="recall")
    axes.set_title("Recall of each class, dashed: mean (MCR)")
    axes.grid(axis="y")
    if many:
        axes.set_xlabel(f"{len(order)} classes, from the largest training count to the smallest")
        axes.set_xticks([])
    else:
        names, rotation = _names(evaluation), dict[str, Any]()
        if _crowded(evaluation):
            names = [name.replace("\n", "  ") for name in names]
            rotation = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(order)), names, **rotation)
        axes.set_xlabel("class and its training images")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, handletextpad=0.1)


def draw_gains(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the gain in recall against the training count of the class."""
    axes.axhline(0, color=SOFT, linewidth=1)
    if len(evaluation.classes) > _MOST_NAMES:
        _scatter_gains(axes, evaluation)
    else:
        _mark_gains(axes, evaluation)
    axes.set_xscale("log")
    axes.set(xlabel="training images of the class", ylabel="recall: perturbed - base")
    _plain_ticks(axes, evaluation.counts)
    axes.set_title("Gain against training count")
    axes.grid(axis="y")
    axes.margins(x=0.12)


def _scatter_gains(axes: Axes, evaluation: Evaluation) -> None:
    points = [(evaluation.counts[c], gain.value) for c, gain in enumerate(evaluation.gains) if gain is not None]
    axes.plot(*zip(*points, strict=True), "o", color=PERTURBED, markersize=3, rasterized=len(points) > _MOST_POINTS)


def _mark_gains(axes: Axes, evaluation: Evaluation) -> None:
    spread = max(evaluation.counts) / min(evaluation.counts)
    # The largest class is at the edge: its name goes to the left.
    last_right = max(evaluation.counts)
    for c in by_count(evaluation.counts):
        gain, count = evaluation.gains[c], evaluation.counts[c]
        if gain is None:
            continue
        if gain.interval is not None:
            axes.plot([count, count], [gain.interval.low, gain.interval.high], color=PERTURBED, alpha=0.45)
        axes.plot([count], [gain.value], "o", color=PERTURBED, markersize=6.5)
        if len(evaluation.classes) <= _MOST_NUMBERS:
            # Beside a class of about the same count there is room on the other side only.
            right = last_right / count > spread**0.08
            last_right = count if right else last_right
            place: dict[str, Any] = {"xytext": (6 if right else -6, 4), "ha": "left" if right else "right"}
            name = _short(evaluation.classes[c])
            axes.annotate(name, (count, gain.value), textcoords="offset points", color=INK, **place)


def draw_matrix(axes: Axes, scores: Scores, classes: tuple[str, ...], title: str) -> None:
    """Draw a confusion matrix: colour is the share of the row, the number is images; too large a one is not drawn."""
    if scores.confusion_matrix is None:
        axes.set(xticks=[], yticks=[], title=title)
        axes.text(0.5, 0.5, f"not drawn above {MOST_MATRIX_CLASSES} classes", ha="center", va="center", color=SOFT)
        return
    matrix = np.array(scores.confusion_matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    # Colour by opacity, so that it reads on a light page and on a dark one.
    red, green, blue = (int(HEAT[i : i + 2], 16) / 255 for i in (1, 3, 5))
    picture = np.empty((*matrix.shape, 4))
    picture[:] = (red, green, blue, 0)
    picture[..., 3] = 0.65 * share
    size = len(classes)
    axes.imshow(picture, interpolation="nearest", aspect="equal")
    axes.set(xlabel="predicted", ylabel="true", title=title)
    for spine in axes.spines.values():
        spine.set(visible=size > _MOST_NUMBERS, color=RULE)
    if size <= _MOST_NAMES:
        names = [_short(name) for name in classes]
        axes.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(size), names)
        axes.tick_params(length=0, labelsize=9 if size <= _MOST_NUMBERS else 7)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    if size <= _MOST_NUMBERS:
        for row, column in np.ndindex(matrix.shape):
            _write_cell(axes, row, column, int(matrix[row, column]), float(share[row, column]), size)


def plot_evaluation(evaluation: Evaluation) -> bytes:
    """Draw all plots of an evaluation on one PNG; that of probabilities where there are any."""
    calibrated = evaluation.perturbed.calibration is not None

    def draw(figure: Any) -> None:
        rows = [["recall", "gain"], ["base", "perturbed"], *([["reliability", "."]] if calibrated else [])]
        grid = figure.subplot_mosaic(rows, width_ratios=[1.15, 1])
        draw_recalls(grid["recall"], evaluation)
        draw_gains(grid["gain"], evaluation)
        draw_matrix(grid["base"], evaluation.base, evaluation.classes, "Base: images")
        draw_matrix(grid["perturbed"], evaluation.perturbed, evaluation.classes, "Perturbed: images")
        if calibrated:
            draw_reliability(grid["reliability"], evaluation)

    return draw_png((13.0, 14.0 if calibrated else 9.5), draw)


def _write_cell(axes: Axes, row: int, column: int, count: int, share: float, size: int) -> None:
    big = size <= 10
    colour = INK if count else SOFT
    axes.text(
        column, row - (0.12 if big and count else 0), f"{count:,}", ha="center", va="center", color=colour,
        fontsize=9 if big else 7,
    )  # fmt: skip
    if big and count:
        axes.text(column, row + 0.24, f"{share:.0%}", ha="center", va="center", color=INK, fontsize=7)


def _error_bars(axes: Axes, xs: list[float], entries: list[ClassScores], colour: str) -> None:
    for x, entry in zip(xs, entries, strict=True):
        if entry.recall_interval is not None:
            ends = [entry.recall_interval.low, entry.recall_interval.high]
            axes.plot([x, x], ends, color=colour, alpha=0.5, linewidth=1.5)


def _plain_ticks(axes: Axes, counts: tuple[int, ...]) -> None:
    """Set ticks at 1, 2 or 5 times a power of ten, written out: a log axis over one decade has almost none."""
    from matplotlib.ticker import NullFormatter

    low, high = math.log10(min(counts)), math.log10(max(counts))
    steps = (1,) if high - low > 3 else (1, 2, 5)
    ticks = [step * 10**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    inside = [tick for tick in ticks if min(counts) / 1.1 <= tick <= max(counts) * 1.1]
    if len(inside) < 2:
        inside = sorted({min(counts), max(counts)})
    axes.set_xticks(inside, [f"{tick:,}" for tick in inside])
    axes.xaxis.set_minor_formatter(NullFormatter())


def _names(evaluation: Evaluation) -> list[str]:
    return [f"{_short(evaluation.classes[c])}\n{evaluation.counts[c]:,}" for c in by_count(evaluation.counts)]


def _crowded(evaluation: Evaluation) -> bool:
    """Whether the names would run into each other beneath the axis."""
    if len(evaluation.classes) > _MOST_NAMES:
        return False
    return len(evaluation.classes) > 10 or max(map(len, _names(evaluation))) > 16


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
