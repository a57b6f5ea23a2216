"""Hypothesis strategies that several test files share."""

from __future__ import annotations

from hypothesis import strategies as st

#: Training counts of 2 to 12 classes, not all equal.
imbalanced_counts = st.lists(st.integers(1, 10**6), min_size=2, max_size=12).filter(lambda c: len(set(c)) > 1)
