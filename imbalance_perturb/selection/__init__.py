"""Labelled images into the choice of a correction."""
