import math

import numpy
import pytest
import torch
from answers import Smooth
from torch import nn

import components.distributions.continuous
import components.losses.times
import hybrids.models.diffusion_bound
from components.denoisers import DenoisedLast, Denoiser, GaussianLast, GridLast
from components.distributions import Categorical, DiscretizedNormal, Normal, grid, per_example
from components.samplers import SAMPLERS, ancestral, ddim, time_grid
from components.schedules import BetaSchedule, CosineSchedule, LogSNRLinearSchedule, over
from hybrids.models import Diffusion, Model

F64 = torch.float64
PREDICTIONS = pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
S = 0.5  # of the data N(0, S²), where nothing else is said


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def fix(monkeypatch):
    """Put given values in the place of a diffusion's random noise, and of its random times if there are any."""

    def put(epsilon, u=None):
        noise = lambda x, generator=None: epsilon.to(x.dtype)  # noqa: E731
        monkeypatch.setattr(hybrids.models.diffusion_bound, "randn_like", noise)
        monkeypatch.setattr(components.distributions.continuous, "randn_like", noise)
        if u is not None:
            for module in (components.losses.times, hybrids.models.diffusion_bound):
                monkeypatch.setattr(module, "low_discrepancy", lambda *_, **__: u)

    return put


class Gaussian(nn.Module):
    """The best answer for x ~ N(0, s² I), in any parameterization."""

    def __init__(self, schedule, prediction, s=S):
        super().__init__()
        self.schedule, self.prediction, self.s = [schedule], prediction, s  # in a list: it is the denoiser's

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (over(c, x_t) for c in self.schedule[0].alpha_sigma(t))
        x = alpha * self.s**2 / (alpha**2 * self.s**2 + sigma**2) * x_t
        epsilon = sigma / (alpha**2 * self.s**2 + sigma**2) * x_t
        return {"sample": x, "epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x}[self.prediction]


def exact(schedule=None, prediction="epsilon", s=S, shape=1, **settings):
    schedule = schedule or LogSNRLinearSchedule()
    return Diffusion(Denoiser(Gaussian(schedule, prediction, s), schedule, prediction), shape, **settings)


def wrong(schedule=None, prediction="v_prediction", shape=3, variance="small", **settings):
    return Diffusion(Denoiser(Smooth(), schedule or LogSNRLinearSchedule(), prediction, variance), shape, **settings)


# A loss that is quadratic in (x, ε) has its exact mean over four points with the right moments.
X4 = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=F64)
EPSILON4 = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64)


def every_level(model, fix, n, s=S, loss="nll"):
    """The exact mean of a discrete loss over x ~ N(0, s²), ε and the n levels."""
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    fix(EPSILON4.repeat(n, 1), u.repeat_interleave(4))
    return getattr(model, loss)(s * X4.repeat(n, 1)).total


def gauss_legendre(n):
    """Nodes in [0, 1] and their shares."""
    u, share = (torch.tensor(values) / 2 for values in numpy.polynomial.legendre.leggauss(n))
    return u + 0.5, share


@pytest.mark.parametrize("steps", [10_000, 1_000_000])
def test_a_level_keeps_its_digits_in_float32_however_fine_the_chain(fix, steps):
    """½ (SNR_s/SNR_t - 1) ‖ε - ε̂‖²: in float32 the difference of the ratios errs by 1e-3 at a million steps."""
    x, epsilon = torch.randn(2, 6, 3, dtype=F64)
    fix(epsilon)
    model = wrong(prediction="epsilon")
    s, t = 0.5, 0.5 + 1 / steps
    expected = model.level(x, s, t)
    torch.testing.assert_close(model.level(x.float(), s, t).double(), expected, rtol=1e-5, atol=0)


# nll against bound


@PREDICTIONS
@pytest.mark.parametrize("schedule, steps", [(LogSNRLinearSchedule(), 12), (BetaSchedule("linear", 12), 12)])
def test_nll_is_unbiased_for_the_bound_in_discrete_time(fix, prediction, schedule, steps):
    """Over the T equally likely levels (T - 1 where the chain starts clean), at the same noise."""
    model = wrong(schedule, prediction, timesteps=steps)
    many = len(model.chain)
    x, epsilon = torch.randn(2, 5, 3, dtype=F64)
    fix(epsilon)
    summed = model.bound(x)
    fix(epsilon.repeat(many, 1), ((torch.arange(many, dtype=F64) + 0.3) / many).repeat_interleave(5))
    drawn = model.nll(x.repeat(many, 1))
    for name, (_, values) in summed.items():
        torch.testing.assert_close(drawn[name][1].view(many, 5).mean(0), values, rtol=1e-9, atol=1e-10)


@PREDICTIONS
def test_nll_is_unbiased_for_the_bound_in_continuous_time(prediction):
    model = wrong(prediction=prediction)
    x = torch.randn(1, 3, dtype=F64).expand(20_000, 3)
    drawn, summed = model.nll(x).per_example, model.bound(x[:2000], levels=32).per_example
    error = math.sqrt((drawn.var() / 20_000 + summed.var() / 2000).item())
    assert (drawn.mean() - summed.mean()).abs() < 4 * error
    assert summed.var() < 0.1 * drawn.var()


def test_nll_draws_each_level_of_a_chain_equally_often():
    model = wrong(timesteps=5)
    seen = []
    model.level = lambda x, s, t, cond: seen.append(t) or torch.zeros(len(x))
    model.nll(torch.randn(1000, 3))
    t, count = torch.cat(seen).unique(return_counts=True)
    assert t.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and count.tolist() == [200] * 5


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


class VDMLast(nn.Module):
    """`GridLast` on VDM's own grid 2(v + ½)/K - 1, whose categorical is asked for grey values on ours."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = [schedule]

    def forward(self, x_0, cond=None):
        alpha, sigma = self.schedule[0].alpha_sigma(0.0)
        p = Categorical(-0.5 * ((x_0 / alpha - VDMS) * alpha / sigma).square().unsqueeze(-1))
        inner, p.log_prob = p.log_prob, lambda x: inner(x * K / (K - 1))
        return p


def bits(fix, points, high, low, timesteps=None):
    """The exact bound in bits: over the points, ε by quadrature, t by Gauss-Legendre or over every level."""
    schedule = LogSNRLinearSchedule(high, low)
    last = GridLast(schedule, K) if points is OURS else VDMLast(schedule)
    model = Diffusion(Denoiser(Bayes(schedule, points), schedule, "sample"), 1, last=last, timesteps=timesteps)
    if timesteps is None:
        u, share = gauss_legendre(120)
    else:
        u, share = (
            (torch.arange(timesteps, dtype=F64) + 0.5) / timesteps,
            torch.full((timesteps,), 1 / timesteps, dtype=F64),
        )
    x, epsilon = (values.flatten() for values in torch.meshgrid(points, NODES, indexing="ij"))
    weight = (PROBABILITY[:, None] * MASS).flatten()
    total = 0.0
    for part, its_share in zip(u.split(40), share.split(40)):
        fix(epsilon.repeat(len(part))[:, None], part.repeat_interleave(len(x)))
        each = model.nll(x.repeat(len(part))[:, None]).per_example.view(len(part), -1)
        total += (its_share[:, None] * weight * each).sum().item()
    return total / math.log(2)


@pytest.mark.parametrize("high, low, expected", [(8.0, -5.0, 3.001761), (10.0, -6.0, 3.000348)])
def test_numbers_of_a_discrete_grid_with_its_bayes_denoiser(fix, high, low, expected):
    assert bits(fix, VDMS, high, low) == pytest.approx(expected, abs=1e-6)


def test_the_number_of_that_grid_in_1000_steps(fix):
    assert bits(fix, VDMS, 8.0, -5.0, 1000) - 3 == pytest.approx(0.0212, abs=5e-5)


@pytest.mark.parametrize("high, low", [(8.0, -5.0), (10.0, -6.0), (4.0, -3.0)])
def test_our_grid_s_bound_is_the_entropy_and_what_its_two_ends_leave(fix, high, low):
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
    log_p = GridLast(schedule, K)(y[:, None]).log_mass[:, :, 0].T
    loss = torch.trapezoid(
        (torch.xlogy(start, (start / start.sum(0).clamp(min=1e-300)).clamp(min=1e-300)) - start * log_p).sum(0), y
    )
    expected = 3 + (prior + loss).item() / math.log(2)
    assert bits(fix, OURS, high, low) == pytest.approx(expected, abs=1e-6)


# DDPM's settings


def test_the_epsilon_loss_s_floor_on_a_standard_normal_is_the_mean_level(fix):
    model = exact(BetaSchedule(), s=1.0, timesteps=1000)
    found = every_level(model, fix, 1000, s=1.0, loss="loss").item()
    assert found == pytest.approx(BetaSchedule().alphas_cumprod.mean().item(), rel=1e-9)
    assert found == pytest.approx(0.27551, abs=5e-6)


def test_the_zero_network_s_epsilon_loss_is_one(fix):
    class Zero(nn.Module):
        def forward(self, x_t, t, cond=None):
            return torch.zeros_like(x_t)

    model = Diffusion(Denoiser(Zero(), BetaSchedule()), 1, timesteps=1000)
    assert every_level(model, fix, 1000, s=1.0, loss="loss").item() == pytest.approx(1.0, rel=1e-9)


@PREDICTIONS
def test_the_simple_loss_compares_what_the_network_predicts(fix, prediction):
    x, epsilon = torch.randn(2, 5, 3, dtype=F64)
    fix(epsilon, torch.full((5,), 0.45, dtype=F64))  # t = 0.5 of 10 levels
    model = wrong(CosineSchedule(9.0, -9.0), prediction, timesteps=10)
    alpha, sigma = model.denoiser.schedule.alpha_sigma(0.5)
    target = {"epsilon": epsilon, "sample": x, "v_prediction": alpha * epsilon - sigma * x}[prediction]
    output = Smooth()(alpha * x + sigma * epsilon, torch.tensor(0.5, dtype=F64))
    torch.testing.assert_close(model.loss(x)["simple"][1], (target - output).square().sum(1), rtol=1e-10, atol=0)


def test_ddpm_s_bound_is_its_three_parts():
    """With L_T in closed form, T - 1 levels, and a discretized Gaussian around x̂ of the next level's variance."""
    model = wrong(BetaSchedule("linear", 1000), "epsilon", levels=17, timesteps=1000)
    assert model.starts_clean and model.first == 1e-3 and len(model.chain) == 999 and model.levels == 17
    assert model.chain[0] == (0.001, 0.002) and model.chain[-1] == (0.999, 1.0)
    assert isinstance(model.last, DenoisedLast)
    assert model.last.std == pytest.approx(math.sqrt(5.453188e-5), rel=1e-6)
    assert wrong(BetaSchedule(), variance="large", timesteps=1000).last.std == pytest.approx(0.01, rel=1e-9)
    x = torch.randint(0, 17, (4, 3)).double() / 8 - 1
    prior = model.nll(x)["prior"][1]
    level = model.denoiser.schedule.alphas_cumprod[-1]
    torch.testing.assert_close(prior, 0.5 * (level * (x**2 - 1) - (-level).log1p()).sum(1), rtol=1e-6, atol=1e-12)


def test_ddpm_s_first_level_integrates_the_bins(fix):
    model = wrong(BetaSchedule("linear", 10), "sample", levels=17, timesteps=10)
    x, epsilon = torch.randint(0, 17, (4, 3)).double() / 8 - 1, torch.randn(4, 3, dtype=F64)
    fix(epsilon, torch.zeros(4, dtype=F64))
    alpha, sigma = model.denoiser.schedule.alpha_sigma(0.1)
    mean = model.denoiser(alpha * x + sigma * epsilon, 0.1).mean
    expected = -DiscretizedNormal(mean, model.first_std(), 17).log_prob(x)
    torch.testing.assert_close(model.nll(x)["reconstruction"][1], expected, rtol=1e-9, atol=0)


def test_one_level_is_all_reconstruction():
    model = wrong(BetaSchedule("linear", 1), "sample", timesteps=1)
    assert model.chain == [] and not model.nll(torch.randn(4, 3))["diffusion"][1].any()
    assert model.bound(torch.randn(4, 3)).total.isfinite()


# Settings, contract, samples


@pytest.mark.parametrize("levels, kind", [(None, GaussianLast), (17, GridLast)])
def test_a_noisy_start_has_its_own_last_decoder(levels, kind):
    model = wrong(levels=levels)
    assert isinstance(model.last, kind) and model.levels == levels and model.first == 0.0


def test_it_is_a_model():
    assert isinstance(wrong(), Model)


@pytest.mark.parametrize("settings, names", [
    ({"weighting": "simple"}, ["simple"]), ({"weighting": "likelihood"}, ["prior", "reconstruction", "diffusion"]),
])  # fmt: skip
def test_the_weighting_chooses_the_loss(settings, names):
    model = wrong(**settings)
    x = torch.randn(4, 3)
    assert list(model.loss(x)) == names
    for terms in (model.loss(x), model.nll(x), model.bound(x)):
        assert terms.per_example.shape == (4,) and terms.total.isfinite()


def test_losses_sum_over_the_event_and_are_float32_of_bf16_images():
    model = wrong(shape=(3, 4, 4))
    x = torch.randn(4, 3, 4, 4).clamp(-1, 1)
    for terms in (model.loss(x.bfloat16()), model.nll(x.bfloat16())):
        assert terms.per_example.shape == (4,) and terms.per_example.dtype == torch.float32
    assert model.loss(x).total > 10  # 48 dimensions of about one each


def test_a_clip_reaches_the_bound_and_not_the_simple_loss(fix):
    x, epsilon = torch.randn(2, 5, 3, dtype=F64)
    fix(epsilon, torch.full((5,), 0.5, dtype=F64))
    free, clipped = (
        Diffusion(Denoiser(Smooth(), LogSNRLinearSchedule(), "sample", clip=clip), 3) for clip in (None, (-0.1, 0.1))
    )
    assert torch.equal(free.loss(x)["simple"][1], clipped.loss(x)["simple"][1])
    assert not torch.equal(free.nll(x)["diffusion"][1], clipped.nll(x)["diffusion"][1])


@pytest.mark.parametrize("schedule", [LogSNRLinearSchedule(), BetaSchedule(), CosineSchedule()])
def test_samples_have_the_shape_and_repeat_with_a_generator(schedule):
    model = Diffusion(Denoiser(Smooth(), schedule, "v_prediction"), (3, 4, 4), sample_steps=5)
    one, again = (model.sample(2, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == (2, 3, 4, 4) and one.isfinite().all() and torch.equal(one, again)
    assert not torch.equal(one, model.sample(2)) and not one.requires_grad


def test_a_sample_is_the_sampler_s_end_then_the_last_decoder_s_mean():
    noisy, clean = wrong(), wrong(BetaSchedule())
    seen = []

    def sampler(denoiser, x, times, cond=None, generator=None):
        seen.append(times)
        return x * 0 + 0.5

    alpha, _ = noisy.denoiser.schedule.alpha_sigma(0.0)
    torch.testing.assert_close(noisy.sample(2, sampler=sampler, steps=4), torch.full((2, 3), 0.5) / alpha.float())
    torch.testing.assert_close(clean.sample(2, sampler=sampler, steps=4), torch.full((2, 3), 0.5))
    assert torch.equal(seen[0], time_grid(4))


@pytest.mark.parametrize("steps, timesteps, expected", [(None, None, 250), (None, 30, 30), (7, 30, 7)])
def test_the_steps_of_sampling(steps, timesteps, expected):
    assert wrong(timesteps=timesteps, sample_steps=steps).sample_steps == expected


@pytest.mark.parametrize("sampler", [ancestral, ddim])
def test_samples_of_the_exact_denoiser_have_the_data_s_variance(sampler):
    """200 steps leave 2% of bias at most; one standard error of a variance of 40 000 draws is 0.7%."""
    x = exact(prediction="v_prediction", shape=2, sampler=sampler, sample_steps=200).sample(20_000)
    assert x.mean().abs() < 4 * S / math.sqrt(40_000)
    assert x.var().item() == pytest.approx(S**2, rel=0.02 + 4 * math.sqrt(2 / 40_000))


@pytest.mark.parametrize("settings, message", [
    ({"schedule": BetaSchedule(), "weighting": "likelihood"}, "BetaSchedule is noiseless at t = 0: in continuous time"),
    ({"schedule": CosineSchedule(), "last": nn.Identity()}, "CosineSchedule is noiseless at t = 0: in continuous time"),
    ({"weighting": "elbo"}, "weighting must be one of simple, likelihood.*; got 'elbo'"),
    ({"timesteps": 0}, "timesteps must be at least 1, or None for continuous time; got 0"),
    ({"timesteps": 8, "sample_steps": 9}, "sample_steps must be at most timesteps, 8; got 9"),
    ({"sampler": "ddpm"}, "sampler must be one of ancestral, ddim, .*, or a function like them; got 'ddpm'"),
])  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        wrong(**settings)


def test_more_steps_than_levels_are_refused_in_sampling_too():
    with pytest.raises(ValueError, match="steps must be at most timesteps, 8; got 9"):
        wrong(timesteps=8).sample(2, steps=9)
    assert wrong(timesteps=8).sample(2, steps=8).shape == (2, 3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_may_be_named(name):
    def drawn(model, **how):
        return model.sample(4, generator=torch.Generator().manual_seed(1), steps=3, **how)

    expected = drawn(wrong(sampler=SAMPLERS[name]))
    assert torch.equal(drawn(wrong(sampler=name)), expected)
    assert torch.equal(drawn(wrong(), sampler=name), expected)
    with pytest.raises(ValueError, match="sampler must be one of ancestral, ddim, .*; got 'ddpm'"):
        drawn(wrong(), sampler="ddpm")


def test_a_clean_start_in_continuous_time_has_a_simple_loss_but_no_bound():
    model = wrong(CosineSchedule())
    x = torch.randn(4, 3)
    assert model.loss(x).total.isfinite() and model.last is None
    for ask in (model.nll, model.bound):
        with pytest.raises(ValueError, match="in continuous time the bound is infinite; give timesteps, or a schedule"):
            ask(x)


def test_continuous_time_has_no_chain():
    with pytest.raises(ValueError, match="continuous time has no chain of levels; timesteps=None"):
        _ = wrong().chain
    with pytest.raises(ValueError, match="first_std is of discrete time"):
        wrong().first_std()


def test_ranks_share_the_times_in_training_only(monkeypatch):
    seen = []

    def draw(n, device=None, across_ranks=False):
        seen.append(across_ranks)
        return torch.rand(n, dtype=F64)

    for module in (components.losses.times, hybrids.models.diffusion_bound):
        monkeypatch.setattr(module, "low_discrepancy", draw)
    model, x = wrong(), torch.randn(4, 3)
    model.train().loss(x)
    model.eval().loss(x)
    model.nll(x)
    assert seen == [True, False, False]


def test_per_example_values_do_not_mix_examples(fix):
    x, epsilon = torch.randn(2, 5, 3, dtype=F64)
    u = torch.rand(5, dtype=F64)
    fix(epsilon, u)
    together = wrong().nll(x).per_example
    for i in range(5):
        fix(epsilon[i : i + 1], u[i : i + 1])
        torch.testing.assert_close(wrong().nll(x[i : i + 1]).per_example, together[i : i + 1], rtol=1e-10, atol=0)
    assert per_example(x).shape == (5,)
