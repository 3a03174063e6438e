"""A denoiser is a backbone, a schedule and a parameterization: p(x|x_t), and from it p(x_s|x_t)."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .distributions import Delta, Normal
from .precision import wide, widest
from .schedules import Schedule, Time, over

__all__ = ["Denoiser", "Estimate", "Prediction", "Variance"]

Prediction = Literal["epsilon", "sample", "v_prediction"]
Variance = Literal["small", "large"]


class Estimate(Delta):
    """A point estimate of x from x_t, seen as x̂, ε̂, v̂ or the score: each is exact given the others.

    x_t = α x̂ + σ ε̂ and v̂ = α ε̂ - σ x̂, so x̂ = (x_t - σ ε̂)/α = (α x_t - σ v̂)/(α² + σ²), and the score is -ε̂/σ.
    As a distribution it is Delta(x̂). Salimans & Ho 2022, 2202.00512, appendix D.
    Arguments: x_t and output (B, *event), alpha and sigma () or (B,), prediction: what `output` is.
    """

    def __init__(self, x_t: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction, output: Tensor) -> None:
        self.x_t, self.prediction, self.output = wide(x_t), prediction, wide(output)
        self._alpha, self._sigma = alpha, sigma
        self.alpha, self.sigma = over(alpha, self.x_t), over(sigma, self.x_t)
        super().__init__(self._x())

    def _x(self) -> Tensor:
        if self.prediction == "epsilon":
            return (self.x_t - self.sigma * self.output) / self.alpha
        if self.prediction == "v_prediction":
            return (self.alpha * self.x_t - self.sigma * self.output) / over(self._square(), self.x_t)
        return self.output

    def _square(self) -> Tensor:
        return self._alpha.square() + self._sigma.square()

    @property
    def epsilon(self) -> Tensor:
        """ε̂ (B, *event)."""
        if self.prediction == "epsilon":
            return self.output
        if self.prediction == "v_prediction":
            return (self.sigma * self.x_t + self.alpha * self.output) / over(self._square(), self.x_t)
        return (self.x_t - self.alpha * self.mean) / self.sigma

    @property
    def v(self) -> Tensor:
        """v̂ = α ε̂ - σ x̂ (B, *event)."""
        return self.output if self.prediction == "v_prediction" else self.alpha * self.epsilon - self.sigma * self.mean

    @property
    def score(self) -> Tensor:
        """∇ log q(x_t) = -ε̂/σ (B, *event)."""
        return -self.epsilon / self.sigma

    def clamp(self, low: float, high: float) -> "Estimate":
        """The same with x̂ kept in [low, high]; ε̂ and v̂ follow."""
        return Estimate(self.x_t, self._alpha, self._sigma, "sample", self.mean.clamp(low, high))


class Denoiser(nn.Module):
    """p(x|x_t) and p(x_s|x_t) from a network that predicts ε, x or v.

    Arguments: backbone, a network (x_t, t, cond) → like x_t; schedule; prediction, what the network's output means;
    variance of p(x_s|x_t): small is the posterior's, σ²_{t|s} σ_s²/σ_t², large is σ²_{t|s} (Ho 2020, 2006.11239,
    section 3.2); clip, bounds that x̂ is kept in by `reverse` and by samplers, never in the loss of ε.
    Raises ValueError for an unknown prediction or variance, and for epsilon with a schedule that ends in pure noise,
    where ε says nothing of x (Lin 2023, 2305.08891).
    """

    def __init__(
        self,
        backbone: nn.Module,
        schedule: Schedule,
        prediction: Prediction = "epsilon",
        variance: Variance = "small",
        clip: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}; got {prediction!r}")
        if variance not in get_args(Variance):
            raise ValueError(f"variance must be one of {', '.join(get_args(Variance))}; got {variance!r}")
        if prediction == "epsilon" and bool(schedule.alpha_sigma(1.0)[0] == 0):
            raise ValueError(
                f"prediction 'epsilon' does not go with {type(schedule).__name__} ending at α = 0: x̂ = (x_t - σ ε̂)/α "
                "is undefined there; use v_prediction or sample, or a finite log_snr_min"
            )
        self.backbone, self.schedule = backbone, schedule
        self.prediction: Prediction = prediction
        self.variance: Variance = variance
        self.clip = clip

    def forward(self, x_t: Tensor, t: Time, cond: Tensor | None = None) -> Estimate:
        """p(x|x_t) as a point estimate, for x_t (B, *event) and t in [0, 1], () or (B,)."""
        t = t.to(x_t.device) if isinstance(t, Tensor) else widest(t, x_t.device)
        if t.ndim > 1 or (t.ndim == 1 and len(t) != len(x_t)):
            raise ValueError(f"t must be () or (B,) = ({len(x_t)},) in [0, 1]; got shape {tuple(t.shape)}")
        alpha, sigma = self.schedule.alpha_sigma(t)
        return Estimate(x_t, alpha, sigma, self.prediction, self.backbone(x_t, t, cond))

    def clipped(self, x_t: Tensor, t: Time, cond: Tensor | None = None) -> Estimate:
        """The estimate with x̂ kept within `clip`: what samplers use."""
        estimate = self(x_t, t, cond)
        return estimate.clamp(*self.clip) if self.clip else estimate

    def reverse(self, x_t: Tensor, s: Time, t: Time, cond: Tensor | None = None) -> Normal | Delta:
        """p(x_s|x_t) = q(x_s|x_t, x̂) for s < t, with the small or the large variance.

        At a noiseless s the small variance is 0: Delta(x̂).
        """
        x = self.clipped(x_t, t, cond).mean
        posterior = self.schedule.posterior(x_t, x, s, t)
        if self.variance == "small":
            return posterior
        return Normal(posterior.mean, over(self.schedule.step(s, t)[1].sqrt(), x))

    def extra_repr(self) -> str:
        return f"prediction={self.prediction!r}, variance={self.variance!r}, clip={self.clip}"

