"""A diffusion model is a hierarchical VAE: row 26."""

import math

import torch
from answers import F64, generator
from diffusions import given_noise, wrong

from components.distributions import Normal
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
    VarianceExplodingSchedule,
    over,
)
from hybrids.models import HierarchicalVAE

SCHEDULES = {
    "log-SNR linear": LogSNRLinearSchedule(6.0, -5.0),
    "learned": LearnedSchedule(6.0, -5.0),
    "cosine": CosineSchedule(6.0, -5.0),
    "exploding": VarianceExplodingSchedule(0.05, 20.0),
    "table": BetaSchedule(num_train_timesteps=10),
    "clean cosine": CosineSchedule(math.inf, -5.0),
}
VARIANCES = ("small", "large", "learned_range")


def noise_of(model, ladder, x):
    """The ladder's terms, and what it drew at each of its levels from the top, as the ε of x_t = α x + σ ε."""
    terms, drawn, x_t, epsilon = ladder.nll(x, generator=generator()), generator(), None, []
    times = [1.0, *(s for s, _ in reversed(model.elbo.chain))]
    for t, level in zip(times, ladder.ladder, strict=True):
        x_t = level.posterior(x_t, x).rsample(drawn)
        alpha, sigma = (over(c, x) for c in model.denoiser.schedule.alpha_sigma(t))
        epsilon.append((x_t - alpha * x) / sigma)
    return terms, epsilon


@torch.no_grad()
def test_the_elbo_of_the_ladder_is_the_bound_of_the_diffusion_term_by_term(row):
    """The ELBO of T latents with fixed encoders is the bound of the diffusion, term by term. Kingma 2021, section 2."""
    x = 0.7 * torch.randn(6, 3, dtype=F64)
    errors = {"L_T": [], "L_{t-1}, each": [], "L_0": [], "the sum": []}
    for schedule in SCHEDULES.values():
        for variance in VARIANCES:
            model = wrong(schedule, "sample", 3, variance, timesteps=10)
            terms, epsilon = noise_of(model, HierarchicalVAE.from_diffusion(model), x)
            names = [f"rate_{i}" for i in range(1, len(epsilon) + 1)]
            assert list(terms) == ["distortion", *names] and all(weight == 1 for weight, _ in terms.values())
            assert all((values.abs() > 1e-6).all() for _, values in terms.values()), "else this test would say nothing"
            for name, (s, t), noise in zip(names[1:], reversed(model.elbo.chain), epsilon):
                given_noise(model.denoiser, noise)
                level = model.elbo.level(model.denoiser, x, s, t)
                errors["L_{t-1}, each"].append((terms[name][1] - level) / (1 + level))
            # All at once: from the cleanest level up, then L_0.
            given_noise(model.denoiser, *reversed(epsilon[:-1]), epsilon[-1])
            bound = model.bound(x)
            parts = (("L_T", "rate_1", "prior"), ("L_0", "distortion", "reconstruction"))
            for part, ours, theirs in parts:
                errors[part].append((terms[ours][1] - bound[theirs][1]) / (1 + bound[theirs][1].abs()))
            errors["the sum"].append((terms.per_example - bound.per_example) / (1 + bound.per_example.abs()))
    for part, differences in errors.items():
        row(26, torch.stack(differences), 0.0, 1e-10, words=f"{part}: relative difference")


@torch.no_grad()
def test_the_chain_from_the_bottom_up_agrees_in_expectation(row):
    """Drawn as a chain, x_t ~ q(x_t|x_s), log q - log p has the mean of the closed KLs. Ho 2020, 2006.11239, eq. 3."""
    n = 40_000
    x = torch.tensor([0.6, -0.4], dtype=F64).expand(n, 2)
    schedule = BetaSchedule("scaled_linear", 5, 0.1, 0.7)
    for variance in VARIANCES:
        model = wrong(schedule, "sample", 2, variance, timesteps=5)
        top_down = HierarchicalVAE.from_diffusion(model).nll(x).per_example
        q = schedule.marginal(x, model.elbo.first)
        x_s = q.rsample()
        bottom_up = q.log_prob(x_s) - model.elbo.decode(model.denoiser, x_s).log_prob(x)
        for s, t in model.elbo.chain:
            q = schedule.transition(x_s, s, t)
            x_t = q.rsample()
            bottom_up = bottom_up + q.log_prob(x_t) - model.denoiser.reverse(x_t, s, t).log_prob(x_s)
            x_s = x_t
        bottom_up = bottom_up - Normal(torch.zeros_like(x_s), 1.0).log_prob(x_s)
        error = math.sqrt((top_down.var() + bottom_up.var()).item() / n)
        row(26, bottom_up.mean(), top_down.mean(), standard_error=error, words=f"{variance}: nats, 40 000 chains")
