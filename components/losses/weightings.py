"""Weights of the diffusion loss by log-SNR: w(λ) multiplies ‖ε - ε̂‖², which is SNR ‖x - x̂‖².

Each is a function of λ (B,) that returns (B,), both float64. With t uniform, -½ λ'(t) ‖ε - ε̂‖² would be the bound, so
every weighting here is that bound reweighted (Kingma & Gao 2023, 2303.00848).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

__all__ = ["WeightFunction", "edm", "min_snr", "p2", "simple"]

WeightFunction = Callable[[Tensor], Tensor]


def simple(log_snr: Tensor) -> Tensor:
    """Return 1: L_simple on ε (Ho 2020, 2006.11239, eq. 14)."""
    return torch.ones_like(log_snr)


def min_snr(gamma: float = 5.0) -> WeightFunction:
    """Return min(SNR, γ)/SNR on the loss of ε, so min(SNR, γ) on that of x (Hang 2023, 2303.09556)."""
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0; got {gamma}")
    return partial(_min_snr, gamma=gamma)


def _min_snr(log_snr: Tensor, gamma: float) -> Tensor:
    return (gamma * torch.exp(-log_snr)).clamp(max=1)


def p2(gamma: float = 1.0, k: float = 1.0) -> WeightFunction:
    """Return 1/(k + SNR)^γ on the loss of ε (Choi 2022, 2204.00227, eq. 8)."""
    if gamma < 0 or not k > 0:
        raise ValueError(f"gamma must not be negative and k must be above 0; got {gamma} and {k}")
    return partial(_p2, gamma=gamma, k=k)


def _p2(log_snr: Tensor, gamma: float, k: float) -> Tensor:
    return (k + log_snr.exp()).pow(-gamma)


def edm(sigma_data: float = 0.5) -> WeightFunction:
    """Return (σ² + σ_d²)/σ_d² on the loss of ε, σ² = 1/SNR: (σ² + σ_d²)/(σ σ_d)² on that of x.

    Karras 2022, 2206.00364, table 1.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be above 0; got {sigma_data}")
    return partial(_edm, sigma_data=sigma_data)


def _edm(log_snr: Tensor, sigma_data: float) -> Tensor:
    return 1 + torch.exp(-log_snr) / sigma_data**2
