"""The exact denoisers of a Gaussian and of a mixture."""

import re

import pytest
import torch
from answers import COVARIANCE, F64, M

from components.denoisers import Denoiser, GaussianMean, MixtureMean
from components.schedules import CosineSchedule, EDMSchedule, FlowSchedule, LogSNRLinearSchedule

MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [3.0, -2.0], [0.0, 2.0]], dtype=F64)


def denoiser(kind, schedule):
    if kind == "gaussian":
        return Denoiser(GaussianMean(schedule, M, COVARIANCE), schedule, "sample")
    return Denoiser(MixtureMean(schedule, MEANS, 0.3), schedule, "sample")


def test_a_mixture_of_one_is_a_gaussian():
    schedule = EDMSchedule()
    t = torch.rand(6, dtype=F64) * 0.9 + 0.05
    x_t, _ = schedule.corrupt(torch.randn(6, 3, dtype=F64), t)
    one = GaussianMean(schedule, M, 0.09 * torch.eye(3, dtype=F64))
    torch.testing.assert_close(one(x_t, t), MixtureMean(schedule, M[None], 0.3)(x_t, t), rtol=1e-10, atol=1e-10)


def test_points_and_flat_gaussians_are_allowed():
    schedule = LogSNRLinearSchedule()
    x_t = torch.randn(5, 2, dtype=F64)
    point = MixtureMean(schedule, MEANS, 0.0)(schedule.marginal(MEANS, 0.05).mean, 0.05)
    torch.testing.assert_close(point, MEANS, rtol=1e-9, atol=1e-9)
    flat = GaussianMean(schedule, torch.zeros(2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))(x_t, 0.3)
    assert (flat[:, 1] == 0).all() and (flat[:, 0] != 0).all()


@pytest.mark.parametrize("kind, d", [("gaussian", 3), ("mixture", 2)])
def test_a_time_is_a_float_a_scalar_or_a_batch(kind, d):
    schedule = CosineSchedule()
    x_t, network = torch.randn(4, d, dtype=F64), denoiser(kind, schedule).backbone
    batch = network(x_t, torch.full((4,), 0.3, dtype=F64))
    for t in (0.3, torch.tensor(0.3, dtype=F64)):
        torch.testing.assert_close(network(x_t, t), batch, rtol=1e-12, atol=1e-12)
    t = torch.rand(4, dtype=F64)
    for i in range(4):
        torch.testing.assert_close(network(x_t, t)[i], network(x_t[i : i + 1], t[i])[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind, d", [("gaussian", 3), ("mixture", 2)])
def test_the_type_is_that_of_x_t_widened(kind, d):
    network = denoiser(kind, CosineSchedule()).backbone
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (F64, F64)):
        assert network(torch.ones(2, d, dtype=dtype), 0.5).dtype == expected


def test_pure_noise_is_answered_with_the_mean():
    x_t = torch.randn(4, 3, dtype=F64)
    torch.testing.assert_close(denoiser("gaussian", CosineSchedule())(x_t, 1.0).mean, M.expand(4, 3))
    torch.testing.assert_close(denoiser("mixture", FlowSchedule())(x_t[:, :2], 1.0).mean, MEANS.mean(0).expand(4, 2))


@pytest.mark.parametrize("make, message", [
    (lambda: GaussianMean(CosineSchedule(), M, COVARIANCE[:2]),
     "mean must be (D,) and covariance (D, D); got (3,) and (2, 3)"),
    (lambda: GaussianMean(CosineSchedule(), M[None], COVARIANCE), "covariance (D, D); got (1, 3) and (3, 3)"),
    (lambda: MixtureMean(CosineSchedule(), M, 0.1), "means must be (K, D) and std not negative; got (3,) and 0.1"),
    (lambda: MixtureMean(CosineSchedule(), MEANS, -0.1), "got (4, 2) and -0.1"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
