"""The same network for less: folded, fused, lowered, compiled, each proved on a trial batch."""
