"""What people read on stderr while a command runs: lines and progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from imbalance_perturb.cli import terminal
from imbalance_perturb.data.picture_formats import is_unread
from imbalance_perturb.errors import printable

if TYPE_CHECKING:
    from imbalance_perturb.config.settings import DebiasSettings
    from imbalance_perturb.data.image_files import ImageList
    from imbalance_perturb.inference.folder_prediction import RunSummary
    from imbalance_perturb.inference.inspection import Inspection
    from imbalance_perturb.inference.pipeline import Pipeline
    from imbalance_perturb.models import ModelInfo, ProbeResult
    from imbalance_perturb.predictions.shards import Shard

#: Without a terminal, a plain line of progress is printed this often.
_SECONDS_BETWEEN_LINES = 10.0


class Narrator:
    """Reports on stderr what a command does; silent where ``quiet``."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def line(self, text: str) -> None:
        """Say one line."""
        if not self._quiet:
            terminal.say(text)

    def recipe(self, path: Path | None) -> None:
        """Say which recipe is read, so that none takes effect unseen."""
        if path is not None:
            self.line(f"recipe: {path}")

    def images(self, images: ImageList, shard: Shard | None = None) -> None:
        """Say how many images there are, and what else was left aside."""
        part = "" if shard is None else f"part {shard}: {len(images):,} of "
        self.line(f"images: {part}{len(images.everything):,} in {images.source}")
        self.left_aside(images)

    def left_aside(self, images: ImageList) -> None:
        """Say what else is in the folder."""
        for line in images.describe_left_aside():
            self.line(f"  {line}")

    def counted(self, images: ImageList) -> None:
        """Say what else is in a folder of class folders beside the images that are counted."""
        for line in images.describe_left_aside():
            self.line(line)
        if unread := sum(map(is_unread, images.names)):
            self.line(f"{unread:,} pictures of formats that are not read are not counted")

    def pipeline(self, pipeline: Pipeline, correction: str | None = None) -> None:
        """Say what will be done to an image, and where, before it starts.

        Args:
            pipeline: what is going to run.
            correction: the line on the correction where the settings alone do not say it: many are to be tried.
        """
        execution = pipeline.execution
        self.model(pipeline.model.info, pipeline.probe)
        self.line(f"each image: {pipeline.preprocessing.describe()}")
        self.line(_describe_correction(pipeline) if correction is None else correction)
        self.line(
            f"running on {execution.device_name} ({execution.device}), {execution.describe_precision()}, batches of"
            f" {execution.batch_size}, {execution.workers} workers; network: {pipeline.optimisation.path}"
        )

    def model(self, info: ModelInfo, probe: ProbeResult) -> None:
        """Say what the model file holds, and every assumption made about it."""
        self.line(
            f"model: {info.path}: {info.format}{f' {info.arch}' if info.arch else ''}, {info.num_classes} classes,"
            f" {info.parameters / 1e6:.1f} M parameters (tried in {probe.seconds:.1f} s)"
        )
        for note in info.notes:
            self.line(f"  note: {note}")
        self.assumptions(info.assumptions)

    def assumptions(self, assumptions: Sequence[str]) -> None:
        """Warn of what a model file does not show and would change predictions; a run ends with these lines, too."""
        for assumption in assumptions:
            self.line(f"warning: {assumption}")

    def inspection(self, inspection: Inspection) -> None:
        """Say what the model is and what will be done to an image."""
        self.model(inspection.model, inspection.probe)
        self.line(f"each image: {inspection.preprocessing.describe()}")

    def summary(self, summary: RunSummary) -> None:
        """Say how a run ended, with the first errors in full."""
        share = f" ({summary.changed / summary.done:.1%})" if summary.done else ""
        where = f" -> {summary.predictions}, {summary.run}" if summary.predictions else ""
        if summary.resumed:
            self.line(f"resumed: {summary.resumed:,} of {summary.total:,} images had been done before")
        self.line(
            f"{summary.done:,} predicted, {summary.changed:,} changed by the correction{share},"
            f" {summary.failed:,} failed; {summary.seconds:.1f} s, {summary.images_per_second:.1f} images/s{where}"
        )
        if summary.agreement is not None:
            self.line(f"precision: {summary.agreement.describe()}")
            if summary.agreement.warning is not None:
                self.line(f"warning: {summary.agreement.warning}")
        for warning in summary.warnings:
            self.line(f"warning: {warning}")
        for image, error in summary.first_errors:
            # Here, so that a line end in a name is seen to be one.
            self.line(f"  failed: {printable(image)}: {printable(error)}")
        if summary.failed > len(summary.first_errors):
            more = f"and {summary.failed - len(summary.first_errors)} more" if summary.first_errors else "why"
            self.line(f"  {more}: see the column 'error'")
        self.assumptions(summary.assumptions)

    @contextmanager
    def progress(self, total: int) -> Iterator[Progress]:
        """Yield a function to call with the number of images just done."""
        if self._quiet:
            yield Progress(total)
        elif sys.stderr.isatty():
            with _Bar(total) as bar:
                yield bar
        else:
            yield _Lines(self, total)


def describe_eps_space(debias: DebiasSettings) -> str:
    """Name the units of eps."""
    return "model input" if debias.eps_space == "input" else "[0, 1] pixels"


def _describe_correction(pipeline: Pipeline) -> str:
    d = pipeline.settings.debias
    if not pipeline.debiased.active:
        return "correction: none (eps 0)" + (f", but logit adjustment with tau {d.tau:g}" if d.tau else "")
    steps = f", {d.steps} steps" if d.steps > 1 else ""
    clip = ", clipped to [0, 1] pixels" if d.clip else ""
    tau = f", tau {d.tau:g}" if d.tau else ""
    return (
        f"correction: eps {d.eps:g} in units of the {describe_eps_space(d)}{steps}{clip}, T {d.temperature:g},"
        f" {d.loss}, target {d.target}{tau}"
    )


class Progress:
    """Counts images; called with the number of those just done. This one says nothing."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self._skipped = total, 0, 0
        self._start = time.monotonic()

    def __call__(self, advanced: int) -> None:
        """Count images that were just done."""
        self.done += advanced
        self.show()

    def skip(self, rows: int) -> None:
        """Count images that an earlier run had done; they do not count for the rate."""
        self._skipped = rows
        self(rows)

    def show(self) -> None:
        """Show how many images are done."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return (self.done - self._skipped) / max(time.monotonic() - self._start, 1e-9)


class _Lines(Progress):
    def __init__(self, narrator: Narrator, total: int) -> None:
        super().__init__(total)
        self._narrator, self._last = narrator, self._start

    def show(self) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES and self.done < self.total:
            self._last = now
            left = f", {(self.total - self.done) / self.rate:.0f} s left" if self.rate else ""
            self._narrator.line(f"{self.done:,} of {self.total:,} images, {self.rate:.1f} images/s{left}")


class _Bar(Progress):
    def __enter__(self) -> _Bar:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        from imbalance_perturb.reports.terminal import new_console

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>6.1f} images/s"),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(*columns, console=new_console(stderr=True))
        self._bar.start()
        self._task = self._bar.add_task("", total=self.total, rate=0.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self) -> None:
        self._bar.update(self._task, completed=self.done, rate=self.rate)
