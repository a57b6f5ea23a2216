"""Figures 2 and 3 as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from examples.paper.results import NAMES, Cell
from imbalance_perturb.files.writing import open_whole

mpl.use("Agg")
import matplotlib.pyplot as plt

PLAIN, OURS = "#5b6b7f", "#c2410c"


def draw_recalls(rows: dict[tuple[str, str, str], list[Cell]], path: Path) -> Path:
    """Figure 2: recall of each class, plain and at the paper's eps, largest class first; one panel a row of Table 2."""
    across = min(3, len(rows))
    down = -(-len(rows) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(4.2 * across, 2.9 * down), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, ((data, backbone, training), cells) in zip(axes.flat, rows.items(), strict=False):
        scored = [cell.parts["test-paper"] for cell in cells]
        places = np.arange(len(cells[0].classes))
        for shift, colour, name, recalls in (
            (-0.2, PLAIN, "plain", [s.base_recalls for s in scored]),
            (0.2, OURS, "+ours", [s.recalls for s in scored]),
        ):
            values = np.array(recalls, dtype=float)
            spread = values.std(axis=0, ddof=1) if len(values) > 1 else None
            axis.bar(
                places + shift, values.mean(axis=0), 0.38, color=colour, label=name, yerr=spread, error_kw={"lw": 0.8}
            )
        axis.set(ylim=(0, 1), xticks=places, ylabel="recall" if axis in axes[:, 0] else "")
        axis.set_title(f"{data}, {NAMES[backbone]}, {training.upper()}", fontsize=10)
        axis.set_xticklabels(
            cells[0].classes, rotation=0 if len(max(cells[0].classes, key=len)) < 6 else 30, fontsize=8
        )
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    return save(figure, path)


def draw_sweeps(cells: Sequence[Cell], path: Path) -> Path | None:
    """Figure 3: MCR against eps and against T, mean over the folds swept; dashed where nothing is corrected."""
    swept: dict[str, list[Cell]] = {}
    for cell in cells:
        if len(cell.sweeps) == 2:
            swept.setdefault(f"{NAMES[cell.backbone]}, {cell.training.upper()}", []).append(cell)
    if not swept:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for number, (name, group) in enumerate(swept.items()):
        colour = f"C{number}"
        eps, mcr = curve(group, "figure3-eps", "eps")
        left.plot(eps, mcr, "o-", ms=3, color=colour, label=f"{name}+ours (folds: {len(group)})")
        left.axhline(mcr[0], color=colour, ls="--", lw=0.9)
        temperature, by_temperature = curve(group, "figure3-temperature", "temperature")
        right.plot(temperature, by_temperature, "o-", ms=3, color=colour)
        right.axhline(mcr[0], color=colour, ls="--", lw=0.9)
    left.set(xlabel="eps (T = 1000)", ylabel="MCR")
    right.set(xlabel="T (eps = 0.001)", xscale="log", ylabel="MCR")
    left.legend(fontsize=8, frameon=False)
    return save(figure, path)


def curve(group: Sequence[Cell], sweep: str, by: str) -> tuple[list[float], list[float]]:
    """The varied value and the mean MCR over folds."""

    def points(cell: Cell) -> dict[float, Any]:
        return {p[by]: p["mcr"] for p in cell.sweeps[sweep] if p[by] is not None and (by == "eps" or p["eps"])}

    found = [points(cell) for cell in group]
    values = sorted(found[0])
    return values, [float(np.mean([f[value] for f in found])) for value in values]


def save(figure: Any, path: Path) -> Path:
    with open_whole(path, binary=True) as stream:
        figure.savefig(stream, dpi=130, format="png")
    plt.close(figure)
    return path
