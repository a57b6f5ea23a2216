"""Labels of the full computation for less: low precision first, and again in full where the label is a close call.

Neither shortcut may change a label. Low precision moves logits by a little, so only labels decided by a little are
computed again; the correction moves them by more, so with close calls only, images decided by a lot do without it.
How much 'a little' and 'a lot' are is measured before the run on images for which both are computed, and a random
sample through the run says how often the labels agreed after all.
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
from imbalance_perturb.inference.close_calls import Reach, are_doubtful, close_bound, fit_reach
from imbalance_perturb.inference.sampling import sample
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.predictions.agreement import Agreement
from imbalance_perturb.predictions.run_state import Bounds, PredictorState, Tally

#: Fewest images that bounds can be measured on.
FEWEST_CALIBRATED = 16

#: Share of close calls from which a shortcut is given up: it would cost as much as it saves, and a few images do not
#: describe well by how much logits move where that is much beside the margins.
WORTHWHILE = 0.4


class Predicted(NamedTuple):
    """The logits of a batch, and how they were computed.

    All on the CPU. ``base``, ``logits``: (N, C), plain and corrected; ``refined``: (N,) bool, whether both were
    recomputed by the full computation; ``corrected``: (N,) bool, whether the correction was run (else ``logits`` are
    those of the plain model, with the classifier's tau).
    """

    base: Tensor
    logits: Tensor
    refined: Tensor
    corrected: Tensor


class Begun(NamedTuple):
    """Images (N, ...) whose passes are in a GPU's queue: base and corrected logits (N, C), and (N,) which corrected."""

    x: Tensor
    base: Tensor
    logits: Tensor
    corrected: Tensor


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

    Where ``needs_calibration`` is true (``auto``, ``close_calls_only``), :meth:`calibrate` comes first.

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
        self._reference = reference
        self._low = None if precision == "fp32" else low
        self._precision = precision
        self._low_name = low_name or precision
        # Without a step there is no correction to leave out.
        self._close_calls_only = close_calls_only and reference.active
        self._passes = Passes(batch_size, alike=alike)
        self._seed = seed
        self.needs_calibration = precision == "auto" or self._close_calls_only
        self._bounds = Bounds()
        self._tally = Tally()

    @property
    def counts(self) -> ClassCounts:
        """Of the classes, in class-index order."""
        return self._reference.counts

    def calibrate(self, xs: Iterable[Tensor]) -> None:
        """Measure the bounds on batches (N, ...) of images like those to come.

        Images that either computation cannot handle are left out. Where too few are left, or too large a share of
        them are close calls, the shortcut is given up for the rest of the run and the summary says so.
        """
        self.needs_calibration = False
        full_base, full, base, logits = self._run_both(xs)
        finite = torch.isfinite(base).all(1) & torch.isfinite(logits).all(1)
        usable = int(finite.sum())
        self._bounds.calibrated_on = usable
        if usable < FEWEST_CALIBRATED:
            self._give_up_precision(f"only {usable} images could be calibrated on: all in fp32")
            self._give_up_close_calls(f"only {usable} images could be calibrated on: all corrected")
            return
        if self._precision == "auto":
            self._bounds.base = close_bound(base[finite], full_base[finite])
            self._bounds.corrected = close_bound(logits[finite], full[finite])
            share = float(self._doubtful(base, logits).float().mean())
            if share > WORTHWHILE:
                self._give_up_precision(f"{share:.0%} of the images would be close calls: all in fp32")
                base, finite = full_base, torch.ones_like(finite)
        if self._close_calls_only:
            adjusted = self._reference.adjust(base)[finite]
            self._bounds.reach = fit_reach(adjusted, full[finite], self._reference.target)
            share = float(self._may_change(adjusted).float().mean())
            if share > WORTHWHILE:
                self._give_up_close_calls(f"the correction might change {share:.0%} of the labels: all corrected")

    def predict(
        self, x: Tensor, stopwatch: Stopwatch | None = None, positions: Sequence[int] | None = None
    ) -> Predicted:
        """Predict base and corrected logits of a batch (N, ...).

        Args:
            x: the inputs, float32.
            stopwatch: gets the seconds of the stages.
            positions: of each image in the run, which decide the sample; by default images come one after the other.

        Raises:
            ModelGradientError: if the reference has no usable gradient for an image of the batch; nothing is counted.
        """
        stopwatch = stopwatch or Stopwatch()
        return self.finish(self.begin(x, stopwatch), stopwatch, positions)

    def begin(self, x: Tensor, stopwatch: Stopwatch) -> Begun:
        """Put the passes of a batch (N, ...) into a GPU's queue, where nothing is asked of it before: see `predict`."""
        assert not self.needs_calibration, "calibrate() comes first"
        return Begun(x, *self._compute(x, stopwatch))

    def finish(self, begun: Begun, stopwatch: Stopwatch, positions: Sequence[int] | None = None) -> Predicted:
        """Wait for a batch that was begun, and recompute what is to be: see `predict`."""
        x, corrected = begun.x, begun.corrected
        base, logits = _on_host(begun.base, begun.logits)
        refined = self._doubtful(base, logits)
        if positions is None:
            positions = range(self._tally.images, self._tally.images + len(x))
        sampled = sample(self._seed, positions) & ~refined & ~self._is_full(corrected)
        again = refined | sampled
        tally = Tally(images=len(x), recomputed=int(refined.sum()), sampled=int(sampled.sum()))
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
        tally.corrected = int(corrected.sum())
        self._count(tally)
        return Predicted(base, logits, refined, corrected)

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
            low=self._low is not None,
            close_calls_only=self._close_calls_only,
            bounds=deepcopy(self._bounds),
            tally=replace(self._tally),
            most_at_once=self._passes.limit.most,
        )

    def restore(self, state: PredictorState) -> None:
        """Take up where a predictor of the same arguments stood, calibrated, when :meth:`state` was asked."""
        self._low = self._low if state.low else None
        self._close_calls_only = state.close_calls_only
        self._bounds, self._tally = deepcopy(state.bounds), replace(state.tally)
        self._passes.limit.most = state.most_at_once
        self.needs_calibration = False

    def _compute(self, x: Tensor, stopwatch: Stopwatch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute base and corrected logits, recomputing nothing, and (N,) for which images the correction ran."""
        network = self._low or self._reference
        if not self._close_calls_only:
            base, logits = self._run(x, stopwatch)
            return base, logits, torch.full((len(x),), network.active)
        with stopwatch.timing("plain pass", x.device):
            (base,) = _on_host(*self._passes.run_in_parts(lambda part: (network.predict_plain(part),), x))
        logits = network.adjust(base).clone()  # rows are replaced below
        # Close calls of the precision go to the reference, with the correction, in any case.
        corrected = self._may_change(logits) & ~self._doubtful(base, logits)
        if corrected.any():
            # The base logits stay those of the plain pass, on which it was decided.
            logits[corrected] = _on_host(*self._run(_rows_of(x, corrected), stopwatch))[1]
        return base, logits, corrected

    def _run(self, x: Tensor, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        """Compute base and corrected logits in the precision of the run, as new tensors, a batch at a time."""
        if self._low is None:
            return self._passes.predict_both(self._reference, x, stopwatch)
        # No usable gradient may be too much for the format alone.
        return self._passes.attempt_both(self._low, x, stopwatch)

    def _doubtful(self, base: Tensor, logits: Tensor) -> Tensor:
        """Whether only the reference can decide the labels."""
        if self._low is None:
            return torch.zeros(len(base), dtype=torch.bool)
        return are_doubtful(self._bounds, base, logits)

    def _may_change(self, logits: Tensor) -> Tensor:
        assert self._bounds.reach is not None, "close calls are only told after calibration"
        return Reach(*self._bounds.reach).may_change(logits, self._reference.target)

    def _is_full(self, corrected: Tensor) -> Tensor:
        """Whether (N,) the logits are those of the full computation already, without being recomputed."""
        if self._low is not None:
            return torch.zeros_like(corrected)
        return corrected if self._reference.active else torch.ones_like(corrected)

    def _run_both(self, xs: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute base and corrected logits of the reference, then those in the precision of the run.

        (n, C) each, of the images that the reference can handle; in low precision they may not be finite.
        """
        nothing = torch.empty(0, len(self.counts))
        found: list[tuple[Tensor, ...]] = [(nothing,) * 4]
        for x in xs:
            full = _on_host(*self._passes.attempt_both(self._reference, x, Stopwatch()))
            rows = full if self._low is None else _on_host(*self._run(x, Stopwatch()))
            usable = torch.isfinite(full[0]).all(1) & torch.isfinite(full[1]).all(1)
            found.append(tuple(logits[usable] for logits in (*full, *rows)))
        full_base, full_logits, base, logits = (
            torch.cat(parts) for parts in zip(*found[len(found) > 1 :], strict=True)
        )
        return full_base, full_logits, base, logits

    def _give_up_precision(self, why: str) -> None:
        if self._precision == "auto":
            self._low, self._bounds.base, self._bounds.corrected = None, None, None
            self._bounds.notes.append(why)

    def _give_up_close_calls(self, why: str) -> None:
        if self._close_calls_only:
            self._close_calls_only = False
            self._bounds.notes.append(why)

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
