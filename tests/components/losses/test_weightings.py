"""Weights of the diffusion loss by log-SNR."""

import math

import pytest
import torch
from answers import F64

from components.losses import edm, min_snr, p2, simple

LAMBDA = torch.linspace(-20, 20, 81, dtype=F64)
SNR = LAMBDA.exp()
EVERY = pytest.mark.parametrize(
    "weight",
    [simple, min_snr(), min_snr(0.3), p2(), p2(0.5, 2.0), edm(), edm(1.7)],
    ids=["simple", "min_snr", "min_snr-0.3", "p2", "p2-0.5", "edm", "edm-1.7"],
)


@EVERY
def test_a_weight_is_one_positive_number_an_example(weight):
    w = weight(LAMBDA)
    assert w.shape == LAMBDA.shape and w.dtype == F64 and (w > 0).all() and w.isfinite().all()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0])
def test_min_snr_is_its_formula(gamma):
    torch.testing.assert_close(min_snr(gamma)(LAMBDA), SNR.clamp(max=gamma) / SNR, rtol=1e-12, atol=0)
    assert min_snr(gamma)(torch.tensor([-math.inf, math.inf], dtype=F64)).tolist() == [1, 0]


@pytest.mark.parametrize("gamma, k", [(1.0, 1.0), (0.5, 1.0), (2.0, 0.1)])
def test_p2_is_its_formula(gamma, k):
    torch.testing.assert_close(p2(gamma, k)(LAMBDA), 1 / (k + SNR) ** gamma, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_edm_is_its_formula_on_the_loss_of_x(sigma_data):
    """w SNR = (σ² + σ_d²)/(σ σ_d)²."""
    sigma = (-LAMBDA / 2).exp()
    expected = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    torch.testing.assert_close(edm(sigma_data)(LAMBDA) * SNR, expected, rtol=1e-12, atol=0)


def test_weights_that_coincide():
    assert (simple(LAMBDA) == 1).all() and torch.equal(p2(0.0)(LAMBDA), simple(LAMBDA))
    # the loss of v has SNR + 1 on x, as p2 with γ = 1 takes off, and as EDM's for data of unit variance has
    torch.testing.assert_close(edm(1.0)(LAMBDA), (1 + SNR) / SNR, rtol=1e-12, atol=0)
    torch.testing.assert_close(p2()(LAMBDA) * edm(1.0)(LAMBDA), 1 / SNR, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make, message", [
    (lambda: min_snr(0.0), "gamma must be above 0; got 0.0"),
    (lambda: min_snr(math.nan), "gamma must be above 0; got nan"),
    (lambda: p2(-1.0), "gamma must not be negative and k must be above 0; got -1.0 and 1.0"),
    (lambda: p2(1.0, 0.0), "gamma must not be negative and k must be above 0; got 1.0 and 0.0"),
    (lambda: edm(0.0), "sigma_data must be above 0; got 0.0"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
