"""An inspection as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imbalance_perturb.inference.inspection import Inspection
    from imbalance_perturb.models.corrected_file import CorrectedCard


def print_inspection(inspection: Inspection) -> None:
    """Print the inspection as tables on stdout."""
    rows = ((row.name, row.index, row.count, row.target) for row in inspection.classes)
    _print_tables(_facts(inspection), rows)


def print_card(path: str, card: CorrectedCard) -> None:
    """Print what an exported file says of itself as tables on stdout."""
    _print_tables(_card_facts(path, card), ((one.name, one.index, one.count, one.target) for one in card.classes))


def _print_tables(
    facts: Iterable[tuple[str, str]], classes: Iterable[tuple[str, int, int | None, float | None]]
) -> None:
    from rich.table import Table

    from imbalance_perturb.reports.terminal import new_console

    console = new_console()
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for label, text in facts:
        shown.add_row(label, text)
    console.print(shown)
    table = Table(title="classes", title_justify="left")
    for header in ("class", "index", "count", "p*"):
        table.add_column(header, justify="left" if header == "class" else "right", overflow="fold")
    for name, index, count, target in classes:
        shares = "" if count is None else f"{count:,}"
        table.add_row(name, str(index), shares, "" if target is None else f"{target:.4f}")
    console.print(table)


def _card_facts(path: str, card: CorrectedCard) -> Iterator[tuple[str, str]]:
    source, shape = card.model, " x ".join(map(str, card.input.shape))
    yield "file", f"{path} ({card.schema})"
    yield "made from", f"{source.file} ({source.format}{f' {source.arch}' if source.arch else ''})"
    yield "its SHA-256", source.sha256
    yield "parameters", f"{source.parameters:,}"
    yield "takes", f"{card.input.name}, {card.input.dtype}, {shape}"
    yield "returns", ", ".join(card.outputs)
    for table, values in (("correction", card.correction), ("preprocessing", card.preprocessing)):
        said = (f"{name} {value}" for name, value in vars(values).items() if value is not None)
        yield table, ", ".join(said)
    yield "counts", f"SHA-256 {card.counts_sha256}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())


def _facts(inspection: Inspection) -> list[tuple[str, str]]:
    info, probe = inspection.model, inspection.probe
    facts = [
        ("model", f"{info.path} ({info.format})"),
        ("architecture", info.arch or "as the file has it"),
        ("parameters", f"{info.parameters:,}"),
        ("classes", str(info.num_classes)),
        ("outputs", info.outputs),
        ("each image", inspection.preprocessing.describe()),
        ("tried on", f"{inspection.device}, 2 random images of {' x '.join(map(str, inspection.input_shape))}"),
        ("runs", f"{inspection.optimisation.path} (logits move by {inspection.optimisation.difference:.1g} at most)"),
        ("precision", inspection.precision),
        ("gradient", f"finite, non-zero at {probe.gradient_nonzero:.1%} of the input"),
        ("repeatable", f"same images twice: largest difference {probe.repeat_difference:.2g}"),
        ("batch", f"image alone against in a batch: largest difference {probe.batch_difference:.2g}"),
        ("seconds", f"{probe.seconds:.2f}"),
    ]
    if info.fixed_batch is not None:
        facts.append(("fixed batch", f"{info.fixed_batch} (other batch sizes are split and padded)"))
    if info.fixed_size is not None:
        facts.append(("fixed size", f"{info.fixed_size[0]} x {info.fixed_size[1]}"))
    facts += [("note", note) for note in info.notes]
    if inspection.imbalance is not None:
        facts.append(("imbalance", f"largest class over smallest: {inspection.imbalance:.1f}"))
    return facts
