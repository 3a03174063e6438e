"""What a network answers, and the estimate of x that follows: x̂, ε̂, v̂, a flow's velocity or EDM's F, and the score."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..distributions import Delta
from ..precision import wide
from ..schedules import NoiseLevel, Schedule, over

__all__ = ["PREDICTIONS", "SAMPLE", "Coefficient", "Estimate", "Prediction", "edm_prediction"]

Coefficient = Tensor | float


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
