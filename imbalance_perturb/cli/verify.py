"""The command ``verify``: are the predictions those of the run, and do they come out again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from imbalance_perturb.cli.options import RerunOptions, with_options


@with_options
def verify(
    run: Annotated[Path, Argument(metavar="RUN", help="Run file that predict or merge wrote (predictions.run.json).")],
    *,
    sample: Annotated[int, Option("--sample", metavar="N", help="Rows to compute again.")] = 32,
    seed: Annotated[
        int | None, Option("--seed", help="Of the sample. (default: drawn, and said)", show_default=False)
    ] = None,
    counts: Annotated[
        Path | None, Option("--counts", metavar="FILE", help="Where the counts are now. (default: as the run says)")
    ] = None,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Say nothing on stderr but errors.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print the result as JSON on stdout.")] = False,
    files: RerunOptions,
) -> None:
    """Check a run's files by their hashes and compute a random sample of its rows again.

    Exit code 0: all come out again, confidences within 0.0001.
    """
    from imbalance_perturb.cli import narration, terminal
    from imbalance_perturb.errors import VerificationError, printable
    from imbalance_perturb.inference.verification import VerifyOptions, verify_run

    options = VerifyOptions(sample=sample, seed=seed, counts=counts, **vars(files))
    found = verify_run(run, options)
    say = narration.Narrator(quiet)
    for note in found.notes:
        say.line(f"note: other than in the run: {note}")
    say.line(
        f"{found.predictions}: as the run wrote it; {found.reproduced:,} of {found.sampled:,} sampled rows come out"
        f" again (of {found.total:,}, seed {found.seed}), {found.identical:,} to the last digit; confidences differ by"
        f" {found.largest_difference:.1g} at most"
    )
    if as_json:
        terminal.show_json(found)
    if found.mismatches:
        image, reason = found.mismatches[0]
        raise VerificationError(
            f"{found.predictions}: {len(found.mismatches):,} of {found.sampled:,} sampled rows do not come out again;"
            f" first: {printable(image)}: {printable(reason)}"
        )
