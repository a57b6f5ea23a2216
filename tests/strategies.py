"""Hypothesis strategies that several test files share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

#: Training counts of 2 to 12 classes, not all equal.
imbalanced_counts = st.lists(st.integers(1, 10**6), min_size=2, max_size=12).filter(lambda c: len(set(c)) > 1)


@st.composite
def contests(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """(N,) labels of at least two classes, (N, K) predictions of the same images, and C: classes may be absent."""
    classes, images, candidates = draw(st.integers(2, 6)), draw(st.integers(2, 30)), draw(st.integers(1, 4))
    indices = st.integers(0, classes - 1)
    labels = draw(st.lists(indices, min_size=images, max_size=images).filter(lambda found: len(set(found)) > 1))
    columns = st.lists(indices, min_size=candidates, max_size=candidates)
    preds = draw(st.lists(columns, min_size=images, max_size=images))
    return np.array(labels), np.array(preds), classes
