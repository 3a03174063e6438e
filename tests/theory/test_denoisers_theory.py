"""Denoisers and scores: rows 17, 19 to 22, 33."""

import torch
from answers import COVARIANCE, F64, NAMES, M, network_output
from diffusions import SIGMA_DATA
from known import denoiser, estimate, gaussian, gaussian_points, pairs

from components.denoisers import Denoiser, GaussianMean, MixtureMean
from components.schedules import CosineSchedule, EDMSchedule, FlowSchedule, LogSNRLinearSchedule, over
from hybrids.data.points import Mixture

MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [3.0, -2.0], [0.0, 2.0]], dtype=F64)
I3 = torch.eye(3, dtype=F64)


def times(n):
    return torch.rand(n, dtype=F64) * 0.9 + 0.05


def noised(schedule, d, n):
    """x_t where its density is, t, α and σ shaped to multiply it."""
    t = times(n)
    alpha, sigma = (c[:, None] for c in schedule.alpha_sigma(t))
    x_t = alpha * torch.randn(n, d, dtype=F64) + sigma * torch.randn(n, d, dtype=F64)
    return x_t.requires_grad_(), t, alpha, sigma


def marginal(alpha, sigma):
    """q(x_t) of N(M, COVARIANCE)."""
    covariance = alpha[..., None] ** 2 * COVARIANCE + sigma[..., None] ** 2 * I3
    return torch.distributions.MultivariateNormal(alpha * M, covariance)


def test_every_view_of_an_estimate_is_exact_given_another(row):
    """x̂, ε̂, v̂, a flow's velocity, the score and EDM's F are functions of each other. Salimans & Ho 2022, 2202.00512."""
    worst = dict.fromkeys(("x̂", "ε̂", "v̂", "velocity", "score", "α x̂ + σ ε̂ - x_t", "and back, in any other"), 0.0)
    kinds = (LogSNRLinearSchedule(8.0, -6.0), CosineSchedule(9.0, -9.0), EDMSchedule(0.1, 10.0), FlowSchedule())
    for schedule in kinds:
        x, epsilon = torch.randn(2, 5, 3, 4, dtype=F64)
        level = schedule.level(times(5), x)
        a, s = over(level.alpha, x), over(level.sigma, x)
        x_t = a * x + s * epsilon
        for prediction in NAMES:
            found = estimate(prediction, x_t, level, network_output(prediction, x, x_t, a, s, SIGMA_DATA))
            views = {
                "x̂": found.mean - x,
                "ε̂": found.epsilon - epsilon,
                "v̂": found.v - (a * epsilon - s * x),
                "velocity": found.flow - (epsilon - x),
                "score": found.score * s + epsilon,
                "α x̂ + σ ε̂ - x_t": a * found.mean + s * found.epsilon - x_t,
            }
            for other in NAMES:
                target = estimate(other, x_t, level, 0 * x).target(found.mean, found.epsilon)
                views["and back, in any other"] = estimate(other, x_t, level, target).mean - x
            for name, error in views.items():
                worst[name] = max(worst[name], error.abs().max().item())
    for name, error in worst.items():
        row(17, error, at_most=1e-10, words=f"largest error of {name}")


def test_the_best_denoiser_of_a_gaussian(row):
    """For N(m, Σ) it is x̂ = m + α Σ (α² Σ + σ² I)⁻¹ (x_t - α m). Conditional Gaussians; Karras 2022, appendix B.3."""
    errors = []
    for prediction, schedule in pairs():
        x_t, t, alpha, sigma = noised(schedule, 3, 6)
        gain = alpha[..., None] * COVARIANCE @ torch.linalg.inv(marginal(alpha, sigma).covariance_matrix)
        expected = M + (gain @ (x_t - alpha * M)[..., None])[..., 0]
        errors.append(gaussian(prediction, schedule)(x_t, t).mean - expected)
    row(19, torch.stack(errors), 0.0, 1e-10, words="x̂ less the formula, all predictions and schedules")


def test_the_least_epsilon_loss_is_its_known_residual(row):
    """E‖ε - ε̂‖² = tr(I - σ² (α² Σ + σ² I)⁻¹) at the best denoiser, and more at any other. Kay 1993, section 10.5."""
    x, epsilon = gaussian_points()
    schedule = LogSNRLinearSchedule(8.0, -6.0)
    mean = GaussianMean(schedule, M, COVARIANCE)

    def loss(t, change=0.0):
        alpha, sigma = schedule.alpha_sigma(t)
        model = denoiser("epsilon", lambda x_t, t: mean(x_t, t) + change * (x_t - alpha * M), schedule)
        return (epsilon - model(alpha * x + sigma * epsilon, t).epsilon).square().sum(1).mean()

    for t in (0.05, 0.4, 0.9):
        alpha, sigma = schedule.alpha_sigma(t)
        expected = (I3 - sigma**2 * torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * I3)).trace()
        row(19, loss(t), expected, 1e-9, words=f"the loss at t = {t}")
    row(19, min(loss(0.4, 1e-3), loss(0.4, -1e-3)) - loss(0.4), at_least=1e-9, words="what another gain adds")


def test_the_score_of_a_mixture(row):
    """-ε̂/σ of a mixture's best denoiser is ∇ log q(x_t), by autograd of the log-density. Song 2021, 2011.13456."""
    errors = []
    kinds = (LogSNRLinearSchedule(4.0, -4.0), CosineSchedule(4.0, -6.0), EDMSchedule(0.1, 20.0), FlowSchedule())
    for schedule in kinds:
        model = Denoiser(MixtureMean(schedule, MEANS, 0.3), schedule, "sample")
        for t in times(4):
            alpha, sigma = schedule.alpha_sigma(t)
            x_t = (3 * torch.randn(50, 2, dtype=F64)).requires_grad_()
            q = Mixture(alpha * MEANS, float(((0.3 * alpha) ** 2 + sigma**2).sqrt()))
            (score,) = torch.autograd.grad(q.log_prob(x_t).sum(), x_t)
            errors.append(model(x_t, t).score - score)
    row(20, torch.stack(errors), 0.0, 1e-10, words="score less autograd's")


def test_tweedie(row):
    """E[x|x_t] = (x_t + σ_t² ∇ log q(x_t))/α_t: to predict noise is to predict the score. Robbins 1956."""
    errors = []
    for prediction, schedule in pairs():
        x_t, t, alpha, sigma = noised(schedule, 3, 6)
        (score,) = torch.autograd.grad(marginal(alpha, sigma).log_prob(x_t).sum(), x_t)
        found = gaussian(prediction, schedule)(x_t, t)
        errors.append(alpha * found.mean - x_t - sigma**2 * score)
    row(21, torch.stack(errors), 0.0, 1e-10, words="Gaussian: α x̂ - x_t - σ² ∇ log q")
    schedule = LogSNRLinearSchedule(4.0, -4.0)
    mean, errors = MixtureMean(schedule, MEANS, 0.3), []
    for prediction in NAMES:
        alpha, sigma = schedule.alpha_sigma(0.4)
        x_t = (3 * torch.randn(50, 2, dtype=F64)).requires_grad_()
        q = Mixture(alpha * MEANS, float(((0.3 * alpha) ** 2 + sigma**2).sqrt()))
        (score,) = torch.autograd.grad(q.log_prob(x_t).sum(), x_t)
        errors.append(alpha * denoiser(prediction, mean, schedule)(x_t, 0.4).mean - x_t - sigma**2 * score)
    row(21, torch.stack(errors), 0.0, 1e-10, words="mixture: the same")


def test_denoising_and_explicit_score_matching_have_one_gradient(row):
    """E‖s - ∇ log q(x_t|x)‖² and E‖s - ∇ log q(x_t)‖² differ by a constant. Vincent 2011, eq. 11.

    Exactly, for s(x_t) = -G x_t on N(0, Σ).
    """
    x, epsilon = gaussian_points()
    schedule, t = LogSNRLinearSchedule(), 0.6
    q = schedule.marginal(x - M, t)
    x_t = (q.mean + q.std * epsilon).requires_grad_()
    (one,) = torch.autograd.grad(q.log_prob(x_t).sum(), x_t)
    exact = Denoiser(GaussianMean(schedule, 0 * M, COVARIANCE), schedule, "sample")(x_t, t).score.detach()
    gain = torch.randn(3, 3, dtype=F64, requires_grad=True)
    losses = [(x_t.detach() @ -gain - target).square().sum(1).mean() for target in (one, exact)]
    denoising, explicit = (torch.autograd.grad(loss, gain)[0] for loss in losses)
    row(22, denoising, explicit, relative=1e-6, words="gradient in G, the entry that fits worst")
    row(22, losses[0] - losses[1], at_least=1e-3, words="the constant, which is not zero")


def test_the_best_velocity_of_a_gaussian_s_flow(row):
    """E[ε - x|x_t] in closed form, which is -(x_t + t score)/(1 - t). Lipman 2022, 2210.02747; Liu 2022, 2209.03003."""
    velocities, scores = [], []
    for prediction in ("sample", "v_prediction", "flow"):
        x_t, t, a, s = noised(FlowSchedule(), 3, 6)
        found = gaussian(prediction, FlowSchedule())(x_t, t)
        gain = (s[..., None] * I3 - a[..., None] * COVARIANCE) @ torch.linalg.inv(marginal(a, s).covariance_matrix)
        velocities.append(found.flow + M - (gain @ (x_t - a * M)[..., None])[..., 0])
        scores.append(found.flow + (x_t + s * found.score) / a)
    row(33, torch.stack(velocities), 0.0, 1e-10, words="velocity less the closed form")
    row(33, torch.stack(scores), 0.0, 1e-10, words="velocity less -(x_t + t score)/(1 - t)")
    x, epsilon = gaussian_points()
    mean = GaussianMean(FlowSchedule(), M, COVARIANCE)

    def loss(change):
        model = denoiser("flow", lambda x_t, t: mean(x_t, t) + change * (x_t - 0.6 * M), FlowSchedule())
        found = model(0.6 * x + 0.4 * epsilon, 0.4)
        return (found.target(x, epsilon) - found.output).square().sum(1).mean()

    row(33, min(loss(1e-3), loss(-1e-3)) - loss(0.0), at_least=1e-9, words="what another gain adds to the loss")
