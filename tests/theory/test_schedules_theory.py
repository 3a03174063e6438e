"""The noising process: rows 14 to 16."""

import math

import torch
from answers import F64
from known import schedules

from components.distributions import Normal, kl
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    LogSNRLinearSchedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
    over,
)


def two_times(n=200):
    """s < t, each (n,), away from the ends."""
    return (torch.rand(2, n, dtype=F64) * 0.98 + 0.01).sort(0).values


def test_the_marginal_composes(row):
    """q(x_t|x_s) after q(x_s|x) is q(x_t|x), for every schedule: any level is one step from x. Ho 2020, eq. 4."""
    means, stds = [], []
    for schedule in schedules().values():
        s, t = two_times()
        x = torch.randn(200, 1, dtype=F64)
        q_s, q_t = schedule.marginal(x, s), schedule.marginal(x, t)
        step = schedule.transition(q_s.mean, s, t)
        means.append(step.mean / q_t.mean)
        carried = schedule.transition(q_s.std, s, t).mean  # the noise of x_s, as much smaller as x_s is
        stds.append((carried.square() + step.std.square()) / q_t.std.square())
    row(14, torch.stack(means), 1.0, 1e-12, words="mean of x_t in two steps, over that in one")
    row(14, torch.stack(stds), 1.0, 1e-12, words="its variance, likewise")


def test_the_posterior_is_bayes_rule(row):
    """q(x_s|x_t, x) q(x_t|x) = q(x_t|x_s) q(x_s|x) as log-densities at random points. Ho 2020, 2006.11239, eq. 7."""
    found, expected = [], []
    for schedule in schedules().values():
        s, t = two_times()
        x, x_s, x_t = torch.randn(3, 200, 4, dtype=F64)
        # points where the densities are: far out in the tails the squares are large, and their difference inexact
        x_s = schedule.marginal(x, s).mean + over(schedule.alpha_sigma(s)[1], x) * x_s
        q = schedule.transition(x_s, s, t)
        x_t = q.mean + q.std * x_t
        found.append(schedule.posterior(x_t, x, s, t).log_prob(x_s) + schedule.marginal(x, t).log_prob(x_t))
        expected.append(q.log_prob(x_t) + schedule.marginal(x, s).log_prob(x_s))
    difference = torch.stack(found) - torch.stack(expected)
    row(15, difference, 0.0, 1e-10, words="log of the left side less log of the right")


def test_alpha_sigma_and_lambda_agree(row):
    """λ_t = log(α_t²/σ_t²) falls strictly, and each family keeps its law. Kingma 2021, 2107.00630, section 3.1."""
    t, grid = torch.rand(500, dtype=F64) * 0.98 + 0.01, torch.linspace(0, 1, 3001, dtype=F64)
    ratios, laws, falls, again = [], [], [], []
    for name, schedule in schedules().items():
        alpha, sigma = schedule.alpha_sigma(t)
        ratios.append(schedule.log_snr(t) - 2 * (alpha.log() - sigma.log()))
        laws.append(alpha if schedule.exploding else alpha + sigma if "flow" in name else alpha**2 + sigma**2)
        again.append(torch.stack(schedule.coefficients(schedule.log_snr(t))) / torch.stack((alpha, sigma)))
        falls.append((schedule.log_snr(grid)[1:] < schedule.log_snr(grid)[:-1]).all())
    row(16, torch.stack(ratios), 0.0, 1e-12, words="λ less log α²/σ²")
    row(16, torch.stack(laws), 1.0, 1e-12, words="α² + σ², or α, or α + σ")
    row(16, torch.stack(again), 1.0, 1e-11, words="α and σ made of λ, over α and σ")
    row(16, torch.stack(falls), 1.0, 0.0, words="λ falls strictly at 3000 steps")


def test_the_ends_are_those_documented(row):
    """Ends of λ and σ are those asked for, and zero terminal SNR is exact. Lin 2023, 2305.08891."""
    for high, low in ((8.0, -10.0), (13.3, -5.0), (2.5, 1.0)):
        given = (CosineSchedule(high, low), LogSNRLinearSchedule(high, low))
        ends = torch.tensor([[schedule.log_snr(t) for t in (0.0, 1.0)] for schedule in given])
        row(16, ends, [high, low], 1e-12, words=f"λ at the ends, {high} and {low} asked for")
    loud = (VarianceExplodingSchedule(0.01, 50.0), EDMSchedule(0.01, 50.0))
    ends = torch.tensor([[schedule.alpha_sigma(t)[1] for t in (0.0, 1.0)] for schedule in loud], dtype=F64)
    row(16, ends, [0.01, 50.0], relative=1e-12, words="σ at the ends, 0.01 and 50 asked for")
    pure = [schedule for name, schedule in schedules().items() if "pure" in name or name in ("cosine", "flow")]
    last = torch.stack([schedule.alpha_sigma(1.0)[0] for schedule in pure])
    row(16, last, 0.0, 0.0, words="α_1 of zero terminal SNR")
    row(16, torch.stack([schedule.log_snr(1.0) for schedule in pure]), -math.inf, 0.0, words="λ_1 of zero terminal SNR")


def test_the_integral_of_beta_is_the_level(row):
    """log ᾱ_t of the variance-preserving process is -∫ β. Song 2021, 2011.13456, appendix C; Xiao 2021, 2112.07804."""
    errors = []
    for schedule in (VariancePreservingSchedule(), VariancePreservingSchedule(2.0, 2.0, 0.1)):
        t = torch.linspace(0, 1, 101, dtype=F64)
        beta = schedule.first + schedule.rise * schedule.length * t  # a straight line: the trapezoid rule is exact
        integral = torch.cumulative_trapezoid(beta, schedule.length * t)
        errors.append(-2 * schedule.alpha_sigma(t)[0][1:].log() - integral)
    row(16, torch.stack(errors), 0.0, 1e-12, words="-log ᾱ less ∫ β")
    steps = torch.stack([VariancePreservingSchedule().step((k - 1) / 4, k / 4)[1] for k in range(1, 5)])
    known = torch.tensor([0.47826, 0.84921, 0.95642, 0.98740], dtype=F64)
    row(16, steps, known, 1e-5, words="β of the denoising GAN's four steps")


def test_the_numbers_of_the_tables(row):
    """DDPM's linear and cosine tables have known levels. Ho 2020, 2006.11239; Nichol & Dhariwal 2021, 2102.09672."""
    linear, cosine = BetaSchedule(), BetaSchedule("squaredcos_cap_v2").alphas_cumprod
    row(16, linear.alphas_cumprod[-1], 4.035830e-5, relative=1e-6, words="linear: ᾱ_T")
    row(16, linear.alphas_cumprod.mean(), 0.2755132, relative=2e-7, words="linear: mean ᾱ")
    row(16, linear.posterior_coefficients(0.0, 0.001).std, 0.0, 0.0, words="linear: β̃_1")
    row(16, linear.posterior_coefficients(0.001, 0.002).std ** 2, 5.453188e-5, relative=1e-6, words="linear: β̃_2")
    last = kl(linear.marginal(torch.ones(1, 1, dtype=F64), 1.0), Normal(torch.zeros(1, 1, dtype=F64), 1.0))
    row(16, last, 2.01796e-5, relative=3e-6, words="linear: L_T at E x² = 1, nats a dimension")
    row(16, cosine[-1], 2.42877e-9, relative=3e-6, words="cosine: ᾱ_T")
    row(16, cosine[499], 0.493844, relative=2e-6, words="cosine: ᾱ_500")
