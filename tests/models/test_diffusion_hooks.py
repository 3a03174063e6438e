"""What a Diffusion passes to its parts: to a self-conditioned backbone its own x̂, to a learned schedule its losses."""

import math

import pytest
import torch
from torch import nn

from components.denoisers import Denoiser
from components.losses import low_discrepancy, min_snr
from components.samplers import ddim
from components.schedules import BetaSchedule, LearnedSchedule, LogSNRLinearSchedule, ShiftedSchedule
from hybrids.models import Diffusion

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Spy(nn.Module):
    """A linear network of x_t and of an earlier estimate, that writes down what it is shown."""

    self_condition, num_classes = True, 2

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
        self.calls = []

    def forward(self, x_t, t, cond=None, estimate=None):
        self.calls.append((x_t.detach(), estimate, torch.is_grad_enabled()))
        shown = torch.zeros_like(x_t) if estimate is None else estimate
        return self.first(x_t) + self.second(shown) + (0 if cond is None else cond[:, None])


def build(prediction="sample", schedule=None, clip=(-1.0, 1.0), variance="small", **options):
    denoiser = Denoiser(Spy(), schedule or LogSNRLinearSchedule(5.0, -5.0), prediction, variance, clip)
    return Diffusion(denoiser, 3, **options)


def recalled(model, x):
    """The terms of a loss that had a first pass, and what its two calls were shown."""
    for _ in range(100):
        model.denoiser.backbone.calls.clear()
        terms = model.loss(x)
        if len(model.denoiser.backbone.calls) == 2:
            return terms, model.denoiser.backbone.calls
    raise AssertionError("no loss of a hundred had a first pass")


# A self-conditioned backbone


@pytest.mark.parametrize("options", [{}, {"timesteps": 10}, {"weighting": min_snr()}])
def test_half_of_the_losses_show_the_estimate_of_a_first_pass(options):
    """To four standard errors of 400 losses; the first pass has no gradient and no estimate, the second one both."""
    model, x, count = build(**options), torch.randn(5, 3, dtype=F64), 0
    for _ in range(400):
        model.denoiser.backbone.calls.clear()
        model.loss(x)
        *first, (x_t, estimate, graph) = model.denoiser.backbone.calls
        assert graph and len(first) == (estimate is not None)
        for x_0, nothing, graph in first:
            assert nothing is None and not graph and torch.equal(x_0, x_t)
            assert not estimate.requires_grad
            torch.testing.assert_close(estimate, model.denoiser.backbone.first(x_t).add(
                model.denoiser.backbone.second.bias).clamp(-1, 1), rtol=1e-12, atol=1e-12)  # fmt: skip
        count += len(first)
    assert abs(count / 400 - 0.5) < 4 * 0.5 / math.sqrt(400)


def test_no_gradient_flows_through_the_first_pass():
    """∇ is that of ‖x - net(x_t, c)‖² with c held fixed; through c it would be another one."""
    model, x = build(clip=None), torch.randn(5, 3, dtype=F64)
    terms, (_, (x_t, estimate, _)) = recalled(model, x)
    net = model.denoiser.backbone
    found = torch.autograd.grad(terms.total, list(net.parameters()))

    def gradient(shown):
        return torch.autograd.grad((x - net(x_t, 0.0, None, shown)).square().sum(1).mean(), list(net.parameters()))

    through = gradient(net(x_t, 0.0))
    torch.testing.assert_close(found, gradient(estimate), rtol=1e-10, atol=1e-10)
    assert (found[0] - through[0]).abs().max() > 1e-3


def test_every_parameter_is_in_the_graph_with_and_without_a_first_pass():
    """As DistributedDataParallel needs, whose ranks throw coins of their own."""
    model, x, seen = build(), torch.randn(5, 3, dtype=F64), set()
    for _ in range(50):
        model.zero_grad(set_to_none=True)
        model.denoiser.backbone.calls.clear()
        model.loss(x).total.backward()
        assert all(p.grad is not None for p in model.denoiser.backbone.parameters())
        seen.add(len(model.denoiser.backbone.calls))
    assert seen == {1, 2}


@pytest.mark.parametrize("options", [
    {}, {"prediction": "epsilon"}, {"timesteps": 4}, {"timesteps": 4, "variance": "large"},
    {"timesteps": 4, "schedule": BetaSchedule()},
])  # fmt: skip
def test_bounds_show_no_estimate(options):
    model, x = build(**options), torch.randn(5, 3, dtype=F64)
    for _ in range(10):
        model.nll(x)
    model.bound(x, levels=4)
    calls = model.denoiser.backbone.calls
    assert len(calls) >= 14 and all(estimate is None for _, estimate, _ in calls)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"sampler": ddim}])
def test_samples_are_drawn_with_the_estimate_of_the_step_before(options, guidance_scale):
    model = build(**options).float()
    model.sample(4, torch.tensor([0, 1, 0, 1]), steps=3, guidance_scale=guidance_scale)
    (_, first, _), *rest = model.denoiser.backbone.calls
    assert first is None and [shown.shape for _, shown, _ in rest] == 2 * [(4 if guidance_scale == 1 else 8, 3)]


def test_the_likelihood_weighting_would_train_on_no_estimate_and_is_refused():
    with pytest.raises(ValueError, match="weighting must not be 'likelihood' for a backbone with self_condition=True"):
        build(weighting="likelihood")


def test_a_backbone_without_it_costs_no_coin():
    """The random numbers of a loss are the same as ever: ε and one u."""
    model = build()
    model.denoiser.backbone.self_condition = model.denoiser.self_condition = False
    torch.manual_seed(3)
    model.loss(torch.randn(5, 3, dtype=F64))
    state = torch.get_rng_state()
    torch.manual_seed(3)
    torch.randn(5, 3, dtype=F64), torch.rand((), dtype=F64), torch.randn(5, 3, dtype=F64)
    assert torch.equal(state, torch.get_rng_state())


# A learned schedule, shifted


def test_a_shifted_schedule_lets_the_losses_through_to_the_learned_one():
    """Its interior has the gradient of the variance, ∇ mean(L²)/mean(L), by brute force at the same noise; 1e-8."""
    learned = LearnedSchedule(6.0, -4.0, learn_endpoints=True, width=5).double()
    for p in (learned.log_weight, learned.log_steepness, learned.bias):
        nn.init.normal_(p)
    schedule = ShiftedSchedule(ShiftedSchedule(learned, 2.0), 1.5)
    net = nn.Linear(3, 3).double()
    backbone = type("Net", (nn.Module,), {"forward": lambda self, x_t, t, cond=None: net(x_t)})()
    model, x = Diffusion(Denoiser(backbone, schedule, "epsilon"), 3), torch.randn(40, 3, dtype=F64)
    interior = [learned.log_weight, learned.log_steepness, learned.bias]
    torch.manual_seed(7)
    found = torch.autograd.grad(model.nll(x)["diffusion"][1].mean(), [*interior, learned.endpoints])
    torch.manual_seed(7)
    t, epsilon = low_discrepancy(40), torch.randn(40, 3, dtype=F64)
    alpha, sigma = (c[:, None] for c in schedule.alpha_sigma(t))
    loss = -0.5 * schedule.slope(t) * (epsilon - net(alpha * x + sigma * epsilon)).square().sum(1)
    plain = torch.autograd.grad(loss.mean(), [*interior, learned.endpoints], retain_graph=True)
    of_square = torch.autograd.grad(loss.square().mean() / loss.mean().detach(), interior)
    for a, b, other in zip(found, of_square, plain, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
        assert (a - other).abs().max() > 1e-6
    torch.testing.assert_close(found[-1], plain[-1], rtol=1e-8, atol=1e-10)
    assert learned._factors is None
