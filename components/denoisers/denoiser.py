"""A denoiser is a backbone, a schedule and a prediction: p(x|x_t), and from it p(x_s|x_t)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from ..distributions import Delta, Normal
from ..precision import wide
from ..schedules import NoiseLevel, PosteriorCoefficients, Schedule, Time, over

__all__ = [
    "PREDICTIONS",
    "Denoiser",
    "DenoiserWrapper",
    "Denoising",
    "Estimate",
    "Prediction",
    "Variance",
    "edm_prediction",
]

Coefficient = Tensor | float
Variance = Literal["small", "large", "learned_range"]


@dataclass(frozen=True)
class Prediction:
    """What a network answers: output = a x + b ε, with a pair (a, b) of functions of α and σ.

    With x_t = α x + σ ε, x̂ and ε̂ follow for every pair:

        x̂ = (b x_t - σ output)/(α b - σ a),        ε̂ = (α output - a x_t)/(α b - σ a)

    Where α b = σ a one of them is still determined at an end: x̂ = output/a at σ = 0, ε̂ = output/b at α = 0. The other
    one is not, and is infinite or NaN: ε says nothing of x at α = 0, and x says nothing of ε at σ = 0. Where α b = σ a
    between the ends neither is determined, and both are infinite or NaN.

    | name         | a                    | b                     | source                                          |
    |--------------|----------------------|-----------------------|-------------------------------------------------|
    | epsilon      | 0                    | 1                     | Ho 2020, 2006.11239, eq. 12                     |
    | sample       | 1                    | 0                     | x itself                                        |
    | v_prediction | -σ                   | α                     | Salimans & Ho 2022, 2202.00512, appendix D      |
    | flow         | -1                   | 1                     | Lipman 2022, 2210.02747: dx_t/dt where x_t is   |
    |              |                      |                       | (1 - t) x + t ε                                 |
    | edm          | σ/(σ_d s)            | -α σ_d/s              | Karras 2022, 2206.00364, eq. 7;                 |
    |              |                      |                       | s² = σ² + α² σ_d²                               |

    Arguments:
        name: as in diffusers where it is there.
        pair: (α, σ) → (a, b), each a float or shaped like α.
        input_scale: (α, σ) → the factor on x_t that the network is shown; None: that of its denoiser's schedule.
    """

    name: str
    pair: Callable[[Coefficient, Coefficient], tuple[Coefficient, Coefficient]]
    input_scale: Callable[[Coefficient, Coefficient], Coefficient] | None = None

    def target(self, x: Tensor, epsilon: Tensor, level: NoiseLevel) -> Tensor:
        """Return a x + b ε (B, *event): what the output should be, of the x and ε that x_t was made of."""
        a, b = self.pair(level.alpha, level.sigma)
        return _combined(a, x, b, epsilon)

    def x(self, x_t: Tensor, output: Tensor, level: NoiseLevel) -> Tensor:
        """Return x̂ = (b x_t - σ output)/(α b - σ a), at σ = 0 output/a: (B, *event)."""
        alpha, sigma = level.alpha, level.sigma
        a, b = self.pair(alpha, sigma)
        if _equal(a, 1.0) and _equal(b, 0.0):
            return output
        denominator = alpha * b - sigma * a
        return _combined(_divided(b, denominator, 0.0), x_t, _divided(-sigma, denominator, _limit(a, sigma)), output)

    def epsilon(self, x_t: Tensor, output: Tensor, level: NoiseLevel) -> Tensor:
        """Return ε̂ = (α output - a x_t)/(α b - σ a), at α = 0 output/b: (B, *event)."""
        alpha, sigma = level.alpha, level.sigma
        a, b = self.pair(alpha, sigma)
        if _equal(a, 0.0) and _equal(b, 1.0):
            return output
        denominator = alpha * b - sigma * a
        return _combined(_divided(-a, denominator, 0.0), x_t, _divided(alpha, denominator, _limit(b, alpha)), output)

    def outputs(self, channels: int) -> int:
        """Return how many channels a network answers with, for x of so many."""
        return channels

    def estimate(
        self,
        x_t: Tensor,
        output: Tensor,
        level: NoiseLevel,
        interpolation: Tensor | None = None,
        hidden: dict[str, Tensor] | None = None,
    ) -> "Estimate":
        """Return p(x|x_t) of the network's output (B, outputs, ...)."""
        return Estimate(self, x_t, output, level, interpolation, hidden)

    def check(self, schedule: Schedule) -> None:
        """Refuse a schedule with which the network's answer says nothing of x (raises ValueError)."""
        alpha, sigma = (float(c.detach()) for c in schedule.alpha_sigma(1.0))
        a, _ = self.pair(alpha, sigma)
        if alpha == 0 and a == 0:
            raise ValueError(
                f"prediction {self.name!r} does not go with {type(schedule).__name__} ending at α = 0: x̂ is undefined "
                "there, as the output is of ε alone; use v_prediction or sample, or a finite log_snr_min"
            )


def _edm_scale(alpha: Coefficient, sigma: Coefficient, sigma_data: float) -> Coefficient:
    """Return c_in/α = 1/√(σ² + α² σ_d²)."""
    return (sigma**2 + (alpha * sigma_data) ** 2) ** -0.5


def _edm_pair(alpha: Coefficient, sigma: Coefficient, sigma_data: float) -> tuple[Coefficient, Coefficient]:
    scale = _edm_scale(alpha, sigma, sigma_data)
    return sigma * scale / sigma_data, -alpha * sigma_data * scale


def _epsilon_pair(alpha: Coefficient, sigma: Coefficient) -> tuple[Coefficient, Coefficient]:
    return 0.0, 1.0


def _sample_pair(alpha: Coefficient, sigma: Coefficient) -> tuple[Coefficient, Coefficient]:
    return 1.0, 0.0


def _v_pair(alpha: Coefficient, sigma: Coefficient) -> tuple[Coefficient, Coefficient]:
    return -sigma, alpha


def _flow_pair(alpha: Coefficient, sigma: Coefficient) -> tuple[Coefficient, Coefficient]:
    return -1.0, 1.0


def edm_prediction(sigma_data: float = 0.5) -> Prediction:
    """Return EDM's prediction, for data of standard deviation σ_d = sigma_data; raises ValueError unless it is > 0."""
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be above 0; got {sigma_data}")
    given = {"sigma_data": sigma_data}
    return Prediction("edm", partial(_edm_pair, **given), partial(_edm_scale, **given))


SAMPLE = Prediction("sample", _sample_pair)

PREDICTIONS = {
    "epsilon": Prediction("epsilon", _epsilon_pair),
    "sample": SAMPLE,
    "v_prediction": Prediction("v_prediction", _v_pair),
    "flow": Prediction("flow", _flow_pair),
    "edm": edm_prediction(),
}
"""The predictions by name."""


def _divided(value: Coefficient, denominator: Coefficient, limit: Coefficient) -> Coefficient:
    """Return value/denominator, and `limit` where the denominator is 0."""
    if isinstance(denominator, Tensor):
        return torch.where(denominator == 0, limit, value / denominator)
    return limit if denominator == 0 else value / denominator


def _equal(coefficient: Coefficient, value: float) -> bool:
    """Whether a coefficient is this number whatever α and σ are."""
    return isinstance(coefficient, float) and coefficient == value


def _limit(value: Coefficient, end: Coefficient) -> Coefficient:
    """1/value where `end` is 0, σ for x̂ and α for ε̂; elsewhere infinite, since the output determines neither."""
    inverse = 1 / value if isinstance(value, Tensor) or value != 0 else float("inf")
    if isinstance(end, Tensor):
        return torch.where(end == 0, torch.as_tensor(inverse, dtype=end.dtype, device=end.device), float("inf"))
    return inverse if end == 0 else float("inf")


def _combined(on_x: Coefficient, x: Tensor, on_y: Coefficient, y: Tensor) -> Tensor:
    """Return on_x x + on_y y (B, *event); Python floats of 0 and 1 cost nothing."""
    if isinstance(on_x, float) and isinstance(on_y, float):
        if on_x == 0:
            return y if on_y == 1 else on_y * y
        if on_y == 0:
            return x if on_x == 1 else on_x * x
        return torch.add(x if on_x == 1 else on_x * x, y, alpha=on_y)
    return over(on_x, x) * x + over(on_y, y) * y


class Estimate(Delta):
    """A point estimate of x from x_t: x̂ as a distribution, with ε̂, v̂, the flow's velocity and the score beside it.

    x_t = α x̂ + σ ε̂, v̂ = α ε̂ - σ x̂, û = ε̂ - x̂, and the score is -ε̂/σ; each is computed when it is asked for.

    Arguments:
        prediction: what `output` is.
        x_t, output: (B, *event).
        level: the time of x_t with its α and σ, () or (B,).
        interpolation: v of a learned variance (B, *event), or None.
        hidden: features of the backbone's hidden layers by name, where they were asked for.
    """

    def __init__(
        self,
        prediction: Prediction,
        x_t: Tensor,
        output: Tensor,
        level: NoiseLevel,
        interpolation: Tensor | None = None,
        hidden: dict[str, Tensor] | None = None,
    ) -> None:
        self.prediction, self.x_t, self.output, self.level = prediction, wide(x_t), wide(output), level
        self.interpolation, self.hidden = interpolation, {} if hidden is None else hidden
        self._mean: Tensor | None = None
        self._epsilon: Tensor | None = None

    # Not functools.cached_property, whose lock in Python 3.11 torch.compile cannot trace.
    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """x̂ (B, *event)."""
        if self._mean is None:
            self._mean = self.prediction.x(self.x_t, self.output, self.level)
        return self._mean

    @property
    def epsilon(self) -> Tensor:
        """ε̂ (B, *event)."""
        if self._epsilon is None:
            self._epsilon = self.prediction.epsilon(self.x_t, self.output, self.level)
        return self._epsilon

    @property
    def v(self) -> Tensor:
        """v̂ = α ε̂ - σ x̂ (B, *event)."""
        if self.prediction == PREDICTIONS["v_prediction"]:
            return self.output
        return over(self.level.alpha, self.x_t) * self.epsilon - over(self.level.sigma, self.x_t) * self.mean

    @property
    def flow(self) -> Tensor:
        """û = ε̂ - x̂ (B, *event), dx_t/dt of the straight-line flow."""
        return self.output if self.prediction == PREDICTIONS["flow"] else self.epsilon - self.mean

    @property
    def score(self) -> Tensor:
        """∇ log q(x_t) = -ε̂/σ (B, *event)."""
        return -self.epsilon / over(self.level.sigma, self.x_t)

    def target(self, x: Tensor, epsilon: Tensor) -> Tensor:
        """Return what `output` should be (B, *event), of the x and ε that x_t was made of."""
        return self.prediction.target(x, epsilon, self.level)

    def with_mean(self, x: Tensor) -> "Estimate":
        """Return the estimate with another x̂ (B, *event); ε̂ and the others follow."""
        return Estimate(SAMPLE, self.x_t, x, self.level, self.interpolation, self.hidden)

    def clamp(self, low: float, high: float) -> "Estimate":
        """Return the estimate with x̂ kept in [low, high]; ε̂ and the others follow."""
        return self.with_mean(self.mean.clamp(low, high))


class Denoiser(nn.Module):
    """p(x|x_t) and p(x_s|x_t) from a network that predicts ε, x, v, a flow's velocity, or EDM's F.

    Arguments:
        backbone: a network (x_t, t, cond) → like x_t. Its input is x_t/√(α² + σ²) where the schedule explodes, and for
            edm c_in x_t/α, c_in = 1/√(σ²/α² + σ_d²); t itself stands for c_noise.
        schedule: the noising process.
        prediction: what the network's output means: a name in `PREDICTIONS`, or a `Prediction` (`GreyLevels` is one).
        variance: of p(x_s|x_t). small is the posterior's, σ²_{t|s} σ_s²/σ_t², large is σ²_{t|s} (Ho 2020, 2006.11239,
            section 3.2); learned_range lies between, log σ² = f log large + (1 - f) log small, f = (v + 1)/2, where v
            are as many further channels of the backbone's output (Nichol & Dhariwal 2021, 2102.09672, eq. 15).
        clip: bounds that x̂ is kept in by `reverse` and by samplers, never in the loss of ε.
        sigma_data: σ_d of edm.
    self_condition is the backbone's: whether it also takes an earlier `estimate` of x (Chen 2022, 2208.04202, section
    3.2); training and samplers then pass it on, by `self_conditioning`.
    Raises ValueError for an unknown prediction or variance, and for epsilon with a schedule that ends in pure noise,
    where it says nothing of x (Lin 2023, 2305.08891); when called, ValueError for a t that does not fit and for a
    backbone's output of another shape, TypeError for one that is no tensor.
    """

    self_condition: bool = False

    def __init__(
        self,
        backbone: nn.Module,
        schedule: Schedule,
        prediction: str | Prediction | nn.Module = "epsilon",
        variance: Variance = "small",
        clip: tuple[float, float] | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        if variance not in get_args(Variance):
            raise ValueError(f"variance must be one of {', '.join(get_args(Variance))}; got {variance!r}")
        self.backbone, self.schedule = backbone, schedule
        self.prediction = _prediction(prediction, sigma_data)
        self.prediction.check(schedule)
        self.variance: Variance = variance
        self.clip = clip
        self.self_condition = bool(getattr(backbone, "self_condition", False))

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
        level = t if isinstance(t, NoiseLevel) else self.schedule.level(t, x_t)
        if hidden:
            given["hidden"] = hidden  # type: ignore[assignment]
        answer = self.backbone(self._input(x_t, level), level.t, cond, **given)
        output, features = answer if hidden else (answer, None)
        output, interpolation = self._split(x_t, output)
        return self.prediction.estimate(x_t, output, level, interpolation, features)

    def clipped(
        self, x_t: Tensor, t: Time | NoiseLevel, cond: Any = None, hidden: Sequence[str] = (), **given: Tensor | None
    ) -> Estimate:
        """Return the estimate with x̂ kept within `clip`: what samplers use. Arguments as `forward`."""
        return self.bounded(self(x_t, t, cond, hidden, **given))

    def bounded(self, estimate: Estimate) -> Estimate:
        """Return the estimate with x̂ kept within `clip`."""
        return estimate.clamp(*self.clip) if self.clip else estimate

    def reverse(self, x_t: Tensor, s: Time, t: Time, cond: Any = None, **given: Any) -> Normal | Delta:
        """Return p(x_s|x_t) for s < t: the `posterior` of the clipped estimate."""
        return self.posterior(self.clipped(x_t, t, cond, **given), self.schedule.posterior_coefficients(s, t))

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

    def extra_repr(self) -> str:
        return f"prediction={self.prediction.name!r}, variance={self.variance!r}, clip={self.clip}"


def _prediction(prediction: str | Prediction | nn.Module, sigma_data: float) -> Any:
    """Return the prediction itself, or that of a name; refuses what is neither."""
    if prediction == "edm":
        return edm_prediction(sigma_data)
    if isinstance(prediction, str) and prediction in PREDICTIONS:
        return PREDICTIONS[prediction]
    if hasattr(prediction, "estimate"):
        return prediction
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, or a Prediction; got {prediction!r}")


class Denoising(Protocol):
    """What samplers ask of a denoiser."""

    @property
    def schedule(self) -> Schedule: ...
    def __call__(self, x_t: Tensor, t: Time | NoiseLevel, cond: Any = None, **given: Any) -> Estimate: ...
    def clipped(self, x_t: Tensor, t: Time | NoiseLevel, cond: Any = None, **given: Any) -> Estimate: ...
    def posterior(
        self, estimate: Estimate, coefficients: PosteriorCoefficients, variance: Variance | None = None
    ) -> Normal | Delta: ...
    def self_conditioning(self, estimate: Estimate) -> dict[str, Tensor]: ...


class DenoiserWrapper(nn.Module):
    """A denoiser made of another one: a subclass changes `forward` or `bounded`, and the rest is the other's."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser: Any = denoiser

    @property
    def schedule(self) -> Schedule:
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

    def clipped(
        self, x_t: Tensor, t: Time | NoiseLevel, cond: Any = None, hidden: Sequence[str] = (), **given: Tensor | None
    ) -> Estimate:
        """Return the bounded estimate; arguments as `Denoiser.forward`."""
        return self.bounded(self(x_t, t, cond, hidden, **given))

    def reverse(self, x_t: Tensor, s: Time, t: Time, cond: Any = None, **given: Any) -> Normal | Delta:
        """Return p(x_s|x_t) for s < t: the `posterior` of the clipped estimate."""
        return self.posterior(self.clipped(x_t, t, cond, **given), self.schedule.posterior_coefficients(s, t))

    def posterior(
        self, estimate: Estimate, coefficients: PosteriorCoefficients, variance: Variance | None = None
    ) -> Normal | Delta:
        """Return p(x_s|x_t); arguments as `Denoiser.posterior`."""
        return self.denoiser.posterior(estimate, coefficients, variance)

    def self_conditioning(self, estimate: Estimate) -> dict[str, Tensor]:
        """Return what a later call is given of this one."""
        return self.denoiser.self_conditioning(estimate)
