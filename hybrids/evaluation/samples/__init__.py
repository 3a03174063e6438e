"""Comparison of samples with real examples: distances, nearest neighbours, sharpness, predictions of a classifier."""
