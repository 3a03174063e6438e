"""The learned schedule: its ends, its slope and its gradients, whatever its weights."""

import math

import pytest
import torch
from answers import F64
from torch import nn

from components.schedules import LearnedSchedule, ShiftedSchedule


def learned(spread=1.0, **settings):
    """A learned schedule with random weights."""
    schedule = LearnedSchedule(**settings)
    for p in (schedule.log_weight, schedule.log_steepness, schedule.bias):
        nn.init.normal_(p, std=spread)
    return schedule


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("width", [1, 7, 64])
def test_it_keeps_its_ends(spread, width):
    for high, low in ((13.3, -5.0), (6.5, -8.25)):
        schedule = learned(spread, log_snr_max=high, log_snr_min=low, width=width)
        first, last = torch.tensor([high, low]).double()  # its endpoints are parameters, and float32
        assert schedule.log_snr(0.0) == first and schedule.log_snr(1.0) == last
        assert (schedule.log_snr(torch.tensor([0.0, 0.5, 1.0]))[::2] == torch.stack([first, last])).all()


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_it_falls_strictly(spread):
    schedule, t = learned(spread), torch.linspace(0, 1, 2001, dtype=F64)
    assert (schedule.log_snr(t).diff() < 0).all() and (schedule.slope(t) < 0).all()


@pytest.mark.parametrize("learn_endpoints", [False, True])
def test_every_parameter_but_fixed_endpoints_has_a_gradient(learn_endpoints):
    schedule = LearnedSchedule(learn_endpoints=learn_endpoints)
    (schedule.log_snr(torch.rand(8)) * torch.randn(8)).sum().backward()
    for name, p in schedule.named_parameters():
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == (name != "endpoints" or learn_endpoints), name


@pytest.mark.parametrize("wrap", [lambda schedule: schedule, lambda schedule: ShiftedSchedule(schedule, 2.0)])
def test_minimizing_variance_multiplies_the_gradient_of_each_time_by_2_l_over_the_mean(wrap):
    """Of log_snr and slope, at a batch of times; endpoints, and what is outside of the context, keep their gradient."""
    schedule, t, losses = learned(), torch.rand(6, dtype=F64), torch.rand(6, dtype=F64) + 0.5
    factor = (2 * losses / losses.mean()).tolist()

    def gradients(weight, within):
        outer = wrap(schedule)
        if not within:
            total = (weight * (outer.log_snr(t) + outer.slope(t))).sum()
            return torch.autograd.grad(total, schedule.bias)[0]
        with outer.minimizing_variance() as given:
            total = (weight * (outer.log_snr(t) + outer.slope(t))).sum()
            given.append(losses)
        return torch.autograd.grad(total, schedule.bias)[0]

    ones = torch.ones(6, dtype=F64)
    expected = gradients(torch.tensor(factor, dtype=F64), within=False)
    torch.testing.assert_close(gradients(ones, within=True), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(gradients(ones, within=False), expected, rtol=1e-2)


@pytest.mark.parametrize("settings, message", [
    ({"log_snr_min": -math.inf}, "must be finite here; got 13.3 and -inf"),
    ({"log_snr_max": -6.0}, "log_snr_max must be above log_snr_min; got -6.0 and -5.0"),
])  # fmt: skip
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        LearnedSchedule(**settings)
