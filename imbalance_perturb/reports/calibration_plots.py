"""The reliability curve of an evaluation: how often predictions of each probability are right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imbalance_perturb.reports.drawing import BASE, PERTURBED, SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from imbalance_perturb.evaluation.results import Evaluation


def draw_reliability(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the share of right predictions against their mean probability, a mark's area growing with its images."""
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    for scores, colour, label in ((evaluation.base, BASE, "base"), (evaluation.perturbed, PERTURBED, "perturbed")):
        if scores.calibration is None:
            continue
        curve = scores.calibration.curve
        xs, ys = [entry.confidence for entry in curve], [entry.accuracy for entry in curve]
        axes.plot(xs, ys, color=colour, linewidth=1.3, label=label)
        axes.scatter(xs, ys, [12 + 300 * entry.images / evaluation.n for entry in curve], color=colour, alpha=0.75)
    axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.05), xlabel="probability of the predicted class", ylabel="share right")
    axes.set_title("Reliability")
    axes.grid()
    axes.legend(loc="upper left")
