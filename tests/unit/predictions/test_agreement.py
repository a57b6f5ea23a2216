from __future__ import annotations

from dataclasses import replace

import pytest
from scipy.stats import beta

from imbalance_perturb.files.typed_json import write_typed
from imbalance_perturb.predictions.agreement import Agreement

FOUND = Agreement(
    precision="auto",
    low_dtype="bf16",
    close_calls_only=False,
    notes=(),
    calibrated_on=64,
    safety=3.0,
    base_bound=0.1,
    bound=0.2,
    reach_slope=None,
    reach_spread=None,
    images=1000,
    recomputed=73,
    corrected=1000,
    sampled=120,
    base_agreed=120,
    agreed=120,
)


def test_one_sentence_says_what_it_came_to() -> None:
    """The sentence names format, share recomputed and the sampled labels, and what close calls saved."""
    assert FOUND.describe() == "bf16, 7.3% close calls recomputed in fp32, 120 of 120 sampled labels agree"
    close = replace(FOUND, close_calls_only=True, corrected=312)
    assert close.describe().startswith("bf16, 7.3% close calls recomputed in fp32, 31.2% of the images corrected")
    given_up = replace(FOUND, precision="fp32", low_dtype=None, recomputed=0, sampled=0, notes=("all in fp32",))
    assert given_up.describe() == "fp32; all in fp32"
    throughout = replace(FOUND, precision="bf16", recomputed=0, sampled=20, agreed=19)
    assert throughout.describe() == "bf16, 19 of 20 sampled labels agree"


def test_the_sample_bounds_the_disagreement() -> None:
    """The bound is Clopper and Pearson's for the sampled, of the images that were not recomputed."""
    assert FOUND.disagreement_at_most == pytest.approx((1 - 0.05 ** (1 / 120)) * 0.927)
    some = replace(FOUND, agreed=117)
    assert some.disagreement_at_most == pytest.approx(float(beta.ppf(0.95, 4, 117)) * 0.927)
    assert replace(FOUND, agreed=0).disagreement_at_most == 1
    assert replace(FOUND, sampled=0, agreed=0).disagreement_at_most is None
    assert replace(FOUND, sampled=0, agreed=0).sampled_agreement is None


def test_a_warning_needs_more_than_chance() -> None:
    """One label of many may differ without a warning; more than 1 in 1,000 would explain names the remedy."""
    assert FOUND.warning is None
    assert replace(FOUND, agreed=119).warning is None
    warning = str(replace(FOUND, agreed=117).warning)
    assert "3 of 120 sampled images differ" in warning
    assert "use --precision fp32 for its labels" in warning
    both = replace(FOUND, close_calls_only=True, agreed=110)
    assert "--precision fp32 and --no-close-calls-only" in str(both.warning)
    exact = replace(both, low_dtype=None, precision="fp32")
    assert "use --no-close-calls-only for" in str(exact.warning)


def test_json_has_the_shares() -> None:
    """The JSON form has every count, and the shares that follow; a run without images has no share."""
    data = write_typed(FOUND, {})
    assert data["share_recomputed"] == 0.073
    assert data["share_corrected"] == 1
    assert data["sampled_agreement"] == 1
    assert data["bound"] == 0.2
    nothing = replace(FOUND, images=0, recomputed=0, corrected=0, sampled=0, agreed=0, base_agreed=0)
    assert (nothing.share_recomputed, nothing.share_corrected) == (0, 0)
