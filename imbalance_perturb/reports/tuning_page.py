"""A tuning as one HTML page: the choice, how sure it is, the whole sweep, and on what it rests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imbalance_perturb.reports.drawing import draw_svg
from imbalance_perturb.reports.page import cell, facts, figure, note_list, paragraph, render_page, section, table
from imbalance_perturb.reports.tuning_plots import draw_tuning, plot_size
from imbalance_perturb.tuning_results import FIGURES, TriedCorrection, Tuning
from imbalance_perturb.tuning_wording import correction_text, objective_text
from imbalance_perturb.wording import interval_text, p_text, share_text


def tuning_page(tuning: Tuning) -> str:
    """The page as HTML text."""
    svg = draw_svg("tuning", plot_size(tuning), lambda drawn: draw_tuning(drawn, tuning))
    return render_page(
        "Tuning: which eps to use",
        [
            *(paragraph(text, "" if index else "lead") for index, text in enumerate(tuning.summary)),
            note_list(tuning.notes),
            section("Figures against eps", figure(svg, _CAPTION)),
            section(
                "Worth, on images that had no part in the choice", _worth(tuning), paragraph(_nested(tuning), "soft")
            ),
            section("How sure the choice is", _spread(tuning)),
            section("The whole sweep", _sweep(tuning), paragraph(_how(tuning), "soft")),
            section("Images", _classes(tuning)),
            section("What this rests on", facts(_facts(tuning))),
        ],
    )


_CAPTION = (
    "Dashed: without correction (eps 0). Band: one standard error of the gain in the objective. Upright line: what was"
    " chosen. All figures are of the images that made the choice."
)


def _worth(tuning: Tuning) -> str:
    level = f"{100 * tuning.confidence_level:g}% interval"
    rows = []
    for name, title in FIGURES.items():
        held_out = tuning.held_out[name]
        rows.append(
            [
                cell(title, tuning.smallest_class if name == "scr" else ""),
                cell(share_text(held_out.base)),
                cell(share_text(held_out.tuned)),
                cell(share_text(held_out.difference, signed=True)),
                cell(interval_text(held_out.interval, signed=True)),
            ]
        )
    return table(["", "eps 0", "tuned", "difference", level], rows)


def _nested(tuning: Tuning) -> str:
    rule = tuning.rule
    return (
        f"Nested cross-validation: {rule.repeats} times parted into {rule.folds} stratified folds (seed {rule.seed});"
        " the whole choice is made again without each fold, which then scores it. Intervals: paired smoothed bootstrap"
        " within classes."
    )


def _spread(tuning: Tuning) -> str:
    total = tuning.total_splits
    found = [(count, a) for count, a in zip(tuning.splits, tuning.tried, strict=True) if count]
    rows = [
        [cell(correction_text(tuning, a)), cell(f"{count} of {total}"), cell(f"{count / total:.0%}")]
        for count, a in sorted(found, key=lambda item: -item[0])
    ]
    return table(["chosen without the held-out fold", "splits", "share"], rows)


def _sweep(tuning: Tuning) -> str:
    several = len(tuning.loss_specs) > 1
    rows = [_sweep_row(tuning, index, correction, several) for index, correction in enumerate(tuning.tried)]
    headers = ["eps", *(["T", "loss"] if several else []), *FIGURES.values(), "changed", "gain", "± 1 SE", "p", ""]
    return table(headers, rows)


def _sweep_row(tuning: Tuning, index: int, correction: TriedCorrection, several: bool) -> list[str]:
    plain = correction.eps == 0
    row = [cell(f"{correction.eps:g}")]
    if several:
        row += [cell("" if plain else f"{correction.temperature:g}"), cell(correction.loss or "")]
    row += [cell(share_text(getattr(correction.figures, name))) for name in FIGURES]
    row += [
        cell("" if plain else f"{correction.changed:.1%}"),
        cell("" if plain else share_text(correction.gain, signed=True)),
        cell("" if plain else share_text(correction.gain_error)),
        cell("" if plain else p_text(correction.p_value)),
    ]
    if index == tuning.chosen:
        return [*row, cell("chosen", css_class="good")]
    return [*row, cell("" if correction.allowed else "accuracy too low")]


def _how(tuning: Tuning) -> str:
    return (
        f"Gain: in {objective_text(tuning)} over eps 0. p: one-sided, of a gain by chance, adjusted for all"
        f" {len(tuning.tried) - 1} attempts (permutation test). These images made the choice: the chosen line looks"
        " better than it is."
    )


def _classes(tuning: Tuning) -> str:
    order = sorted(range(len(tuning.classes)), key=lambda c: (-tuning.counts[c], c))
    rows = [[cell(tuning.classes[c]), cell(f"{tuning.counts[c]:,}"), cell(f"{tuning.support[c]:,}")] for c in order]
    return table(["class", "training images", "validation images"], rows)


def _facts(tuning: Tuning) -> Iterator[tuple[str, object]]:
    yield "images", f"{tuning.n:,} used, {len(tuning.failed):,} failed"
    yield "passes", ", ".join(f"{count:,} {kind}" for kind, count in tuning.passes.items()) + " (batches)"
    for name, entry in tuning.source.items():
        yield from _flat(name, entry)


def _flat(name: str, entry: Any) -> Iterator[tuple[str, object]]:
    if isinstance(entry, Mapping):
        for key, value in entry.items():
            yield from _flat(f"{name} {key}".replace("_", " "), value)
    elif entry not in (None, [], ()):
        yield name, ", ".join(map(str, entry)) if isinstance(entry, list | tuple) else entry
