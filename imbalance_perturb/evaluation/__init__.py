"""Predictions and labels into figures; knows no torch."""
