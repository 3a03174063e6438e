"""Samplers: rows 18, 28, 31, 32."""

import math
from functools import partial
from itertools import pairwise

import torch
from answers import COVARIANCE, F64, M, Smooth, generator
from torch import nn

from components.denoisers import Denoiser, GaussianMean, Guided
from components.samplers import (
    DDIM,
    Ancestral,
    DPMSolverPP,
    Euler,
    Evaluation,
    Grid,
    Heun,
    Sampler,
    SDEDPMSolverPP,
    invert,
    time_grid,
)
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LogSNRLinearSchedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)

LINE = LogSNRLinearSchedule(5.0, -5.0)
MEAN, STD = 0.8, 0.5


def gaussian(schedule, mean, covariance):
    return Denoiser(GaussianMean(schedule, mean, covariance), schedule, "sample")


def one_dimensional(schedule=LINE, mean=MEAN, std=STD):
    return gaussian(schedule, torch.tensor([mean], dtype=F64), torch.tensor([[std**2]], dtype=F64))


# Row 18


def walked(method, denoiser, x, times, noise):
    """Down the grid as a sampler goes, with noise(x) in the place of all noise that it draws."""
    denoise, memory = Evaluation(denoiser, None), None
    for coefficients in method.plan(denoiser.schedule, Grid.of(denoiser.schedule, times, x.device)):
        x, memory = method.step(denoise, x, coefficients, memory, lambda: noise(x))  # noqa: B023
    return x


def test_ddim_with_eta_1_is_ancestral_sampling(row):
    """DDIM with η = 1 is ancestral sampling with the small variance, step by step. Song 2020, 2010.02502, eq. 16."""
    worst = dict.fromkeys(("mean", "standard deviation"), 0.0)
    x = torch.randn(4, 3, dtype=F64)
    for schedule in (LogSNRLinearSchedule(8.0, -6.0), CosineSchedule(), BetaSchedule(), FlowSchedule()):
        denoiser = Denoiser(Smooth(), schedule, "v_prediction")
        for t, s in pairwise(time_grid(7, 1.0, 0.01)):
            p, times = denoiser.reverse(x, s, t), torch.stack([t, s])
            mean = walked(DDIM(eta=1.0), denoiser, x, times, torch.zeros_like)
            std = walked(DDIM(eta=1.0), denoiser, x, times, torch.ones_like) - mean
            worst["mean"] = max(worst["mean"], (mean - p.mean).abs().max().item())
            worst["standard deviation"] = max(worst["standard deviation"], (std - p.std).abs().max().item())
    for words, error in worst.items():
        row(18, error, 0.0, 1e-12, words=words)


def test_ddim_without_eta_is_deterministic_and_can_be_undone(row):
    """DDIM with η = 0 is deterministic, and undone as steps grow. Song 2020, 2010.02502, section 4.3."""
    denoiser, noise = one_dimensional(), torch.randn(8, 1, dtype=F64)
    ddim = partial(Sampler("ddim"), mean_at_end=False)
    errors = {}
    for steps in (50, 100, 200, 400):
        times = time_grid(steps)
        x = ddim(denoiser, noise, None, generator(), times)
        row(
            18,
            (x - ddim(denoiser, noise, times=times)).abs().max(),
            0.0,
            0.0,
            words=f"of two generators, {steps} steps",
        )
        errors[steps] = (invert(denoiser, x, times, mean_at_end=False) - noise).abs().max().item()
    row(18, errors[50], at_most=0.2, words="noise that is not found again, 50 steps")
    for few, many in pairwise(errors):
        row(18, errors[few] / errors[many], 2.0, 0.15, words=f"times as much as with {many} steps")
    times = time_grid(50)
    found = invert(denoiser, ddim(denoiser, noise, times=times), times, iterations=60, mean_at_end=False)
    row(18, (found - noise).abs().max(), 0.0, 1e-8, words="50 steps, each solved for where it came from")


def test_ddim_on_the_cosine_schedule_shrinks_a_standard_normal(row):
    """With α = cos φ, N steps even in φ take N(0, 1) to variance cos(π/2N)^2N: each multiplies by cos Δφ."""
    for steps, expected in ((10, 0.780546), (100, 0.975627)):
        x = Sampler("ddim", steps)(one_dimensional(CosineSchedule(), 0.0, 1.0), torch.ones(1, 1, dtype=F64))
        row(18, x.square(), math.cos(math.pi / 2 / steps) ** (2 * steps), 1e-12, words=f"variance, {steps} steps")
        row(18, x.square(), expected, 1e-6, words=f"the figure, {steps} steps")


# Row 28


def carried(denoiser, mean, root, times):
    """Mean and covariance of N(mean, root rootᵀ) taken down the times, exactly, since the map is affine."""
    x = Sampler("heun")(denoiser, torch.cat([mean[None], mean + root.T]), times=times)
    spread = x[1:] - x[0]
    return x[0], spread.T @ spread


def test_the_probability_flow_carries_a_gaussian_to_its_marginals(row):
    """The probability-flow ODE carries N(m, Σ) to q(x_t) at every t. Song 2021, 2011.13456, section 4.3."""
    starts = {
        "log-SNR linear": (LogSNRLinearSchedule(8.0, -6.0), 1.0),
        "table": (BetaSchedule(), 1.0),
        "variance preserving": (VariancePreservingSchedule(), 1.0),
        "exploding": (VarianceExplodingSchedule(0.1, 5.0), 1.0),
        "EDM": (EDMSchedule(0.01, 20.0), 1.0),
        "flow": (FlowSchedule(), 0.98),
    }
    for name, (schedule, start) in starts.items():
        denoiser, worst = gaussian(schedule, M, COVARIANCE), torch.zeros(2, dtype=F64)

        def marginal(t, schedule=schedule):
            alpha, sigma = schedule.alpha_sigma(t)
            return alpha * M, alpha**2 * COVARIANCE + sigma**2 * torch.eye(len(M), dtype=F64)

        mean, covariance = marginal(start)
        for t, s in pairwise((start, 0.8, 0.5, 0.3, 0.1, 0.01)):
            times = time_grid(150, t, s, "log_snr", schedule)
            mean, covariance = carried(denoiser, mean, torch.linalg.cholesky(covariance), times)
            errors = [(found - exact).abs().max() for found, exact in zip((mean, covariance), marginal(s))]
            worst = torch.maximum(worst, torch.stack(errors))
        row(28, worst[0], 0.0, 1e-4, words=f"{name}: error of the mean")
        row(28, worst[1], 0.0, 1e-4, words=f"{name}: error of the covariance")


# Row 31


def moments(method, steps):
    """The exact mean and variance that a method makes of N(MEAN, STD²), from the exact start: it is affine in x and in
    every noise, so one path has neither, and each of the others has one of them at 1."""
    denoiser = one_dimensional()
    (alpha, sigma), drawn = denoiser.schedule.alpha_sigma(1.0), []

    def unit(x):
        drawn.append(None)
        noise = torch.zeros_like(x)
        noise[1 + len(drawn)] = 1
        return noise

    x = torch.full((2 * steps + 2, 1), float(alpha * MEAN), dtype=F64)
    x[1] += (alpha**2 * STD**2 + sigma**2).sqrt()
    found = walked(method, denoiser, x, time_grid(steps), unit)
    return found[0].item(), (found[1:] - found[0]).square().sum().item()


def exact_moments():
    alpha, sigma = LINE.alpha_sigma(0.0)
    return (alpha * MEAN).item(), (alpha**2 * STD**2 + sigma**2).item()


def test_orders_of_convergence(row):
    """On N(m, s²), λ from -5 to 5, Euler and DDIM are of first order, Heun and DPM-Solver++ 2M of second.

    Karras 2022, 2206.00364, section 3; Lu 2022, 2211.01095, theorem 4.
    """
    _, variance = exact_moments()
    for method, order in ((Euler(), 1), (DDIM(), 1), (Heun(), 2), (DPMSolverPP(), 2)):
        few, many = (abs(moments(method, steps)[1] - variance) for steps in (64, 256))
        row(
            31,
            math.log(few / many, 4),
            float(order),
            0.15,
            words=f"{type(method).__name__}: slope of the error of the variance",
        )


STOCHASTIC = {
    "ancestral, small": Ancestral(),
    "ancestral, large": Ancestral("large"),
    "DDIM, η = 0": DDIM(),
    "DDIM, η = 0.5": DDIM(0.5),
    "DDIM, η = 1": DDIM(1.0),
    "Euler": Euler(),
    "Euler with churn": Euler(s_churn=10.0),
    "Heun": Heun(),
    "Heun with churn": Heun(s_churn=10.0),
    "DPM-Solver++ 2M": DPMSolverPP(),
    "SDE-DPM-Solver++ 2M": SDEDPMSolverPP(),
}


def test_every_sampler_has_the_same_moments_as_steps_grow(row):
    """Reverse SDE, ancestral and ODE samplers give one mean and one variance as steps grow. Song 2021, 2011.13456."""
    mean, variance = exact_moments()
    off = 0.0
    for words, method in STOCHASTIC.items():
        (_, few), (found, many) = (moments(method, steps) for steps in (128, 256))
        off = max(off, abs(found - mean))
        assert abs(many - variance) < abs(few - variance)
        # An error of first order halves: what extrapolation leaves of it is of second order.
        row(31, 2 * many - few, variance, relative=2e-3, words=f"{words}: variance")
    # The path through the mean is one that all follow exactly.
    row(31, off, 0.0, 1e-10, words="error of the mean, of the worst")


def test_the_sde_solver_is_of_second_order_in_its_moments(row):
    """SDE-DPM-Solver++ 2M has errors of its moments that fall as 1/steps². Lu 2022, 2211.01095, appendix A."""
    _, variance = exact_moments()
    errors = [abs(moments(SDEDPMSolverPP(), n)[1] - variance) for n in (64, 256)]
    row(31, math.log(errors[0] / errors[1], 4), 2.0, 0.15, words="slope of the error of the variance")


# Row 32


class Labelled(nn.Module):
    """The best answers for two Gaussians of one covariance, by label, and for a third without one."""

    num_classes = 2

    def __init__(self, schedule, means):
        super().__init__()
        self.of = nn.ModuleList([GaussianMean(schedule, mean, COVARIANCE) for mean in means])

    def forward(self, x_t, t, cond=None):
        cond = torch.full((len(x_t),), 2) if cond is None else cond
        every = torch.stack([mean(x_t, t) for mean in self.of])
        return every[cond, torch.arange(len(x_t))]


def test_guidance_of_gaussians_is_the_extrapolated_gaussian(row):
    """ε_∅ + (1 + w)(ε_c - ε_∅) of two Gaussians of one covariance is that of the Gaussian at m_∅ + (1 + w)(m_c - m_∅).

    So every sampler draws the same, step by step, as with that Gaussian's own denoiser. Ho & Salimans 2022, 2207.12598.
    """
    means = torch.stack([M, -0.5 * M + 0.3, 0.2 * M])
    cond, x = torch.tensor([0, 1, 1, 0]), torch.randn(4, 3, dtype=F64)
    shifted = means[2] + 3.5 * (means[:2] - means[2])
    worst, t = {}, torch.tensor(0.4, dtype=F64)
    for schedule in (LogSNRLinearSchedule(8.0, -6.0), CosineSchedule(), FlowSchedule()):
        denoiser = Denoiser(Labelled(schedule, means), schedule, "sample")
        closed = Denoiser(Labelled(schedule, torch.cat([shifted, means[2:]])), schedule, "sample")
        expected = {0.0: denoiser(x, t, cond), -1.0: denoiser(x, t), 2.5: closed(x, t, cond)}
        found = {
            f"score at w = {w:g}": Guided(denoiser, 1 + w)(x, t, cond).score - e.score for w, e in expected.items()
        }
        for words, method in STOCHASTIC.items():
            guided, drawn = (
                Sampler(method)(d, x, cond, generator(), time_grid(12)) for d in (Guided(denoiser, 3.5), closed)
            )
            found[f"samples by {words}"] = guided - drawn
        for words, difference in found.items():
            worst[words] = max(worst.get(words, 0.0), difference.abs().max().item())
    for words, error in worst.items():
        row(32, error, 0.0, 1e-10, words=words)
