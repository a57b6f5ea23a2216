"""An inspection as tables in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imbalance_perturb.inference.inspection import Inspection


def print_inspection(inspection: Inspection) -> None:
    """Print the inspection as tables on stdout."""
    from rich.table import Table

    from imbalance_perturb.reports.terminal import new_console

    console = new_console()
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, text in _facts(inspection):
        facts.add_row(label, text)
    console.print(facts)
    table = Table(title="classes", title_justify="left")
    for header in ("class", "index", "count", "p*"):
        table.add_column(header, justify="left" if header == "class" else "right", overflow="fold")
    for row in inspection.classes:
        count = "" if row.count is None else f"{row.count:,}"
        table.add_row(row.name, str(row.index), count, "" if row.target is None else f"{row.target:.4f}")
    console.print(table)


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
        ("repeatable", f"same batch twice: largest difference {probe.repeat_difference:.2g}"),
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
