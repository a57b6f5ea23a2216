"""The plots of a tuning: figures against eps and against T (Fig. 3 of the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imbalance_perturb.errors import printable
from imbalance_perturb.reports.drawing import BASE, HEAT, INK, PERTURBED, draw_png
from imbalance_perturb.selection.tuning.results import TriedCorrection, Tuning
from imbalance_perturb.selection.tuning.summary import figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Figure, its label and colour.
_CURVES = (("mcr", "MCR", PERTURBED), ("scr", "SCR", HEAT), ("accuracy", "accuracy", BASE))

#: Drawn too where it is the objective.
_OTHER_OBJECTIVES = {"worst": ("worst_class_recall", "worst recall"), "gmean": ("gmean", "gmean")}

#: One for each loss, the chosen one first.
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


def shown_correction(tuning: Tuning) -> TriedCorrection:
    """Choose the correction whose loss and T the plot against eps shows: the chosen one; of eps 0 the best other."""
    if tuning.choice.eps > 0:
        return tuning.choice
    return max(
        (correction for correction in tuning.tried if correction.eps > 0), key=lambda correction: correction.gain
    )


def plot_size(tuning: Tuning) -> tuple[float, float]:
    """Compute width and height in inches that :func:`draw_tuning` needs."""
    return (12.5 if _temperatures(tuning) else 8.0), 4.4


def draw_tuning(figure: Figure, tuning: Tuning) -> None:
    """Draw figures against eps and, where several were tried, against T."""
    if not _temperatures(tuning):
        draw_eps(figure.subplots(), tuning)
        return
    left, right = figure.subplots(1, 2, sharey=True)
    draw_eps(left, tuning)
    draw_temperatures(right, tuning)


def plot_tuning(tuning: Tuning) -> bytes:
    """Draw the plots as a PNG."""
    return draw_png(plot_size(tuning), lambda figure: draw_tuning(figure, tuning))


def draw_eps(axes: Axes, tuning: Tuning) -> None:
    """Draw figures against eps with the temperature of :func:`shown_correction`, one kind of line for each loss."""
    shown = shown_correction(tuning)
    for loss, dashes in _losses(tuning):
        tried = [a for a in tuning.tried if a.eps > 0 and a.loss_spec == (loss, shown.temperature)]
        _curves(axes, tuning, [a.eps for a in tried], tried, dashes, label=loss == shown.loss)
        if loss == shown.loss:
            _error_band(axes, tuning, tried)
    if tuning.choice.eps > 0:
        axes.axvline(tuning.choice.eps, color=INK, linewidth=1)
    chosen = "chosen: 0, no correction" if tuning.choice.eps == 0 else f"chosen: {tuning.choice.eps:g}"
    axes.set_title(f"Against eps (T {shown.temperature:g}); {chosen}")
    axes.set_xlabel("eps")
    _log_axis(axes, sorted({a.eps for a in tuning.tried if a.eps > 0}))
    _finish(axes, tuning)


def draw_temperatures(axes: Axes, tuning: Tuning) -> None:
    """Draw figures against T with the eps of :func:`shown_correction`, one kind of line for each loss."""
    shown = shown_correction(tuning)
    for loss, dashes in _losses(tuning):
        tried = [a for a in tuning.tried if a.eps == shown.eps and a.loss == loss]
        tried.sort(key=lambda a: a.temperature or 0)
        _curves(axes, tuning, [a.temperature or 0 for a in tried], tried, dashes, label=loss == shown.loss)
    if tuning.choice.eps > 0:
        axes.axvline(shown.temperature or 1, color=INK, linewidth=1)
    axes.set_title(f"Against T (eps {shown.eps:g})")
    axes.set_xlabel("T")
    _log_axis(axes, sorted({temperature for _, temperature in tuning.loss_specs if temperature is not None}))
    _finish(axes, tuning)


def _shown_curves(tuning: Tuning) -> list[tuple[str, str, str]]:
    other = _OTHER_OBJECTIVES.get(tuning.rule.objective)
    return [*_CURVES, *([] if other is None else [(*other, INK)])]


def _losses(tuning: Tuning) -> list[tuple[str | None, object]]:
    shown = shown_correction(tuning)
    losses = sorted({loss for loss, _ in tuning.loss_specs}, key=lambda loss: (loss != shown.loss, str(loss)))
    return list(zip(losses, _DASHES, strict=False))


def _temperatures(tuning: Tuning) -> bool:
    return len({temperature for _, temperature in tuning.loss_specs}) > 1


def _curves(
    axes: Axes, tuning: Tuning, xs: list[float], tried: list[TriedCorrection], dashes: object, *, label: bool
) -> None:
    for name, title, colour in _shown_curves(tuning):
        values = [getattr(correction.figures, name) for correction in tried]
        if None in values:
            continue
        text = f"{title} ({printable(tuning.smallest_class)})" if name == "scr" else title
        axes.plot(
            xs,
            values,
            linestyle=dashes,
            color=colour,
            marker="o",
            markersize=4 if label else 2.5,
            alpha=1 if label else 0.7,
            label=text if label else None,
        )


def _error_band(axes: Axes, tuning: Tuning, tried: list[TriedCorrection]) -> None:
    """Draw one standard error of the gain, around the objective."""
    name = figure_of(tuning.rule.objective)
    colours = {key: colour for key, _, colour in _shown_curves(tuning)}
    known = [correction for correction in tried if correction.gain_error is not None]
    if not known or name not in colours:  # costs have a scale of their own
        return
    values = [getattr(correction.figures, name) for correction in known]
    errors = [correction.gain_error or 0.0 for correction in known]
    axes.fill_between(
        [correction.eps for correction in known],
        [value - error for value, error in zip(values, errors, strict=True)],
        [value + error for value, error in zip(values, errors, strict=True)],
        color=colours[name],
        alpha=0.15,
        linewidth=0,
    )


def _finish(axes: Axes, tuning: Tuning) -> None:
    base = tuning.tried[0].figures
    for name, _, colour in _shown_curves(tuning):
        value = getattr(base, name)
        if value is not None:
            axes.axhline(value, color=colour, linewidth=1, linestyle=(0, (4, 3)))
    axes.grid(axis="y")
    handles, texts = axes.get_legend_handles_labels()
    if len(tuning.loss_specs) > 1 and len(_losses(tuning)) > 1:
        from matplotlib.lines import Line2D

        for loss, dashes in _losses(tuning):
            handles.append(Line2D([], [], color=INK, linestyle=dashes))  # type: ignore[arg-type]
            texts.append(str(loss))
    axes.legend(handles, texts, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=3, borderaxespad=0.2, fontsize=9)


def _log_axis(axes: Axes, values: list[float]) -> None:
    """Set a log axis with the tried values written out, as far as there is room."""
    from matplotlib.ticker import NullFormatter

    axes.set_xscale("log")
    axes.minorticks_off()
    axes.xaxis.set_minor_formatter(NullFormatter())
    least_gap = (max(values) / min(values)) ** (1 / 14)
    shown: list[float] = []
    for value in sorted(values):
        if not shown or value / shown[-1] >= least_gap:
            shown.append(value)
    axes.set_xticks(shown, [f"{value:g}" for value in shown])
