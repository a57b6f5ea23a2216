"""Labels of the full computation for less: low precision first, and again in full where the label is a close call.

Neither shortcut may change a label. Low precision moves logits by a little, so only labels decided by a little are
computed again; the correction moves them by more, so with close calls only, images decided by a lot do without it.
How much 'a little' and 'a lot' are is measured before the run on images of it for which both are computed, and whose
rows are known then; they and a random sample through the run say how often the labels agreed after all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from imbalance_perturb.config.settings import PRECISIONS
from imbalance_perturb.errors import SettingsError
from imbalance_perturb.inference.batching import Passes
from imbalance_perturb.inference.calibration import BothWays, Sampled, Shortcuts, settle
from imbalance_perturb.inference.predicted import Predicted, put_together
from imbalance_perturb.inference.sampling import sample
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.predictions.agreement import Agreement
from imbalance_perturb.predictions.run_state import Bounds, PredictorState, Tally


class Begun(NamedTuple):
    """Images (n, ...) whose passes are in a GPU's queue: base and corrected logits (n, C), and (n,) which corrected.

    ``kept``: of the N images of the batch, ``None`` for those n, and of the others what is known of them already.
    ``compared``: of the N, whether their labels may have been compared before.
    """

    x: Tensor
    base: Tensor
    logits: Tensor
    corrected: Tensor
    kept: list[Predicted | None]
    compared: list[bool]


class Predictor:
    """Predicts batch after batch, and counts how it did.

    Args:
        reference: the correction in full precision, whose labels are wanted.
        low: the same correction around the network in low precision; not needed for ``fp32``.
        precision: ``fp32`` (the reference alone), ``auto`` (low precision, close calls by the reference), ``bf16``
            or ``fp16`` (low precision throughout).
        close_calls_only: correct only images whose label the correction may change.
        low_name: of the low-precision format, for the summary.
        batch_size: most images that go through a network at once, halved where memory runs out; ``None`` takes
            batches as they come. Larger batches than that are still worth giving: close calls are gathered over all
            of one.
        alike: whether batches of a multiple of four are filled up to one, so that an image's last digits do not
            depend on its batch.
        seed: of the sample.

    Where ``is_calibrated`` is true (``auto``, ``close_calls_only``), :meth:`calibrate` comes first, as long as
    ``needs_calibration`` is. ``compared``: names of images that may have been compared then, and are not sampled.

    Raises:
        SettingsError: if the precision is not known, or has no network to run.
    """

    def __init__(
        self,
        reference: PerturbedClassifier,
        low: PerturbedClassifier | None = None,
        *,
        precision: str = "fp32",
        close_calls_only: bool = False,
        low_name: str | None = None,
        batch_size: int | None = None,
        alike: bool = False,
        seed: int = 0,
    ) -> None:
        if precision not in PRECISIONS:
            raise SettingsError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
        if precision != "fp32" and low is None:
            raise SettingsError(f"precision is {precision}, but there is no network in low precision")
        self._reference, self._low = reference, low
        self._precision, self._low_name = precision, low_name or precision
        # Without a step there is no correction to leave out.
        self._shortcuts = Shortcuts(reference, precision, close_calls_only and reference.active)
        self._passes = Passes(batch_size, alike=alike)
        self._seed = seed
        self.is_calibrated = self.needs_calibration = precision == "auto" or self._shortcuts.close_calls_only
        self._bounds = Bounds()
        self._tally = Tally()
        self._kept: dict[str, Predicted] = {}
        self.compared: frozenset[str] = frozenset()

    @property
    def counts(self) -> ClassCounts:
        """Of the classes, in class-index order."""
        return self._reference.counts

    def calibrate(self, batches: Iterable[Sampled], *, ahead: int) -> None:
        """Measure the bounds on images like those to come, until they are settled or no image is left.

        What is computed of images of the run is kept, so that their rows cost nothing more. Images that either
        computation cannot handle are left out. Where too few are left, or too large a share of them are close calls,
        the shortcut is given up for the rest of the run and the summary says so.

        Args:
            batches: in an order that tells nothing of the images; no more are taken than are needed.
            ahead: images of the run.
        """
        self.needs_calibration = False
        found = BothWays(*[torch.empty(0, len(self.counts))] * 4)
        names: list[str | None] = []
        for batch in batches:
            both, usable = self._run_both(batch.x)
            found = BothWays.joined([found, both]) if names else both
            names += [name for name, one in zip(batch.names, usable.tolist(), strict=True) if one]
            if self._shortcuts.settled(found, ahead, len(batch.x)):
                break
        own = torch.tensor([name is not None for name in names], dtype=torch.bool)
        self._shortcuts, self._bounds, tally = settle(found, own, self._shortcuts)
        self._count(tally)
        # With close calls only a row begins with a plain pass, which none of these had.
        if not self._shortcuts.close_calls_only:
            rows = zip(names, *self._row_of(found), strict=True)
            self._kept = {name: Predicted(*row) for name, *row in rows if name is not None}

    def _row_of(self, found: BothWays) -> Predicted:
        """What the run makes of images both of whose computations are known."""
        active = torch.full((len(found.full),), self._reference.active)
        if not self._shortcuts.low:
            return Predicted(found.full_base, found.full, torch.zeros_like(active), active)
        refined = self._doubtful(found.base, found.logits)
        base, logits = (
            torch.where(refined[:, None], full.to(low), low)
            for full, low in ((found.full_base, found.base), (found.full, found.logits))
        )
        return Predicted(base, logits, refined, active)

    def predict(
        self,
        x: Tensor,
        stopwatch: Stopwatch | None = None,
        positions: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> Predicted:
        """Predict base and corrected logits of a batch (N, ...).

        Args:
            x: the inputs, float32.
            stopwatch: gets the seconds of the stages.
            positions: of each image in the run, which decide the sample; by default images come one after the other.
            names: of the images, by which those are known that it was calibrated on.

        Raises:
            ModelGradientError: if the reference has no usable gradient for an image of the batch; nothing is counted.
        """
        stopwatch = stopwatch or Stopwatch()
        return self.finish(self.begin(x, stopwatch, names), stopwatch, positions)

    def begin(self, x: Tensor, stopwatch: Stopwatch, names: Sequence[str] | None = None) -> Begun:
        """Put the passes of a batch (N, ...) into a GPU's queue, where nothing is asked of it before: see `predict`."""
        assert not self.needs_calibration, "calibrate() comes first"
        names = names or [""] * len(x)
        kept = [self._kept.get(name) for name in names]
        if any(kept):
            x = _rows_of(x, torch.tensor([one is None for one in kept]))
        return Begun(x, *self._compute(x, stopwatch), kept, [name in self.compared for name in names])

    def finish(self, begun: Begun, stopwatch: Stopwatch, positions: Sequence[int] | None = None) -> Predicted:
        """Wait for a batch that was begun, and recompute what is to be: see `predict`."""
        x, corrected, kept = begun.x, begun.corrected, begun.kept
        base, logits = _on_host(begun.base, begun.logits)
        refined = self._doubtful(base, logits)
        if positions is None:
            positions = range(self._tally.images, self._tally.images + len(kept))
        sampled = sample(self._seed, positions, often=not self.is_calibrated) & ~torch.tensor(begun.compared)
        sampled = sampled[torch.tensor([one is None for one in kept])]
        sampled &= ~refined & ~self._shortcuts.are_full(corrected)
        again = refined | sampled
        tally = Tally(sampled=int(sampled.sum()))
        if again.any():
            with stopwatch.timing("refinement", x.device):
                both = self._passes.run_in_parts(self._reference.predict_both, _rows_of(x, again))
            full_base, full = _on_host(*both)
            among = sampled[again]
            base_same = base[sampled].argmax(1) == full_base[among].argmax(1)
            same = logits[sampled].argmax(1) == full[among].argmax(1)
            tally.base_agreed, tally.agreed = int(base_same.sum()), int((base_same & same).sum())
            base[refined], logits[refined] = full_base[~among].to(base), full[~among].to(logits)
            corrected = corrected | (refined & self._reference.active)
        found = put_together(Predicted(base, logits, refined, corrected), kept)
        tally.images, tally.recomputed = len(kept), int(found.refined.sum())
        tally.corrected = int(found.corrected.sum())
        self._count(tally)
        return found

    def summary(self) -> Agreement:
        """Summarise the run so far: its counts and the bounds that decided."""
        return Agreement.of_state(self.state(), self._precision, self._low_name)

    @property
    def most_at_once(self) -> int | None:
        """How many images go through at once: the batch size, or less after memory has run out."""
        return self._passes.limit.most

    def state(self) -> PredictorState:
        """What a run that goes on later needs (see :meth:`restore`)."""
        return PredictorState(
            low=self._shortcuts.low,
            close_calls_only=self._shortcuts.close_calls_only,
            bounds=deepcopy(self._bounds),
            tally=replace(self._tally),
            most_at_once=self._passes.limit.most,
        )

    def restore(self, state: PredictorState) -> None:
        """Take up where a predictor of the same arguments stood, calibrated, when :meth:`state` was asked."""
        precision = self._precision if state.low else "fp32"
        self._shortcuts = Shortcuts(self._reference, precision, state.close_calls_only)
        self._bounds, self._tally = deepcopy(state.bounds), replace(state.tally)
        self._passes.limit.most = state.most_at_once
        self.needs_calibration = False

    @property
    def _network(self) -> PerturbedClassifier:
        return self._low if self._low is not None and self._shortcuts.low else self._reference

    def _compute(self, x: Tensor, stopwatch: Stopwatch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute base and corrected logits, recomputing nothing, and (N,) for which images the correction ran."""
        if not len(x):  # all were kept
            return torch.empty(0, len(self.counts)), torch.empty(0, len(self.counts)), torch.empty(0, dtype=torch.bool)
        network = self._network
        if not self._shortcuts.close_calls_only:
            base, logits = self._run(x, stopwatch)
            return base, logits, torch.full((len(x),), network.active)
        with stopwatch.timing("plain pass", x.device):
            (base,) = _on_host(*self._passes.run_in_parts(lambda part: (network.predict_plain(part),), x))
        logits = network.adjust(base).clone()  # rows are replaced below
        # Close calls of the precision go to the reference, with the correction, in any case.
        corrected = self._shortcuts.may_change(self._bounds, logits) & ~self._doubtful(base, logits)
        if corrected.any():
            # The base logits stay those of the plain pass, on which it was decided.
            logits[corrected] = _on_host(*self._run(_rows_of(x, corrected), stopwatch))[1]
        return base, logits, corrected

    def _run(self, x: Tensor, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        """Compute base and corrected logits in the precision of the run, as new tensors, a batch at a time."""
        if not self._shortcuts.low:
            return self._passes.predict_both(self._reference, x, stopwatch)
        # No usable gradient may be too much for the format alone.
        return self._passes.attempt_both(self._network, x, stopwatch)

    def _doubtful(self, base: Tensor, logits: Tensor) -> Tensor:
        return self._shortcuts.doubtful(self._bounds, base, logits)

    def _run_both(self, x: Tensor) -> tuple[BothWays, Tensor]:
        """Compute images (N, ...) both ways; of the n that the reference can handle, and (N,) which these are."""
        full = _on_host(*self._passes.attempt_both(self._reference, x, Stopwatch()))
        rows = _on_host(*self._run(x, Stopwatch())) if self._shortcuts.low else full
        usable = torch.isfinite(full[0]).all(1) & torch.isfinite(full[1]).all(1)
        return BothWays(*full, *rows).some(usable), usable

    def _count(self, tally: Tally) -> None:
        for name, value in vars(tally).items():
            setattr(self._tally, name, getattr(self._tally, name) + value)


def _on_host(*logits: Tensor) -> tuple[Tensor, ...]:
    """Bring tensors (N, C) to the CPU, all at once: a GPU is waited for each time that it is asked for one."""
    if logits[0].device.type == "cpu":
        return logits
    return tuple(torch.stack(logits).cpu().unbind())


def _rows_of(x: Tensor, chosen: Tensor) -> Tensor:
    """The images of a batch (N, ...) that are true in (N,), without asking a GPU how many these are."""
    if x.device.type == "cpu":
        return x[chosen]
    return x.index_select(0, chosen.nonzero().squeeze(1).pin_memory().to(x.device, non_blocking=True))
