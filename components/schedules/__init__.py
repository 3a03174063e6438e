"""Noise schedules: how much of x is left in x_t = α_t x + σ_t ε, for t from 0 (clean) to 1 (noise).

All coefficients are computed in float64 and cast once, where they meet x. t is (), (B,) or a float.
Notation: λ_t = log(α_t²/σ_t²), the log-SNR (VDM's γ is -λ); β and ᾱ = α² are those of the DDPM chain.
"""

from .base import NoiseLevel, PosteriorCoefficients, Schedule, Time, over
from .continuous import (
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LogSNRLinearSchedule,
    ShiftedSchedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from .learned import LearnedSchedule
from .tables import BETA_SCHEDULES, BetaSchedule

__all__ = [
    "BETA_SCHEDULES",
    "BetaSchedule",
    "CosineSchedule",
    "EDMSchedule",
    "FlowSchedule",
    "LearnedSchedule",
    "LogSNRLinearSchedule",
    "NoiseLevel",
    "PosteriorCoefficients",
    "Schedule",
    "ShiftedSchedule",
    "Time",
    "VarianceExplodingSchedule",
    "VariancePreservingSchedule",
    "over",
]
