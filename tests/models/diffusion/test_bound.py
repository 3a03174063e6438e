"""The variational bound of a diffusion: known numbers, nll against bound, its ends, a schedule that learns from it."""

import math

import pytest
import torch
from answers import F64, NAMES, Smooth, generator, prediction_for
from diffusions import S, exact, gauss_legendre, given, wrong
from torch import nn

from components.denoisers import (
    DenoisedReconstruction,
    Denoiser,
    GaussianReconstruction,
    GreyLevelReconstruction,
    Reconstruction,
)
from components.distributions import Categorical, DiscretizedNormal, Normal, grid
from components.losses import low_discrepancy
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
    ShiftedSchedule,
    over,
)
from hybrids.models import Diffusion
from hybrids.models.diffusion import VariationalBound, bound

PREDICTIONS = pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])


@pytest.mark.parametrize("steps", [10_000, 1_000_000])
def test_a_level_keeps_its_digits_in_float32_however_fine_the_chain(steps):
    """½ (SNR_s/SNR_t - 1) ‖ε - ε̂‖²: in float32 the difference of the ratios errs by 1e-3 at a million steps."""
    x, epsilon = torch.randn(2, 6, 3, dtype=F64)
    model = wrong(prediction="epsilon")
    given(model, epsilon)
    s, t = 0.5, 0.5 + 1 / steps
    expected = model.elbo.level(model.denoiser, x, s, t)
    torch.testing.assert_close(model.elbo.level(model.denoiser, x.float(), s, t).double(), expected, rtol=1e-5, atol=0)


# nll against bound


@PREDICTIONS
@pytest.mark.parametrize("schedule, steps", [(LogSNRLinearSchedule(), 12), (BetaSchedule("linear", 12), 12)])
def test_nll_is_unbiased_for_the_bound_in_discrete_time(prediction, schedule, steps):
    """Over the T equally likely levels (T - 1 where the chain starts clean), at the same noise."""
    model = wrong(schedule, prediction, timesteps=steps)
    many = len(model.elbo.chain)
    x, epsilon = torch.randn(2, 5, 3, dtype=F64)
    given(model, epsilon)
    summed = model.bound(x)
    u = ((torch.arange(many, dtype=F64) + 0.3) / many).repeat_interleave(5)
    drawn = model.nll(x.repeat(many, 1), times=given(model, epsilon.repeat(many, 1), u))
    for name, (_, values) in summed.items():
        torch.testing.assert_close(drawn[name][1].view(many, 5).mean(0), values, rtol=1e-9, atol=1e-10)


@PREDICTIONS
def test_nll_is_unbiased_for_the_bound_in_continuous_time(prediction):
    model = wrong(prediction=prediction)
    x = torch.randn(1, 3, dtype=F64).expand(20_000, 3)
    drawn, summed = model.nll(x).per_example, model.bound(x[:2000], strata=32).per_example
    error = math.sqrt((drawn.var() / 20_000 + summed.var() / 2000).item())
    assert (drawn.mean() - summed.mean()).abs() < 4 * error
    assert summed.var() < 0.1 * drawn.var()


def test_nll_draws_each_level_of_a_chain_equally_often():
    model, drawn = wrong(timesteps=5), []
    model.elbo.level = lambda denoiser, x, s, t, cond, generator: drawn.append(t) or torch.zeros(len(x))
    model.nll(torch.randn(1000, 3))
    t, count = torch.cat(drawn).unique(return_counts=True)
    assert t.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and count.tolist() == [200] * 5


def test_per_example_values_do_not_mix_examples():
    x, epsilon = torch.randn(2, 5, 3, dtype=F64)
    u, model = torch.rand(5, dtype=F64), wrong()
    together = model.nll(x, times=given(model, epsilon, u)).per_example
    for i in range(5):
        times = given(model, epsilon[i : i + 1], u[i : i + 1])
        one = model.nll(x[i : i + 1], times=times).per_example
        torch.testing.assert_close(one, together[i : i + 1], rtol=1e-10, atol=0)


def test_ranks_share_the_levels_in_training_only(monkeypatch):
    shared = []

    def draw(n, device=None, across_ranks=False, generator=None):
        shared.append(across_ranks)
        return torch.rand(n, dtype=F64)

    monkeypatch.setattr(bound, "low_discrepancy", draw)
    model, x = wrong(), torch.randn(4, 3)
    model.train().nll(x)
    model.eval().nll(x)
    assert shared == [True, False]


# A discrete grid and its Bayes denoiser


K = 17
PROBABILITY = torch.full((K,), 1 / 32, dtype=F64)
PROBABILITY[0] = 0.5  # H = 3 bits
NODES = torch.linspace(-7, 7, 61, dtype=F64)
MASS = torch.exp(-0.5 * NODES**2) / torch.exp(-0.5 * NODES**2).sum()
OURS = grid(K, NODES)
VDMS = 2 * (torch.arange(K, dtype=F64) + 0.5) / K - 1


class Bayes(nn.Module):
    """E[x|x_t] of a known distribution over points."""

    def __init__(self, schedule, points):
        super().__init__()
        self.schedule, self.points = [schedule], points

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (over(c, x_t) for c in self.schedule[0].alpha_sigma(t))
        log_weight = PROBABILITY.log() - 0.5 * ((x_t - alpha * self.points) / sigma).square()
        return (log_weight.softmax(-1) * self.points).sum(-1, keepdim=True)


class VDMReconstruction(Reconstruction):
    """`GreyLevelReconstruction` on VDM's own grid 2(v + ½)/K - 1, whose categorical is asked for values on ours."""

    def forward(self, x_t, level, estimate=None):
        alpha, sigma = level.alpha, level.sigma
        p = Categorical(-0.5 * ((x_t / alpha - VDMS) * alpha / sigma).square().unsqueeze(-1))
        inner, p.log_prob = p.log_prob, lambda x: inner(x * K / (K - 1))
        return p


def bits(points, high, low, timesteps=None):
    """The exact bound in bits: over the points, ε by quadrature, t by Gauss-Legendre or over every level."""
    schedule = LogSNRLinearSchedule(high, low)
    reconstruction = GreyLevelReconstruction(K) if points is OURS else VDMReconstruction()
    model = Diffusion(
        Denoiser(Bayes(schedule, points), schedule, "sample"), 1, reconstruction=reconstruction, timesteps=timesteps
    )
    if timesteps is None:
        u, share = gauss_legendre(120)
    else:
        u, share = (torch.arange(timesteps, dtype=F64) + 0.5) / timesteps, torch.full((timesteps,), 1 / timesteps)
    x, epsilon = (values.flatten() for values in torch.meshgrid(points, NODES, indexing="ij"))
    weight = (PROBABILITY[:, None] * MASS).flatten()
    total = 0.0
    for part, its_share in zip(u.split(40), share.double().split(40)):
        times = given(model, epsilon.repeat(len(part))[:, None], part.repeat_interleave(len(x)))
        each = model.nll(x.repeat(len(part))[:, None], times=times).per_example.view(len(part), -1)
        total += (its_share[:, None] * weight * each).sum().item()
    return total / math.log(2)


@pytest.mark.parametrize("high, low, expected", [(8.0, -5.0, 3.001761), (10.0, -6.0, 3.000348)])
def test_numbers_of_a_discrete_grid_with_its_bayes_denoiser(high, low, expected):
    assert bits(VDMS, high, low) == pytest.approx(expected, abs=1e-6)


def test_the_number_of_that_grid_in_1000_steps():
    assert bits(VDMS, 8.0, -5.0, 1000) - 3 == pytest.approx(0.0212, abs=5e-5)


@pytest.mark.parametrize("high, low", [(8.0, -5.0), (10.0, -6.0), (4.0, -3.0)])
def test_our_grid_s_bound_is_the_entropy_and_what_its_two_ends_leave(high, low):
    """H(x) + KL(q(x_1) ‖ N(0, 1)) + E[-log p(x|x_0)] - H(x|x_0): the diffusion itself loses nothing."""
    schedule = LogSNRLinearSchedule(high, low)
    y = torch.linspace(-9, 9, 40_001, dtype=F64)

    def joint(t):
        alpha, sigma = schedule.alpha_sigma(t)
        return torch.stack(
            [
                p * Normal((alpha * v).expand(len(y), 1), sigma).log_prob(y[:, None]).exp()
                for p, v in zip(PROBABILITY, OURS)
            ]
        )

    end = joint(1.0).sum(0)
    prior = torch.trapezoid(
        torch.xlogy(end, end) - end * Normal(torch.zeros(1, 1, dtype=F64), 1.0).log_prob(y[:, None]), y
    )
    start = joint(0.0)
    log_p = GreyLevelReconstruction(K)(y[:, None], schedule.level(0.0, y)).log_mass[:, :, 0].T
    loss = torch.trapezoid(
        (torch.xlogy(start, (start / start.sum(0).clamp(min=1e-300)).clamp(min=1e-300)) - start * log_p).sum(0), y
    )
    expected = 3 + (prior + loss).item() / math.log(2)
    assert bits(OURS, high, low) == pytest.approx(expected, abs=1e-6)


# Its ends


def test_ddpm_s_bound_is_its_three_parts():
    """With L_T in closed form, T - 1 levels, and a discretized Gaussian around x̂ of the next level's variance."""
    model = wrong(BetaSchedule("linear", 1000), "epsilon", grey_levels=17, timesteps=1000)
    elbo = model.elbo
    assert model.starts_clean and elbo.first == 1e-3 and len(elbo.chain) == 999 and model.grey_levels == 17
    assert elbo.chain[0] == (0.001, 0.002) and elbo.chain[-1] == (0.999, 1.0)
    assert isinstance(elbo.reconstruction, DenoisedReconstruction)
    assert elbo.reconstruction.std == pytest.approx(math.sqrt(5.453188e-5), rel=1e-6)
    large = wrong(BetaSchedule(), variance="large", timesteps=1000)
    assert large.elbo.reconstruction.std == pytest.approx(0.01, rel=1e-9)
    x = torch.randint(0, 17, (4, 3)).double() / 8 - 1
    prior = model.nll(x)["prior"][1]
    level = model.denoiser.schedule.alphas_cumprod[-1]
    torch.testing.assert_close(prior, 0.5 * (level * (x**2 - 1) - (-level).log1p()).sum(1), rtol=1e-6, atol=1e-12)


def test_ddpm_s_first_level_integrates_the_bins():
    model = wrong(BetaSchedule("linear", 10), "sample", grey_levels=17, timesteps=10)
    x, epsilon = torch.randint(0, 17, (4, 3)).double() / 8 - 1, torch.randn(4, 3, dtype=F64)
    given(model, epsilon)
    alpha, sigma = model.denoiser.schedule.alpha_sigma(0.1)
    mean = model.denoiser(alpha * x + sigma * epsilon, 0.1).mean
    expected = -DiscretizedNormal(mean, bound.first_std(model.denoiser, 10), 17).log_prob(x)
    torch.testing.assert_close(model.nll(x)["reconstruction"][1], expected, rtol=1e-9, atol=0)


def test_one_level_is_all_reconstruction():
    model = wrong(BetaSchedule("linear", 1), "sample", timesteps=1)
    assert model.elbo.chain == [] and not model.nll(torch.randn(4, 3))["diffusion"][1].any()
    assert model.bound(torch.randn(4, 3)).total.isfinite() and model.rates(torch.randn(4, 3)).shape == (0, 4)


@pytest.mark.parametrize("grey_levels, kind", [(None, GaussianReconstruction), (17, GreyLevelReconstruction)])
def test_a_noisy_start_has_its_own_reconstruction(grey_levels, kind):
    model = wrong(grey_levels=grey_levels)
    assert isinstance(model.elbo.reconstruction, kind)
    assert model.grey_levels == grey_levels and model.elbo.first == 0.0


def test_the_prior_of_exploding_variance_is_its_last_noise():
    """KL(N(x, σ²) ‖ N(0, σ²)) = x²/2σ²."""
    x = torch.randn(5, 3, dtype=F64)
    prior = wrong(EDMSchedule(0.002, 8.0), "sample").nll(x)["prior"][1]
    torch.testing.assert_close(prior, x.square().sum(1) / 128, rtol=1e-9, atol=0)


@pytest.mark.parametrize("v, end", [(-1.0, "small"), (1.0, "large")])
def test_the_bound_of_a_learned_variance_has_those_of_the_fixed_ones_at_its_ends(v, end):
    class Both(Smooth):
        def forward(self, x_t, t, cond=None):
            output = super().forward(x_t, t)
            return torch.cat([output, torch.full_like(output, v)], dim=1)

    x, epsilon = torch.randint(0, 17, (5, 3)).double() / 8 - 1, torch.randn(5, 3, dtype=F64)
    terms = []
    for network, variance in ((Both(), "learned_range"), (Smooth(), end)):
        model = Diffusion(Denoiser(network, LogSNRLinearSchedule(), "epsilon", variance), 3, timesteps=20)
        given(model, epsilon)
        terms.append(model.bound(x)["diffusion"][1])
    torch.testing.assert_close(*terms, rtol=1e-8, atol=1e-10)


def test_a_clip_reaches_the_bound_and_not_the_simple_loss():
    x, epsilon = torch.randn(2, 5, 3, dtype=F64)
    free, clipped = (wrong(prediction="sample", clip=clip) for clip in (None, (-0.1, 0.1)))
    for model in (free, clipped):
        times = given(model, epsilon, torch.full((5,), 0.5, dtype=F64))
    assert torch.equal(free.loss(x)["simple"][1], clipped.loss(x)["simple"][1])
    assert not torch.equal(*(model.nll(x, times=times)["diffusion"][1] for model in (free, clipped)))


# What it owns


class Learned(Reconstruction):
    """N(x_0, exp(log_std)²)."""

    def __init__(self):
        super().__init__()
        self.log_std = nn.Parameter(torch.zeros(()))

    def forward(self, x_t, level, estimate=None):
        return Normal(x_t, self.log_std.exp())


def test_it_owns_no_network_and_its_reconstruction_s_parameters_are_saved_once():
    schedule, network = LogSNRLinearSchedule(), nn.Linear(3, 3)
    network.forward = lambda x_t, t, cond=None: nn.Linear.forward(network, x_t)
    for steps in (None, 4):
        model = Diffusion(Denoiser(network, schedule), 3, timesteps=steps)
        assert not list(model.elbo.named_parameters()) and not list(model.elbo.state_dict())
        assert sorted(model.state_dict()) == ["denoiser.backbone.bias", "denoiser.backbone.weight"]
    model = Diffusion(Denoiser(network, schedule), 3, reconstruction=Learned())
    assert [name for name, _ in model.elbo.named_parameters()] == ["reconstruction.log_std"]
    assert [name for name in model.state_dict() if "log_std" in name] == ["elbo.reconstruction.log_std"]
    model.nll(torch.randn(5, 3)).total.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_it_is_a_bound_for_any_denoiser_of_its_schedule():
    """A bound made once, of two networks: the same numbers as the diffusion of each."""
    one, other = wrong(), exact(prediction="v_prediction", shape=3)
    elbo = VariationalBound(one.denoiser, 3)
    x = torch.randn(6, 3, dtype=F64)
    for model in (one, other):
        found, expected = elbo.nll(model.denoiser, x, generator=generator()), model.nll(x, generator=generator())
        assert torch.equal(found.per_example, expected.per_example)


# A schedule that minimizes the variance of the bound


class Net(nn.Module):
    """A small network with weights that are anything."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8).double(), nn.Linear(8, 3).double()

    def forward(self, x_t, t, cond=None):
        t = torch.as_tensor(t, dtype=F64).expand(len(x_t))
        return self.last(torch.tanh(self.first(torch.cat([x_t, t[:, None]], dim=1))))


def bent():
    """A learned schedule whose weights are anything."""
    schedule = LearnedSchedule(6.0, -4.0, learn_endpoints=True, width=5).double()
    for p in (schedule.log_weight, schedule.log_steepness, schedule.bias):
        nn.init.normal_(p)
    return schedule


@pytest.mark.parametrize("prediction", NAMES)
@pytest.mark.parametrize("shifted", [False, True])
def test_the_gradient_that_reaches_the_interior_is_that_of_the_variance_and_all_others_the_bound_s(prediction, shifted):
    """∇ mean(L²)/mean(L) there, by brute force at the same noise; the endpoints' and the network's own are ∇ mean(L).

    Through a shifted schedule, and one shifted twice, too.
    """
    x, learned = torch.randn(40, 3, dtype=F64), bent()
    schedule = ShiftedSchedule(ShiftedSchedule(learned, 2.0), 1.5) if shifted else learned
    model = Diffusion(Denoiser(Net(), schedule, prediction_for(prediction, 0.7)), 3)
    model.nll(x, generator=generator(7))["diffusion"][1].mean().backward()
    measured = {name: p.grad.clone() for name, p in model.named_parameters()}

    drawn = generator(7)
    u, epsilon = low_discrepancy(40, generator=drawn), torch.randn(40, 3, dtype=F64, generator=drawn)
    alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(u))
    error = (epsilon - model.denoiser(alpha * x + sigma * epsilon, u).epsilon).square().sum(1)
    loss = -0.5 * schedule.slope(u) * error
    names, parameters = zip(*model.named_parameters())
    plain = torch.autograd.grad(loss.mean(), parameters, retain_graph=True)
    of_square = torch.autograd.grad(loss.square().mean() / loss.mean().detach(), parameters)
    for name, mean, square in zip(names, plain, of_square):
        interior = "schedule" in name and "endpoints" not in name
        torch.testing.assert_close(measured[name], square if interior else mean, rtol=1e-8, atol=1e-10)
        assert (mean - square).abs().max() > 1e-6, name  # else this test would say nothing
    assert learned._factors is None


def test_the_network_s_gradient_does_not_depend_on_the_context():
    """And neither does the value: within `minimizing_variance` the bound is what it is without."""
    x = torch.randn(8, 3, dtype=F64)
    model = Diffusion(Denoiser(Net(), LearnedSchedule(), "epsilon"), 3)
    with_graph = model.nll(x, generator=generator()).per_example.detach()
    with torch.no_grad():
        torch.testing.assert_close(model.nll(x, generator=generator()).per_example, with_graph, rtol=0, atol=0)
    assert model.denoiser.schedule._factors is None


def test_descending_it_lowers_the_variance_and_leaves_the_bound():
    model = exact(LearnedSchedule(), "epsilon", shape=2)
    schedule = model.denoiser.schedule

    def measured():
        drawn = generator()
        x = S * torch.randn(20_000, 2, dtype=F64, generator=drawn)
        with torch.no_grad():
            each = model.nll(x, generator=drawn)["diffusion"][1]
        return each.mean().item(), each.var().item()

    mean, variance = measured()
    optimizer = torch.optim.Adam([p for p in schedule.parameters() if p.requires_grad], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        model.nll(S * torch.randn(256, 2, dtype=F64))["diffusion"][1].mean().backward()
        optimizer.step()
    after, lower = measured()
    assert lower < 0.85 * variance
    assert abs(after - mean) < 4 * math.sqrt((variance + lower) / 20_000)
    assert schedule.log_snr(0.0).item() == pytest.approx(13.3, rel=1e-6)


# Refusals


def test_a_clean_start_in_continuous_time_has_a_simple_loss_but_no_bound():
    model = wrong(CosineSchedule())
    x = torch.randn(4, 3)
    assert model.loss(x).total.isfinite() and model.elbo.reconstruction is None
    for ask in (model.nll, model.bound):
        with pytest.raises(ValueError, match="in continuous time the bound is infinite; give timesteps, or a schedule"):
            ask(x)


@pytest.mark.parametrize("ask, message", [
    (lambda: wrong().elbo.chain, "continuous time has no chain of levels; timesteps=None"),
    (lambda: wrong(timesteps=0), "timesteps must be at least 1, or None for continuous time; got 0"),
    (lambda: wrong(BetaSchedule(), timesteps=9, reconstruction=GaussianReconstruction()),
     "GaussianReconstruction needs noise at t = 0; BetaSchedule has σ = 0 there: .* or DenoisedReconstruction"),
    (lambda: wrong(BetaSchedule(), timesteps=9, reconstruction=GreyLevelReconstruction(17)),
     "GreyLevelReconstruction needs noise at t = 0; BetaSchedule has σ = 0 there"),
])  # fmt: skip
def test_what_has_no_bound_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
