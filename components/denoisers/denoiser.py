"""A denoiser is a backbone, a schedule and a prediction: p(x|x_t), and from it p(x_s|x_t)."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..distributions import Delta, Normal
from ..precision import wide
from ..schedules import NoiseLevel, PosteriorCoefficients, Schedule, Time, over
from .prediction import PREDICTIONS, Estimate, Prediction, edm_prediction

__all__ = ["Denoiser", "DenoiserWrapper", "Denoising", "Variance"]

Variance = Literal["small", "large", "learned_range"]

FAINT = 0.04
"""α_1 below which `epsilon` is warned of: an error of ε̂ there is one of x̂ times σ_1/α_1 > 25. A guess, unmeasured."""


class Denoising(nn.Module, ABC):
    """p(x|x_t) and p(x_s|x_t) as samplers and bounds use them; subclasses give `forward`, and what bounds x̂.

    schedule: the noising process.
    """

    schedule: Schedule

    @abstractmethod
    def forward(
        self, x_t: Tensor, t: Time | NoiseLevel, cond: Any = None, hidden: Sequence[str] = (), **given: Tensor | None
    ) -> Estimate:
        """Return p(x|x_t) as a point estimate.

        Arguments:
            x_t: (B, *event).
            t: in [0, 1], () or (B,); or a NoiseLevel of the schedule, whose coefficients are then not computed again.
            cond: as the backbone takes it.
            hidden: names of the backbone's hidden layers, whose features come as `Estimate.hidden`.
            given: what else the backbone takes by name, such as z, its own latent, or an earlier estimate of x.
        """

    @abstractmethod
    def bounded(self, estimate: Estimate) -> Estimate:
        """Return the estimate as samplers use it: x̂ within its bounds."""

    @abstractmethod
    def posterior(
        self, estimate: Estimate, coefficients: PosteriorCoefficients, variance: Variance | None = None
    ) -> Normal | Delta:
        """Return p(x_s|x_t) of the estimate of x; arguments as `Denoiser.posterior`."""

    @abstractmethod
    def self_conditioning(self, estimate: Estimate) -> dict[str, Tensor]:
        """Return what a later call is given of this one: x̂ as `estimate`, if the backbone takes it; else nothing."""

    def clipped(
        self, x_t: Tensor, t: Time | NoiseLevel, cond: Any = None, hidden: Sequence[str] = (), **given: Tensor | None
    ) -> Estimate:
        """Return the bounded estimate: what samplers use. Arguments as `forward`."""
        return self.bounded(self(x_t, t, cond, hidden, **given))

    def reverse(self, x_t: Tensor, s: Time, t: Time, cond: Any = None, **given: Any) -> Normal | Delta:
        """Return p(x_s|x_t) for s < t: the `posterior` of the bounded estimate."""
        return self.posterior(self.clipped(x_t, t, cond, **given), self.schedule.posterior_coefficients(s, t))


class Denoiser(Denoising):
    """p(x|x_t) and p(x_s|x_t) from a network that predicts ε, x, v, a flow's velocity, or EDM's F.

    Arguments:
        backbone: a network (x_t, t, cond) → like x_t. Its input is x_t/√(α² + σ²) where the schedule explodes, and for
            edm c_in x_t/α, c_in = 1/√(σ²/α² + σ_d²); t itself stands for c_noise.
        schedule: the noising process.
        prediction: what the network's output means: a name in `PREDICTIONS`, or a `Prediction` (`GreyLevels` is one);
            by default edm where the schedule explodes, where the target of v_prediction, ε - σ x, has the scale of σ,
            and v_prediction elsewhere. Both determine x̂ at every noise level; epsilon leaves it an error of σ/α times
            that of ε̂.
        variance: of p(x_s|x_t). small is the posterior's, σ²_{t|s} σ_s²/σ_t², large is σ²_{t|s} (Ho 2020, 2006.11239,
            section 3.2); learned_range lies between, log σ² = f log large + (1 - f) log small, f = (v + 1)/2, where v
            are as many further channels of the backbone's output (Nichol & Dhariwal 2021, 2102.09672, eq. 15).
        clip: bounds that x̂ is kept in by `reverse` and by samplers, never in the loss of ε: of images, (-1, 1); of
            latents, which have none, None.
        sigma_data: σ_d of edm, 0.5 by default.
    self_condition is the backbone's: whether it also takes an earlier `estimate` of x (Chen 2022, 2208.04202, section
    3.2); training and samplers then pass it on, by `self_conditioning`.
    Raises ValueError for an unknown prediction or variance, for sigma_data with another prediction than edm, and for
    epsilon with a schedule that ends in pure noise, where it says nothing of x (Lin 2023, 2305.08891); when called,
    ValueError for a t that does not fit and for a backbone's output of another shape, TypeError for one that is no
    tensor. Warns of epsilon without clip where α_1 is small but not 0.
    """

    self_condition: bool = False

    def __init__(
        self,
        backbone: nn.Module,
        schedule: Schedule,
        prediction: str | Prediction | nn.Module | None = None,
        variance: Variance = "small",
        clip: tuple[float, float] | None = None,
        sigma_data: float | None = None,
    ) -> None:
        super().__init__()
        if variance not in get_args(Variance):
            raise ValueError(f"variance must be one of {', '.join(get_args(Variance))}; got {variance!r}")
        self.backbone, self.schedule = backbone, schedule
        if prediction is None:
            prediction = "edm" if schedule.exploding else "v_prediction"
        self.prediction = _prediction(prediction, sigma_data)
        self.prediction.check(schedule)
        self.variance: Variance = variance
        self.clip = clip
        self.self_condition = bool(getattr(backbone, "self_condition", False))
        self._warn_of_faint_signal()

    def forward(
        self, x_t: Tensor, t: Time | NoiseLevel, cond: Any = None, hidden: Sequence[str] = (), **given: Tensor | None
    ) -> Estimate:
        """Return p(x|x_t) as a point estimate; arguments as `Denoising.forward`."""
        level = t if isinstance(t, NoiseLevel) else self.schedule.level(t, x_t)
        if hidden:
            given["hidden"] = hidden  # type: ignore[assignment]
        answer = self.backbone(self._input(x_t, level), level.t, cond, **given)
        output, features = answer if hidden else (answer, None)
        output, interpolation = self._split(x_t, output)
        return self.prediction.estimate(x_t, output, level, interpolation, features)

    def bounded(self, estimate: Estimate) -> Estimate:
        """Return the estimate with x̂ kept within `clip`."""
        return estimate.clamp(*self.clip) if self.clip else estimate

    def posterior(
        self, estimate: Estimate, coefficients: PosteriorCoefficients, variance: Variance | None = None
    ) -> Normal | Delta:
        """Return p(x_s|x_t) = q(x_s|x_t, x̂), with the small, the large or the learned variance.

        At a noiseless s the small variance is 0, and so is the learned one: Delta(x̂).

        Arguments:
            estimate: of x from x_t.
            coefficients: `schedule.posterior_coefficients(s, t)`.
            variance: instead of the denoiser's own: small and large go with any.
        Raises ValueError for 'learned_range' of a denoiser that has learned none.
        """
        if variance is None:
            variance = self.variance
        elif variance not in get_args(Variance):
            raise ValueError(f"variance must be one of {', '.join(get_args(Variance))}; got {variance!r}")
        if variance == "learned_range" and estimate.interpolation is None:
            raise ValueError(
                f"variance 'learned_range' needs a denoiser that has learned one; got a {type(self).__name__} with "
                f"variance {self.variance!r}"
            )
        x = estimate.mean
        if coefficients.noiseless:
            return Normal(x, over(coefficients.large, x)) if variance == "large" else Delta(x)
        mean = over(coefficients.on_x_t, x) * estimate.x_t + over(coefficients.on_x, x) * x
        if variance == "large":
            return Normal(mean, over(coefficients.large, x))
        if variance == "small":
            return Normal(mean, over(coefficients.std, x))
        small, large = (torch.as_tensor(over(std, x), dtype=x.dtype).log() for std in coefficients[2:])
        share = (wide(estimate.interpolation) + 1) / 2  # type: ignore[arg-type]
        return Normal(mean, torch.exp(share * large + (1 - share) * small))

    def self_conditioning(self, estimate: Estimate) -> dict[str, Tensor]:
        """Return what a later call is given of this one: x̂ as `estimate`, if the backbone takes it; else nothing."""
        return {"estimate": estimate.mean} if self.self_condition else {}

    def _input(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """Return x_t as the backbone is shown it."""
        alpha, sigma = level.alpha, level.sigma
        if self.prediction.input_scale is not None:
            return over(self.prediction.input_scale(alpha, sigma), x_t) * x_t
        if self.schedule.exploding:
            return over((sigma**2 + alpha**2) ** -0.5, x_t) * x_t
        return x_t

    def _split(self, x_t: Tensor, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the prediction and the interpolation of a learned variance; refuses an output of another shape."""
        name, channels = type(self.backbone).__name__, self.prediction.outputs(x_t.shape[1])
        if not isinstance(output, Tensor):
            raise TypeError(f"backbone {name} must return a tensor like x_t; got {type(output).__name__}")
        interpolation = None
        if self.variance == "learned_range":
            if output.shape[1] != channels + x_t.shape[1]:
                raise ValueError(
                    f"variance 'learned_range' needs a backbone with {channels + x_t.shape[1]} output channels for "
                    f"{x_t.shape[1]} of x; got {output.shape[1]}"
                )
            output, interpolation = output.split([channels, x_t.shape[1]], dim=1)
        expected = (x_t.shape[0], channels, *x_t.shape[2:])
        if tuple(output.shape) != expected:
            raise ValueError(
                f"backbone {name} must return shape {expected} for x_t of shape {tuple(x_t.shape)} with prediction "
                f"{self.prediction.name!r}; got shape {tuple(output.shape)}"
            )
        return output, interpolation

    def _warn_of_faint_signal(self) -> None:
        """Warn of an ε-prediction whose x̂ nothing bounds, with a schedule that ends in almost pure noise."""
        alpha = float(self.schedule.alpha_sigma(1.0)[0].detach())
        if self.prediction.name == "epsilon" and self.clip is None and alpha < FAINT:
            warnings.warn(
                f"prediction 'epsilon' without clip: {type(self.schedule).__name__} ends at α = {alpha:.2g}, where an "
                f"error of ε̂ is one of x̂ {1 / alpha:.0f} times as large: samples may explode; use "
                "prediction='v_prediction', or give the bounds of x, such as clip=(-1, 1) for images",
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        return f"prediction={self.prediction.name!r}, variance={self.variance!r}, clip={self.clip}"


def _prediction(prediction: str | Prediction | nn.Module, sigma_data: float | None) -> Any:
    """Return the prediction itself, or that of a name; refuses what is neither."""
    if prediction == "edm":
        return edm_prediction() if sigma_data is None else edm_prediction(sigma_data)
    if sigma_data is not None:
        raise ValueError(
            f"sigma_data must be None with prediction {getattr(prediction, 'name', prediction)!r}, whose output is not "
            f"scaled by it; got {sigma_data}: leave it out, or use prediction='edm'"
        )
    if isinstance(prediction, str) and prediction in PREDICTIONS:
        return PREDICTIONS[prediction]
    if hasattr(prediction, "estimate"):
        return prediction
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, or a Prediction; got {prediction!r}")


class DenoiserWrapper(Denoising):
    """A denoiser made of another one: a subclass changes `forward` or `bounded`, and the rest is the other's."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser: Any = denoiser

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]
        """The noising process."""
        return self.denoiser.schedule

    @property
    def prediction(self) -> Any:
        """What the network's output means."""
        return self.denoiser.prediction

    @property
    def variance(self) -> Variance:
        """That of p(x_s|x_t)."""
        return self.denoiser.variance

    @property
    def self_condition(self) -> bool:
        """Whether an earlier estimate of x is passed on."""
        return self.denoiser.self_condition

    def forward(
        self, x_t: Tensor, t: Time | NoiseLevel, cond: Any = None, hidden: Sequence[str] = (), **given: Tensor | None
    ) -> Estimate:
        """Return p(x|x_t); arguments as `Denoiser.forward`."""
        return self.denoiser(x_t, t, cond, hidden, **given)

    def bounded(self, estimate: Estimate) -> Estimate:
        """Return the estimate as samplers use it."""
        return self.denoiser.bounded(estimate)

    def posterior(
        self, estimate: Estimate, coefficients: PosteriorCoefficients, variance: Variance | None = None
    ) -> Normal | Delta:
        """Return p(x_s|x_t); arguments as `Denoiser.posterior`."""
        return self.denoiser.posterior(estimate, coefficients, variance)

    def self_conditioning(self, estimate: Estimate) -> dict[str, Tensor]:
        """Return what a later call is given of this one."""
        return self.denoiser.self_conditioning(estimate)
