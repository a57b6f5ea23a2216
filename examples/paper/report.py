"""Table 2, Figures 2 and 3, and what the paper has not: `python -m examples.paper.report RUNS`.

Writes RUNS/report.md, report.json, figure2.png and, where eps and T were swept, figure3.png.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from scipy import stats

from examples.paper.figures import draw_recalls, draw_sweeps
from examples.paper.results import FIGURES, NAMES, Cell, by_row, finished, gain, mean_sd
from imbalance_perturb.files.writing import write_whole

TABLE_2 = Path(__file__).with_name("table2.csv")
TIE = 1e-12  # figures are shares of whole images
Rows = dict[tuple[str, str, str], list[Cell]]


def main(runs: Annotated[Path, typer.Argument(help="The --out of examples.paper.run.")] = Path("runs")) -> None:
    """Write the report of all finished experiments."""
    cells = list(finished(runs))
    rows = by_row(cells)
    sections = [
        table_2(rows),
        counts_of_gains(rows),
        gains(rows, "test"),
        gains(rows, "official"),
        methods(rows),
        models(cells),
    ]
    write_whole(runs / "report.md", ("\n\n".join(filter(None, sections)) + "\n").encode())
    write_whole(runs / "report.json", (json.dumps([asdict(cell) for cell in cells], indent=1) + "\n").encode())
    pictures = [draw_recalls(rows, runs / "figure2.png"), draw_sweeps(cells, runs / "figure3.png")]
    for path in (runs / "report.md", runs / "report.json", *filter(None, pictures)):
        typer.echo(path)


def published() -> dict[tuple[str, str, str], dict[str, str]]:
    """The paper's Table 2, in per cent."""
    with TABLE_2.open(newline="") as stream:
        return {(row["data_set"], row["backbone"], row["training"]): row for row in csv.DictReader(stream)}


def table_2(rows: Rows) -> str:
    """MCR and SCR of each training, plain, at the paper's eps and at the eps of tune-eps; the paper's beside them."""
    lines = ["## Table 2: MCR and SCR in per cent, mean (standard deviation) over folds", ""]
    head = [
        "data set",
        "backbone",
        "training",
        "folds",
        "MCR",
        "+ours",
        "tuned",
        "paper",
        "+ours",
        "SCR",
        "+ours",
        "tuned",
        "paper",
        "+ours",
    ]
    lines += [row_of(head), row_of(["---"] * len(head))]
    papers = published()
    for (data, backbone, training), cells in rows.items():
        paper = papers[data, backbone, training]
        line = [data, NAMES[backbone], training.upper(), str(len(cells))]
        for figure in ("mcr", "scr"):
            line += [mean_sd([cell.parts["test-paper"].base[figure] for cell in cells])]
            line += [
                mean_sd([cell.parts[part].corrected[figure] for cell in cells]) for part in ("test-paper", "test-tuned")
            ]
            line += [with_sd(paper, figure), with_sd(paper, f"ours_{figure}")]
        lines.append(row_of(line))
    return "\n".join(lines)


def with_sd(paper: dict[str, str], name: str) -> str:
    return paper[name] + (f" ({paper[name + '_sd']})" if paper[name + "_sd"] else "")


def having(rows: Rows, part: str) -> Rows:
    """The rows whose cells were all scored on a part."""
    return {row: cells for row, cells in rows.items() if all(part in cell.parts for cell in cells)}


def counts_of_gains(rows: Rows) -> str:
    """In how many rows the correction raises MCR and SCR, with Wilson intervals: the paper says all."""
    lines = ["## Rows in which the correction raises the figure (the paper: all of them)", ""]
    head = ["part", "eps", "figure", "rows", "raised", "95%", "cells raised, equal, lowered"]
    lines += [row_of(head), row_of(["---"] * len(head))]
    for part in ("test-paper", "test-tuned", "official-paper", "official-tuned"):
        scored = having(rows, part)
        for figure in FIGURES if scored else ():
            means = [gain(cells, part, figure).mean for cells in scored.values()]
            raised = sum(value > TIE for value in means)
            interval = stats.binomtest(raised, len(means)).proportion_ci(method="wilson")
            single = [cell.parts[part].gain(figure) for cells in scored.values() for cell in cells]
            signs = [sum(v > TIE for v in single), sum(abs(v) <= TIE for v in single), sum(v < -TIE for v in single)]
            share = f"{100 * interval.low:.0f} to {100 * interval.high:.0f}%"
            lines.append(
                row_of([*part.split("-"), figure, str(len(means)), str(raised), share, ", ".join(map(str, signs))])
            )
    return "\n".join(lines)


def gains(rows: Rows, where: str) -> str:
    """The gain of each row on the folds (`test`) or the official test set, with interval and paired test over folds."""
    scored = having(having(rows, f"{where}-paper"), f"{where}-tuned")
    if not scored:
        return ""
    named = {"test": "the test folds", "official": "the official test set"}[where]
    lines = [f"## Gains on {named}, in points: mean over folds (95%; p over folds)", ""]
    head = ["data set", "backbone", "training", "eps", *(f"plain {f}" for f in FIGURES), *FIGURES]
    lines += [row_of(head), row_of(["---"] * len(head))]
    for (data, backbone, training), cells in scored.items():
        for part in (f"{where}-paper", f"{where}-tuned"):
            eps = ", ".join(dict.fromkeys(f"{cell.parts[part].eps:g}" for cell in cells))
            plain = [mean_sd([cell.parts[part].base[figure] for cell in cells]) for figure in FIGURES]
            found = [in_points(cells, part, figure) for figure in FIGURES]
            lines.append(row_of([data, NAMES[backbone], training.upper(), eps, *plain, *found]))
    return "\n".join(lines)


def in_points(cells: Sequence[Cell], part: str, figure: str) -> str:
    found = gain(cells, part, figure)
    p = "" if found.p_value != found.p_value else f"; p {found.p_value:.2f}"
    return f"{100 * found.mean:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f}{p})"


def methods(rows: Rows) -> str:
    """`compare`'s methods beside the correction: chosen on the validation part, scored on the test part."""
    names = list(dict.fromkeys(name for cells in rows.values() for cell in cells for name in cell.methods))
    lines = ["## Other corrections after training: MCR / SCR / accuracy in per cent, mean over folds", ""]
    lines += [row_of(["data set", "backbone", "training", *names]), row_of(["---"] * (len(names) + 3))]
    for (data, backbone, training), cells in rows.items():
        line = [data, NAMES[backbone], training.upper()]
        for name in names:
            found = [cell.methods[name] for cell in cells if cell.methods.get(name, {}).get("available")]
            values = (
                [100 * sum(m[figure] for m in found) / len(found) for figure in FIGURES]
                if len(found) == len(cells)
                else []
            )
            line.append(" / ".join(f"{value:.1f}" for value in values) or "-")
        lines.append(row_of(line))
    return "\n".join([*lines, "", *unavailable(rows)])


def unavailable(rows: Rows) -> list[str]:
    """Why a method has no figure in the table."""
    missing: dict[tuple[str, str], list[str]] = {}
    for (data, backbone, training), cells in rows.items():
        for cell in cells:
            for name, method in cell.methods.items():
                if not method["available"]:
                    where = f"{data}, {NAMES[backbone]}, {training.upper()}, fold {cell.fold}"
                    missing.setdefault((name, method["reason"]), []).append(where)
    return [f"- {name}: {reason} ({'; '.join(where)})" for (name, reason), where in missing.items()]


def models(cells: Sequence[Cell]) -> str:
    """Which checkpoints these figures are of."""
    lines = [
        "## Checkpoints",
        "",
        row_of(["data set", "backbone", "training", "fold", "seed", "SHA-256"]),
        row_of(["---"] * 6),
    ]
    for c in cells:
        lines.append(
            row_of(
                [
                    c.data,
                    NAMES[c.backbone],
                    c.training,
                    str(c.fold),
                    str(c.settings["schedule"]["seed"]),
                    c.model_sha256,
                ]
            )
        )
    return "\n".join(lines)


def row_of(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    typer.run(main)
