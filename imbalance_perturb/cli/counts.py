"""``imbperturb counts``: the training images of each class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from imbalance_perturb.cli import terminal

if TYPE_CHECKING:
    from imbalance_perturb.method.counts import ClassCounts


def counts(
    train: Annotated[str, Argument(metavar="TRAIN", help="Folder of class folders, or CSV with image,label.")],
    out: Annotated[
        Path | None, Option("--out", "-o", help="JSON file to write (default: JSON on stdout).", show_default=False)
    ] = None,
    classes: Annotated[
        str | None,
        Option(
            metavar="A,B,...",
            help="Class names in class-index order, one with a comma in quotes (default: sorted as text, as ImageFolder"
            " has them, so 10 before 2; labels of a CSV that are all whole numbers by value; columns of classes as"
            " they stand).",
        ),
    ] = None,
) -> None:
    """Count the training images of each class, in class-index order."""
    from imbalance_perturb.cli import narration
    from imbalance_perturb.data.label_tables import parse_class_list
    from imbalance_perturb.data.labels import count_labels, describe_order
    from imbalance_perturb.files.writing import check_writable

    if out is not None:
        check_writable(out)
    say = narration.Narrator(quiet=False)
    found = count_labels(train, None if classes is None else parse_class_list(classes), describe=say.counted)
    order = "as given" if classes is not None else describe_order(train, found)
    write_counts(found, out, order=order)


def write_counts(counts: ClassCounts, out: Path | None, *, order: str) -> None:
    """The counts as JSON, to a file or to stdout, with a word on the order and on balanced classes."""
    from imbalance_perturb.errors import first_few
    from imbalance_perturb.files.writing import write_json

    if out is None:
        terminal.show_json(counts.to_json())
    else:
        write_json(out, counts.to_json())
    where = "" if out is None else f" -> {out}"
    terminal.say(
        f"{counts.total:,} images in {len(counts)} classes, imbalance {counts.imbalance:.1f}; class-index order"
        f" {order}: {first_few(counts.names, 12)}{where}"
    )
    if counts.balanced:
        terminal.say("note: all classes have the same count, so there is nothing to correct")
