"""Prediction rows on disk: formats, run files, journals, parts; knows no torch."""
