"""Losses other than likelihoods: adversarial and perceptual losses, weightings and random times of diffusion losses."""

from .adversarial import (
    AdversarialLoss,
    gradient_penalty,
    hinge,
    least_squares,
    minimax,
    non_saturating,
    relativistic,
    squared_gradient,
    wasserstein,
)
from .perceptual import Perceptual, RandomFeatures
from .times import LogNormalTimes, LossAwareTimes, TimeSampler, UniformLogSNRTimes, UniformTimes, low_discrepancy
from .weightings import WeightFunction, edm, min_snr, p2, simple

__all__ = [
    "AdversarialLoss",
    "LogNormalTimes",
    "LossAwareTimes",
    "Perceptual",
    "RandomFeatures",
    "TimeSampler",
    "UniformLogSNRTimes",
    "UniformTimes",
    "WeightFunction",
    "edm",
    "gradient_penalty",
    "hinge",
    "least_squares",
    "low_discrepancy",
    "min_snr",
    "minimax",
    "non_saturating",
    "p2",
    "relativistic",
    "simple",
    "squared_gradient",
    "wasserstein",
]
