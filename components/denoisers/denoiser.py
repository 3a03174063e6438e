"""A denoiser is a backbone, a schedule and a parameterization: p(x|x_t), and from it p(x_s|x_t)."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..distributions import Delta, Normal
from ..precision import wide, widest
from ..schedules import Schedule, Time, over

__all__ = ["Denoiser", "Estimate", "Prediction", "Variance"]

Prediction = Literal["epsilon", "sample", "v_prediction", "flow", "edm"]
Variance = Literal["small", "large", "learned_range"]


class Estimate(Delta):
    """A point estimate of x from x_t, seen as x̂, ε̂, v̂, the flow's velocity or the score: each is exact given another.

    x_t = α x̂ + σ ε̂, v̂ = α ε̂ - σ x̂ and û = ε̂ - x̂, so x̂ = (x_t - σ ε̂)/α = (α x_t - σ v̂)/(α² + σ²)
    = (x_t - σ û)/(α + σ), and the score is -ε̂/σ. EDM's network F gives x̂ = c_skip x_t/α + c_out F.
    As a distribution it is Delta(x̂). Salimans & Ho 2022, 2202.00512, appendix D; Karras 2022, 2206.00364, eq. 7.
    Arguments: x_t and output (B, *event); alpha and sigma, () or (B,); prediction, what `output` is; sigma_data, the
    standard deviation of x that EDM's factors are made of; interpolation, v of the learned variance, or None.
    """

    def __init__(
        self,
        x_t: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        prediction: Prediction,
        output: Tensor,
        sigma_data: float = 0.5,
        interpolation: Tensor | None = None,
    ) -> None:
        self.x_t, self.prediction, self.output = wide(x_t), prediction, wide(output)
        self._alpha, self._sigma, self.sigma_data, self.interpolation = alpha, sigma, sigma_data, interpolation
        self.alpha, self.sigma = over(alpha, self.x_t), over(sigma, self.x_t)
        super().__init__(self._x())

    def _x(self) -> Tensor:
        if self.prediction == "epsilon":
            return (self.x_t - self.sigma * self.output) / self.alpha
        if self.prediction == "v_prediction":
            return (self.alpha * self.x_t - self.sigma * self.output) / over(self._square(), self.x_t)
        if self.prediction == "flow":
            return (self.x_t - self.sigma * self.output) / (self.alpha + self.sigma)
        if self.prediction == "edm":
            skip, out = self._edm()
            return skip * self.x_t / self.alpha + out * self.output
        return self.output

    def _edm(self) -> tuple[Tensor, Tensor]:
        """c_skip = σ_d²/(σ² + σ_d²) and c_out = σ σ_d/√(σ² + σ_d²), of σ_t/α_t."""
        noise = self._sigma / self._alpha
        total = noise.square() + self.sigma_data**2
        return over(self.sigma_data**2 / total, self.x_t), over(noise * self.sigma_data / total.sqrt(), self.x_t)

    def target(self, x: Tensor, epsilon: Tensor) -> Tensor:
        """What `output` should have been, given the x and ε that x_t was made of (B, *event)."""
        if self.prediction == "epsilon":
            return epsilon
        if self.prediction == "v_prediction":
            return self.alpha * epsilon - self.sigma * x
        if self.prediction == "flow":
            return epsilon - x
        if self.prediction == "edm":
            skip, out = self._edm()
            return (x - skip * self.x_t / self.alpha) / out
        return x

    def _square(self) -> Tensor:
        return self._alpha.square() + self._sigma.square()

    @property
    def epsilon(self) -> Tensor:
        """ε̂ (B, *event)."""
        if self.prediction == "epsilon":
            return self.output
        if self.prediction == "v_prediction":
            return (self.sigma * self.x_t + self.alpha * self.output) / over(self._square(), self.x_t)
        if self.prediction == "flow":
            return (self.x_t + self.alpha * self.output) / (self.alpha + self.sigma)
        return (self.x_t - self.alpha * self.mean) / self.sigma

    @property
    def v(self) -> Tensor:
        """v̂ = α ε̂ - σ x̂ (B, *event)."""
        return self.output if self.prediction == "v_prediction" else self.alpha * self.epsilon - self.sigma * self.mean

    @property
    def flow(self) -> Tensor:
        """û = ε̂ - x̂ (B, *event), dx_t/dt of the straight-line flow."""
        return self.output if self.prediction == "flow" else self.epsilon - self.mean

    @property
    def score(self) -> Tensor:
        """∇ log q(x_t) = -ε̂/σ (B, *event)."""
        return -self.epsilon / self.sigma

    def clamp(self, low: float, high: float) -> "Estimate":
        """The same with x̂ kept in [low, high]; ε̂ and v̂ follow."""
        x = self.mean.clamp(low, high)
        return Estimate(self.x_t, self._alpha, self._sigma, "sample", x, self.sigma_data, self.interpolation)


class Denoiser(nn.Module):
    """p(x|x_t) and p(x_s|x_t) from a network that predicts ε, x, v, a flow's velocity, or EDM's F.

    Arguments:
        backbone: a network (x_t, t, cond) → like x_t. It sees x_t/√(α² + σ²) where the schedule explodes, and for edm
            c_in x_t/α, c_in = 1/√(σ²/α² + σ_d²); t itself stands for c_noise.
        schedule: the noising process.
        prediction: what the network's output means.
        variance: of p(x_s|x_t). small is the posterior's, σ²_{t|s} σ_s²/σ_t², large is σ²_{t|s} (Ho 2020, 2006.11239,
            section 3.2); learned_range lies between, log σ² = f log large + (1 - f) log small, f = (v + 1)/2, where v
            are as many further channels of the backbone's output (Nichol & Dhariwal 2021, 2102.09672, eq. 15).
        clip: bounds that x̂ is kept in by `reverse` and by samplers, never in the loss of ε.
        sigma_data: σ_d of edm.
    self_condition is the backbone's: whether it also takes an earlier `estimate` of x (Chen 2022, 2208.04202, section
    3.2); training and samplers then pass it on, by `recalled`.
    Raises ValueError for an unknown prediction or variance, for a backbone that answers with another one, and for
    epsilon or edm with a schedule that ends in pure noise, where they say nothing of x (Lin 2023, 2305.08891); when
    called, ValueError for a t that does not fit and for a backbone's output that is not like x_t, TypeError for one
    that is no tensor.
    """

    self_condition: bool = False

    def __init__(
        self,
        backbone: nn.Module,
        schedule: Schedule,
        prediction: Prediction = "epsilon",
        variance: Variance = "small",
        clip: tuple[float, float] | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}; got {prediction!r}")
        if variance not in get_args(Variance):
            raise ValueError(f"variance must be one of {', '.join(get_args(Variance))}; got {variance!r}")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be above 0; got {sigma_data}")
        if prediction in ("epsilon", "edm") and bool(schedule.alpha_sigma(1.0)[0] == 0):
            raise ValueError(
                f"prediction {prediction!r} does not go with {type(schedule).__name__} ending at α = 0: "
                "x̂ = (x_t - σ ε̂)/α is undefined there; use v_prediction or sample, or a finite log_snr_min"
            )
        if getattr(backbone, "prediction", prediction) != prediction:
            name = type(backbone).__name__
            raise ValueError(f"{name} answers with prediction {backbone.prediction!r}; got prediction {prediction!r}")
        self.backbone, self.schedule = backbone, schedule
        self.prediction: Prediction = prediction
        self.variance: Variance = variance
        self.clip, self.sigma_data = clip, sigma_data
        self.self_condition = bool(getattr(backbone, "self_condition", False))

    def forward(self, x_t: Tensor, t: Time, cond: Tensor | None = None, **given: Tensor | None) -> Estimate:
        """p(x|x_t) as a point estimate, for x_t (B, *event) and t in [0, 1], () or (B,).

        given: what else the backbone takes by name, such as z, its own latent, or an earlier estimate of x.
        """
        t = t.to(x_t.device) if isinstance(t, Tensor) else widest(t, x_t.device)
        if t.ndim > 1 or (t.ndim == 1 and len(t) != len(x_t)):
            raise ValueError(f"t must be () or (B,) = ({len(x_t)},) in [0, 1]; got shape {tuple(t.shape)}")
        alpha, sigma = self.schedule.alpha_sigma(t)
        output, interpolation = self.backbone(self._scaled(x_t, alpha, sigma), t, cond, **given), None
        name = type(self.backbone).__name__
        if not isinstance(output, Tensor):
            raise TypeError(f"backbone {name} must return a tensor like x_t; got {type(output).__name__}")
        if self.variance == "learned_range":
            if output.shape[1] != 2 * x_t.shape[1]:
                raise ValueError(
                    f"variance 'learned_range' needs a backbone with {2 * x_t.shape[1]} output channels for "
                    f"{x_t.shape[1]} of x; got {output.shape[1]}"
                )
            output, interpolation = output.chunk(2, dim=1)
        if output.shape != x_t.shape:
            raise ValueError(
                f"backbone {name} must return the shape of x_t, {tuple(x_t.shape)}; got shape {tuple(output.shape)}"
            )
        return Estimate(x_t, alpha, sigma, self.prediction, output, self.sigma_data, interpolation)

    def _scaled(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x_t as the backbone sees it."""
        if self.prediction == "edm":
            return over((sigma.square() + (alpha * self.sigma_data).square()).rsqrt(), x_t) * x_t
        if self.schedule.exploding:
            return over((sigma.square() + alpha.square()).rsqrt(), x_t) * x_t
        return x_t

    def clipped(self, x_t: Tensor, t: Time, cond: Tensor | None = None, **given: Tensor | None) -> Estimate:
        """The estimate with x̂ kept within `clip`: what samplers use."""
        estimate = self(x_t, t, cond, **given)
        return estimate.clamp(*self.clip) if self.clip else estimate

    def reverse(
        self, x_t: Tensor, s: Time, t: Time, cond: Tensor | None = None, **given: Tensor | None
    ) -> Normal | Delta:
        """p(x_s|x_t) for s < t: the `posterior` of the clipped estimate."""
        return self.posterior(self.clipped(x_t, t, cond, **given), s, t)

    def recalled(self, estimate: Estimate) -> dict[str, Tensor]:
        """What a later call is given of this one: its x̂, as `estimate`, if the backbone takes it; else nothing."""
        return {"estimate": estimate.mean} if self.self_condition else {}

    def posterior(self, estimate: Estimate, s: Time, t: Time) -> Normal | Delta:
        """p(x_s|x_t) = q(x_s|x_t, x̂) for s < t, with the small, the large or the learned variance.

        At a noiseless s the small variance is 0, and so is the learned one: Delta(x̂).
        """
        posterior = self.schedule.posterior(estimate.x_t, estimate.mean, s, t)
        if self.variance == "small" or (self.variance == "learned_range" and isinstance(posterior, Delta)):
            return posterior
        large = over(self.schedule.step(s, t)[1].sqrt(), posterior.mean)
        if estimate.interpolation is None or isinstance(posterior, Delta):
            return Normal(posterior.mean, large)
        share = (wide(estimate.interpolation) + 1) / 2
        return Normal(posterior.mean, torch.exp(share * large.log() + (1 - share) * posterior.std.log()))

    def extra_repr(self) -> str:
        return f"prediction={self.prediction!r}, variance={self.variance!r}, clip={self.clip}"
