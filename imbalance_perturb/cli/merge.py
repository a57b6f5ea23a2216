"""The command ``merge``: the parts of one run into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from imbalance_perturb.cli.options import SOME_FAILED


def merge(
    parts: Annotated[list[Path], Argument(metavar="PART...", help="Files that predict --shard wrote, all of them.")],
    *,
    out: Annotated[
        Path, Option("--out", "-o", metavar="FILE", help="File to write, of the parts' format; run file beside it.")
    ],
    bom: Annotated[
        bool, Option("--bom", help="Begin the CSV with a byte-order mark, for Excel. (default: as the parts do)")
    ] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Say nothing on stderr but errors.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Put the parts of one run (predict --shard I/N) together, once it is proved that they are that and complete.

    The file is the one that a run without --shard would have written. Exit code 3: done, but some images have an error.
    """
    from imbalance_perturb.cli import narration, terminal
    from imbalance_perturb.predictions.merging import MergeOptions, merge_predictions

    summary = merge_predictions(parts, out, MergeOptions(bom=bom))
    say = narration.Narrator(quiet)
    for note in summary.notes:
        say.line(f"note: {note}")
    say.line(
        f"{summary.parts:,} parts merged: {summary.total:,} images, {summary.done:,} predicted, {summary.changed:,}"
        f" changed by the correction, {summary.failed:,} failed -> {summary.predictions}, {summary.run}"
    )
    if summary.agreement is not None and summary.agreement.warning is not None:
        say.line(f"warning: {summary.agreement.warning}")
    if as_json:
        terminal.show_json(summary)
    raise typer.Exit(SOME_FAILED if summary.failed else 0)
