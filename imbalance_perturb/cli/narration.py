"""What people read on stderr while a command runs: lines and progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imbalance_perturb.cli import terminal
from imbalance_perturb.data.picture_formats import is_unread
from imbalance_perturb.errors import first_few, printable
from imbalance_perturb.inference.progress import Progress

if TYPE_CHECKING:
    from imbalance_perturb.config.settings import DebiasSettings
    from imbalance_perturb.data.image_files import ImageList
    from imbalance_perturb.inference.folder_prediction import RunSummary
    from imbalance_perturb.inference.inspection import Inspection
    from imbalance_perturb.inference.progress import LoadedPipeline
    from imbalance_perturb.models import ModelInfo
    from imbalance_perturb.predictions.making import ModelEntry, StepStrength
    from imbalance_perturb.predictions.shards import Shard

#: Without a terminal, a plain line of progress is printed this often.
_SECONDS_BETWEEN_LINES = 10.0


class Narrator(Progress):
    """Reports on stderr what a command does; silent where ``quiet``."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._counter = _Counter(0)

    def line(self, text: str) -> None:
        """Say one line."""
        if not self._quiet:
            terminal.say(text)

    def recipe(self, path: Path | None) -> None:
        """Say which recipe is read, so that none takes effect unseen."""
        if path is not None:
            self.line(f"recipe: {path}")

    def found(self, images: ImageList, shard: Shard | None = None) -> None:
        """Say how many images there are, and what else was left aside."""
        part = "" if shard is None else f"part {shard}: {len(images):,} of "
        self.line(f"images: {part}{len(images.everything):,} in {images.describe_source()}")
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

    def cluster(self, text: str) -> None:
        """Say what the work is spread over."""
        self.line(text)

    def loaded(self, pipeline: LoadedPipeline) -> None:
        """Say what will be done to an image, and where, before it starts."""
        self.model(pipeline.model, pipeline.probe_seconds)
        for note in pipeline.counts_notes:
            self.line(f"note: {note}")
        self.line(f"each image: {pipeline.preprocessing}")
        self.line(self.correction(pipeline))
        self.line(
            f"running on {pipeline.device_name} ({pipeline.device}), {pipeline.precision}, batches of"
            f" {pipeline.batch_size}, {pipeline.workers} workers; network: {pipeline.network}"
        )

    def model(self, info: ModelInfo | ModelEntry, seconds: float) -> None:
        """Say what the model file holds, and every assumption made about it."""
        self.line(
            f"model: {info.path}: {info.format}{f' {info.arch}' if info.arch else ''}, {info.num_classes} classes,"
            f" {info.parameters / 1e6:.1f} M parameters (tried in {seconds:.1f} s)"
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
        self.model(inspection.model, inspection.probe.seconds)
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
        if summary.strength is not None:
            whole = "" if summary.strength >= 0.95 else "; --eps auto takes all of it"
            self.line(
                f"strength: the step takes {summary.strength:.2g} of the log prior from the logits of the median"
                f" image{whole}"
            )
        for warning in summary.warnings:
            self.line(f"warning: {warning}")
        for image, error in summary.first_errors:
            # Here, so that a line end in a name is seen to be one.
            self.line(f"  failed: {printable(image)}: {printable(error)}")
        if summary.failed > len(summary.first_errors):
            more = f"and {summary.failed - len(summary.first_errors)} more" if summary.first_errors else "why"
            self.line(f"  {more}: see the column 'error'")
        for note in summary.notes:
            self.line(f"note: {note}")
        self.assumptions(summary.assumptions)

    def started(self, total: int, done: int = 0) -> None:
        """Show a bar on a terminal, lines elsewhere."""
        if not self._quiet:
            self._counter = _Bar(total, done) if sys.stderr.isatty() else _Lines(self, total, done)

    def advance(self, n: int) -> None:
        """Move the bar, or say a line now and then."""
        self._counter.advance(n)

    def workers(self, at_work: int, wanted: int) -> None:
        """Show beside the images per second how many workers of a cluster they are of."""
        self._counter.workers = f", {at_work} of {wanted} workers"

    def ended(self) -> None:
        """Leave the bar where it is."""
        self._counter.close()

    def correction(self, pipeline: LoadedPipeline) -> str:
        """Describe the correction in a line; others do where the settings alone do not say it: many are to be tried."""
        d = pipeline.settings.debias
        shares = describe_prior(d)
        adjusted = f"logit adjustment, tau {d.used_tau:g}" if d.used_tau and d.method != "tau-norm" else ""
        if not pipeline.active:
            what = {
                "tau-norm": f"tau-normalisation, tau {d.used_tau:g}",
                "offsets": "offsets of the logits",
                "none": "none",
            }.get(d.method, adjusted or "none")
            eps = " (eps 0)" if d.moves_input else ""
            return f"correction: {what}{eps}{shares if what == adjusted else ''}"
        steps = f", {d.steps} steps" if d.steps > 1 else ""
        clip = ", clipped to [0, 1] pixels" if d.clip else ""
        tau = f"; {adjusted}" if adjusted else ""
        auto = "" if pipeline.strength is None else f" ({describe_strength(pipeline.strength)})"
        if not d.moves_input:
            return f"correction: {d.method}, in the file"
        return (
            f"correction: eps {d.eps:g}{auto} in units of the {describe_eps_space(d)}{steps}{clip},"
            f" T {d.temperature:g}, {d.loss}, target {d.target}{tau}{shares}"
        )


def describe_strength(strength: StepStrength) -> str:
    """Say what auto came to."""
    return (
        f"{strength.asked}: {strength.full_eps:g} takes the whole log prior from the logits of the median of"
        f" {strength.images} images"
    )


def describe_prior(debias: DebiasSettings) -> str:
    """Name the class shares that are corrected for, where they are not equal ones."""
    if not isinstance(debias.prior, Mapping):
        return ""
    return f", for class shares {first_few([f'{name} {share:.3g}' for name, share in debias.prior.items()], 12)}"


def describe_eps_space(debias: DebiasSettings) -> str:
    """Name the units of eps."""
    if debias.hidden:
        return f"output of {debias.perturb_at}"
    return "model input" if debias.eps_space == "input" else "[0, 1] pixels"


class _Counter:
    """Counts images, and says nothing; those ``done`` before tell nothing of how fast it goes."""

    workers = ""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.done, self._skipped = total, done, done
        self._start = time.monotonic()

    def advance(self, n: int) -> None:
        self.done += n
        self.show()

    def show(self) -> None:
        """Show how many images are done."""

    def close(self) -> None:
        """Tell no more."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return (self.done - self._skipped) / max(time.monotonic() - self._start, 1e-9)


class _Lines(_Counter):
    def __init__(self, narrator: Narrator, total: int, done: int) -> None:
        super().__init__(total, done)
        self._narrator, self._last = narrator, self._start

    def show(self) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES and self.done < self.total:
            self._last = now
            left = f", {(self.total - self.done) / self.rate:.0f} s left" if self.rate else ""
            self._narrator.line(f"{self.done:,} of {self.total:,} images, {self.rate:.1f} images/s{self.workers}{left}")


class _Bar(_Counter):
    def __init__(self, total: int, done: int) -> None:
        super().__init__(total, done)
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        from imbalance_perturb.reports.terminal import new_console

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>6.1f} images/s{task.fields[workers]}"),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(*columns, console=new_console(stderr=True))
        self._bar.start()
        self._task = self._bar.add_task("", total=self.total, completed=self.done, rate=0.0, workers="")

    def close(self) -> None:
        self._bar.stop()

    def show(self) -> None:
        self._bar.update(self._task, completed=self.done, rate=self.rate, workers=self.workers)
