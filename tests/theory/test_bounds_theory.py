"""The bound of a diffusion: rows 23 to 25 and 27."""

import math

import torch
from answers import F64, NAMES
from diffusions import EPSILON4, SIGMA_DATA, X4, S, exact, gauss_legendre, given, over_levels, wrong
from known import bent

from components.distributions import Normal, kl
from components.losses import weightings
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
    ShiftedSchedule,
    VarianceExplodingSchedule,
    over,
)

ENTROPY = Normal(torch.zeros(1, 1, dtype=F64), S).entropy().item()


def integrated(model, name=None, s=S, n=600):
    """The exact mean of a continuous bound, or of one term of it, over x ~ N(0, s²), ε and t."""
    u, share = gauss_legendre(n)
    times = given(model, EPSILON4.repeat(n, 1), u.repeat_interleave(4))
    with torch.no_grad():
        terms = model.nll(s * X4.repeat(n, 1), times=times)
    each = terms.per_example if name is None else terms[name][1]
    return (share * each.view(n, 4).mean(1)).sum()


def test_the_discrete_bound_falls_to_the_entropy(row):
    """With T steps the bound of N(0, s²) exceeds ½ log 2πe s² by what falls as 1/T. Kingma 2021, 2107.00630, eq. 12."""
    known = {10: 9.77156, 100: 0.529685, 1000: 0.050232, 10_000: 0.0050056}
    excess = {}
    for steps, expected in known.items():
        found = [over_levels(exact(prediction=name, timesteps=steps), steps) - ENTROPY for name in NAMES]
        row(23, torch.stack(found), expected, relative=1e-5, words=f"bound less entropy, T = {steps}, nats")
        excess[steps] = found[0]
    row(23, 10_000 * excess[10_000], 50.056, relative=1e-5, words="T × that at T = 10 000")
    # Euler and Maclaurin: ¼ Δλ (∫ SNR mmse dλ + its value at t = 1 - that at t = 0)
    start, end = (math.exp(log_snr) * S**2 / (1 + math.exp(log_snr) * S**2) for log_snr in (13.3, -5.0))
    limit = 18.3 / 4 * (2 * 5.956015 + end - start)
    row(23, 10_000 * (excess[10_000] - 9.6e-6), limit, relative=1e-3, words="T × (that - 9.6e-6), against its limit")


def test_the_continuous_bound_is_an_integral_of_the_least_error(row):
    """T → ∞ gives ½ ∫ mmse dSNR = ½ log (1 + s² SNR_0)/(1 + s² SNR_1). Guo 2005; Kingma 2021, 2107.00630, eq. 17."""
    row(23, integrated(exact(), "diffusion"), 5.956015, relative=1e-6, words="s = .5: the diffusion term, nats")
    row(23, integrated(exact()), 0.725801, 1e-6, words="s = .5: the bound")
    row(23, ENTROPY, 0.725791, 1e-6, words="s = .5: the entropy")
    for s in (0.2, 1.3):
        high, low = math.exp(13.3), math.exp(-5.0)
        expected = 0.5 * math.log((1 + s**2 * high) / (1 + s**2 * low))
        found = integrated(exact(s=s), "diffusion", s)
        row(23, found, expected, relative=1e-6, words=f"s = {s}: the diffusion term")


def test_the_continuous_bound_knows_a_schedule_by_its_ends(row):
    """The continuous bound is one number for all schedules with equal ends. Kingma 2021, 2107.00630, section 5.1."""
    ends = {"sigma_min": math.exp(-13.3 / 2), "sigma_max": math.exp(2.5)}
    shifted = CosineSchedule(13.3 + 2 * math.log(3), -5.0 + 2 * math.log(3))
    kinds = {
        "log-SNR linear": LogSNRLinearSchedule(),
        "cosine": CosineSchedule(13.3, -5.0),
        "learned": LearnedSchedule(),
        "learned, any weights": bent(),
        "exploding": VarianceExplodingSchedule(**ends),
        "EDM": EDMSchedule(**ends, rho=5.0),
        "cosine, shifted": ShiftedSchedule(shifted, 3.0),
    }
    for name, schedule in kinds.items():
        found = torch.stack([integrated(exact(schedule, prediction), "diffusion") for prediction in NAMES])
        row(24, found, 5.956015, relative=1e-6, words=f"{name}, by quadrature")


def test_the_continuous_bound_by_monte_carlo(row):
    """Drawn at random x, ε and t, the bound has that one number for its mean. Kingma 2021, 2107.00630, section 5.1."""
    x = S * torch.randn(20_000, 2, dtype=F64)
    for name, schedule in {"log-SNR linear": LogSNRLinearSchedule(), "learned": LearnedSchedule()}.items():
        with torch.no_grad():
            each = exact(schedule=schedule, shape=2).nll(x).per_example / 2
        # low-discrepancy times are not independent, which makes the true error smaller than this one
        row(24, each.mean(), 0.725801, standard_error=each.std() / math.sqrt(len(x)), words=f"{name}, 20 000 draws")


def test_a_level_is_the_error_in_x_reweighted(row):
    """With the posterior's own variance L_{t-1} is ½ (SNR_s - SNR_t) ‖x - x̂‖². Kingma 2021, 2107.00630, eq. 13."""
    brute, formula = [], []
    x, epsilon = torch.randn(2, 6, 3, dtype=F64)
    for prediction in NAMES:
        for schedule in (LogSNRLinearSchedule(), EDMSchedule(0.01, 20.0), CosineSchedule(9.0, -9.0), BetaSchedule()):
            model = wrong(schedule, prediction, timesteps=12)
            given(model, epsilon)
            for s, t in model.elbo.chain:
                alpha, sigma = schedule.alpha_sigma(t)
                x_t = alpha * x + sigma * epsilon
                level = model.elbo.level(model.denoiser, x, s, t)
                expected = kl(schedule.posterior(x_t, x, s, t), model.denoiser.reverse(x_t, s, t))
                brute.append((level - expected) / (1 + expected))
                fall = schedule.log_snr(s).exp() - schedule.log_snr(t).exp()
                expected = 0.5 * fall * (x - model.denoiser(x_t, t).mean).square().sum(1)
                formula.append((level - expected) / (1 + expected))
    row(25, torch.stack(brute), 0.0, 1e-10, words="a level against KL(q(x_s|x_t, x) ‖ p(x_s|x_t)), relative")
    row(25, torch.stack(formula), 0.0, 1e-10, words="a level against ½ (SNR_s - SNR_t) ‖x - x̂‖², relative")


def test_the_simple_loss_is_the_bound_reweighted(row):
    """Weight × the bound's integrand is the loss of ε, x, v, a velocity or F. Ho 2020, eq. 14; Salimans & Ho 2022."""
    x, epsilon = torch.randn(2, 50, 3, dtype=F64)
    u = torch.rand(50, dtype=F64) * 0.9 + 0.05
    weights = {
        "epsilon": lambda a, s: torch.ones_like(a),
        "sample": lambda a, s: (s / a) ** 2,
        "v_prediction": lambda a, s: (a**2 + s**2) ** 2 / a**2,
        "flow": lambda a, s: ((a + s) / a) ** 2,
        "edm": lambda a, s: ((s / a) ** 2 + SIGMA_DATA**2) / SIGMA_DATA**2,
    }
    for prediction, weight in weights.items():
        errors = []
        for schedule in (LogSNRLinearSchedule(), EDMSchedule(0.01, 20.0)):
            model = wrong(schedule, prediction)
            integrand = model.nll(x, times=given(model, epsilon, u))["diffusion"][1]
            expected = 2 / -schedule.slope(u) * weight(*schedule.alpha_sigma(u)) * integrand
            errors.append(model.loss(x)["simple"][1] / expected - 1)
        row(27, torch.stack(errors), 0.0, 1e-10, words=f"{prediction}: relative, continuous time")


def test_the_simple_loss_is_the_bound_reweighted_in_discrete_time(row):
    """Of T levels the weight is that of SNR_s/SNR_t - 1. Ho 2020, 2006.11239, eq. 12 and 14."""
    x, epsilon = torch.randn(2, 50, 3, dtype=F64)
    u = torch.full((50,), 0.6, dtype=F64)  # t = 13/20
    schedule = LogSNRLinearSchedule()
    snr, ratio = schedule.log_snr(0.65).exp(), torch.expm1(schedule.log_snr(0.6) - schedule.log_snr(0.65))
    for prediction, weight in {"epsilon": 1.0, "sample": 1 / snr, "v_prediction": 1 + 1 / snr}.items():
        model = wrong(schedule, prediction, timesteps=20)
        expected = weight * model.nll(x, times=given(model, epsilon, u))["diffusion"][1] / (20 * 0.5 * ratio)
        row(27, model.loss(x)["simple"][1] / expected, 1.0, 1e-10, words=f"{prediction}: ratio, T = 20")


def test_weightings_are_the_bound_reweighted(row):
    """w(λ) on the loss of ε is w SNR on that of x. Hang 2023, 2303.09556; Karras 2022; Choi 2022, 2204.00227."""
    x, epsilon = torch.randn(2, 50, 3, dtype=F64)
    u = torch.rand(50, dtype=F64) * 0.9 + 0.05
    schedule = LogSNRLinearSchedule(8.0, -6.0)
    alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(u))
    snr = schedule.log_snr(u).exp()
    on_x = {
        "min-SNR": (weightings.min_snr(5.0), snr.clamp(max=5)),
        "P2": (weightings.p2(), snr / (1 + snr)),
        "EDM": (weightings.edm(0.5), snr + 4),
        "L_simple": (weightings.simple, snr),
    }
    for name, (weighting, expected) in on_x.items():
        model = wrong(schedule, weighting=weighting)
        given(model, epsilon, u)
        error = (x - model.denoiser(alpha * x + sigma * epsilon, u).mean).square().sum(1)
        row(27, model.loss(x)["weighted"][1] / (expected * error), 1.0, 1e-10, words=f"{name}: ratio")
