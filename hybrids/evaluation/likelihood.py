"""The likelihood of any explicit model: its bound with its parts, importance-weighted, and by the probability flow."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from components.distributions import check_grid
from components.losses import TimeSampler

from ..models.model import NotOffered, implicit

__all__ = ["Scorer", "importance_weighted", "likelihood", "measured_times"]

Found = float | str | list[float]
DEQUANTIZATIONS = {
    "none": "none: the bound is on a density of x",
    "grid": "none: the bound is on the probability of grey levels",
    "uniform": "uniform over each level's bin: a bound in expectation (Theis 2015, 1511.01844)",
    "encoder": "the diffusion's own q(x_first|x) and last decoder: a bound in expectation",
    "latent": "the flow is of z ~ q(z|x): a bound in expectation",
}


class Scorer:
    """What `likelihood` measures, an example at a time, so that examples may be dealt to many processes.

        scorer = Scorer(model, repeats=4, importance_samples=100)
        values = [scorer(chunk) for chunk in x.split(64)]     # each {name: (B,)}, float64 on the CPU
        found = scorer.summary(values)

    Arguments:
        model: offers nll(x, cond), as every explicit model; a latent model is scored as a VAE.
        repeats: how often the bound is drawn for each example.
        every_level: sum the bound over all levels (`bound`) instead of drawing one (`nll`): slow, quiet.
        per_level: also the mean rate of each level, of a diffusion; every_level only.
        times: which levels `nll` draws, such as `Diffusion.proposal`; of a diffusion only.
        importance_samples: K of the importance-weighted bound; 0: none.
        flow: settings of the probability flow (`Diffusion.flow`), such as {"rtol": 1e-5, "divergence": "rademacher"},
            for log p of a diffusion, or of the latents of a VAE whose prior is one; None: none.
        dequantization: of grey levels for the flow, as in `Diffusion.log_prob`.
        bound: whether to draw the bound at all; a flow that starts clean in continuous time has none.
        rows: examples that go through the model at once.
        log_scale: `Data.log_scale`, which is added to all -log p, as nats_scale, so that they are of the data's own
            values and not of the standardized x.
    Raises NotOffered, saying what to use instead, for an implicit model, and where the model lacks what is asked for;
    ValueError for numbers that are none.
    """

    def __init__(
        self,
        model: Any,
        repeats: int = 1,
        every_level: bool = False,
        per_level: bool = False,
        times: TimeSampler | None = None,
        importance_samples: int = 0,
        flow: Mapping[str, Any] | None = None,
        dequantization: str = "uniform",
        bound: bool = True,
        rows: int = 512,
        log_scale: float = 0.0,
    ) -> None:
        self.model, self.log_scale = _explicit(model), log_scale
        if repeats < 1 or importance_samples < 0 or rows < 1:
            raise ValueError(
                "repeats and rows must be at least 1, importance_samples at least 0; got "
                f"{repeats}, {rows} and {importance_samples}"
            )
        if dequantization not in ("uniform", "encoder"):
            raise ValueError(f"dequantization must be 'uniform' or 'encoder'; got {dequantization!r}")
        if not (bound or importance_samples or flow is not None):
            raise ValueError("nothing to measure: bound=False, and neither importance_samples nor flow")
        if per_level and not (every_level and hasattr(self.model, "rates")):
            raise ValueError(f"per_level needs every_level and a diffusion; got a {type(self.model).__name__}")
        if importance_samples and not hasattr(self.model, "log_weight"):
            raise NotOffered(f"importance_samples needs a model with log_weight; {_name(model)} has none")
        self.repeats, self.every_level, self.per_level, self.times = repeats, every_level, per_level, times
        self.importance_samples, self.dequantization, self.bound, self.rows = (
            importance_samples, dequantization, bound, rows
        )  # fmt: skip
        self.grey_levels: int | None = getattr(self.model, "grey_levels", None)
        self.flow = None
        if flow is not None:
            if not hasattr(self.model, "flow"):
                raise NotOffered(f"flow needs a Diffusion, or a VAE whose prior is one; got {_name(model)}")
            self.flow = self.model.flow(**flow)

    @torch.no_grad()
    def __call__(self, x: Tensor, cond: Any = None) -> dict[str, Tensor]:
        """{name: (N,)} of x (N, *event), in nats where the name says so; float64, on the CPU.

        Raises ValueError for x that is not finite, or off the grid of the model's levels.
        """
        if self.grey_levels is not None:
            check_grid(x, self.grey_levels)
        elif not x.isfinite().all():
            worst = int((~x.flatten(1).isfinite().all(1)).nonzero()[0])
            raise ValueError(f"x must be finite; example {worst} has NaN or infinite values")
        parts = []
        for start in range(0, len(x), self.rows):
            part = slice(start, start + self.rows)
            parts.append(self._score(x[part], rows_of(cond, part)))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _score(self, x: Tensor, cond: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for _ in range(self.repeats if self.bound else 0):
            for name, values in self._bound(x, cond).items():
                found[name] = found.get(name, 0) + values.double() / self.repeats
        if self.importance_samples:
            log_p, effective = importance_weighted(self.model, x, self.importance_samples, cond, self.rows)
            found |= {"importance_nats": -log_p, "importance_effective_samples": effective}
        if self.flow is not None:
            found["ode_nats"] = -self.model.log_prob(x, cond, self.flow, self.dequantization)
            found["ode_evaluations"] = torch.full((len(x),), float(self.flow.evaluations), dtype=torch.float64)
        if self.log_scale:
            for name in found.keys() & {"nats", "importance_nats", "ode_nats"}:
                found[name] = found[name] + self.log_scale
            if self.bound:
                found["nats_scale"] = torch.full((len(x),), self.log_scale, dtype=torch.float64)
        return {name: values.double().cpu() for name, values in found.items()}

    def _bound(self, x: Tensor, cond: Any) -> dict[str, Tensor]:
        given = () if cond is None else (cond,)
        if self.per_level:
            rates = self.model.rates(x, *given)
            terms = self.model.ends(x, *given)
            parts = {f"nats_{name}": weight * values for name, (weight, values) in terms.items()}
            parts |= {"nats_diffusion": rates.sum(0), "nats_per_level": rates.T}
            return {"nats": terms.per_example + rates.sum(0), **parts}
        if self.every_level:
            terms = self.model.bound(x, *given)
        else:
            terms = self.model.nll(x, *given, **({} if self.times is None else {"times": self.times}))
        return {
            "nats": terms.per_example,
            **{f"nats_{name}": float(weight) * values for name, (weight, values) in terms.items()},
        }

    def summary(self, values: Sequence[Mapping[str, Tensor]], d: int) -> dict[str, Found]:
        """Means over all examples, their standard errors, and what they are of: see `likelihood`.

        Arguments: values, what the calls returned, in the order of the examples; d, the dimensions of one x.
        """
        all_ = {name: torch.cat([each[name] for each in values]) for name in values[0]}
        examples = len(next(iter(all_.values())))
        found: dict[str, Found] = {}
        for name in ("nats", "importance_nats", "ode_nats"):
            if name in all_:
                found |= self._line(name, all_.pop(name), d)
        for name, value in all_.items():
            found[name] = value.mean(0).tolist()
        found |= {"examples": float(examples), "dimensions": float(d)}
        if self.bound:
            found["draws"] = float(self.repeats)
        if self.grey_levels is None:
            found |= {"grid": "none", "dequantization": DEQUANTIZATIONS["none"]}
        else:
            found |= {"grey_levels": float(self.grey_levels), "grid": f"x = 2v/(K-1) - 1, K = {self.grey_levels}",
                      "dequantization": DEQUANTIZATIONS["grid"]}  # fmt: skip
        if self.importance_samples:
            found["importance_samples"] = float(self.importance_samples)
        return found | self._said_of_flow()

    def _line(self, name: str, nats: Tensor, d: int) -> dict[str, Found]:
        """A mean in three units, and its standard error over the examples."""
        error = (nats.std() / math.sqrt(len(nats))).item()
        found: dict[str, Found] = {
            name: nats.mean().item(),
            f"{name}_per_dim": nats.mean().item() / d,
            f"{name}_per_dim_standard_error": error / d,
        }
        if self.grey_levels is not None:
            bits = name.replace("nats", "bits_per_dim")
            found |= {bits: nats.mean().item() / (d * math.log(2)), f"{bits}_standard_error": error / (d * math.log(2))}
        return found

    def _said_of_flow(self) -> dict[str, Found]:
        if self.flow is None:
            return {}
        flow = self.flow
        own = "none" if self.grey_levels is None else self.dequantization
        kind = getattr(self.model, "flow_dequantization", own)
        divergence = "exact" if flow.divergence == "exact" else f"Hutchinson, {flow.probes} {flow.divergence} probe(s)"
        found: dict[str, Found] = {
            "ode_method": flow.method,
            "ode_divergence": divergence,
            "ode_first_time": float(flow.first),
            "ode_dequantization": DEQUANTIZATIONS[kind],
        }
        if flow.steps is None:
            return found | {"ode_rtol": flow.rtol, "ode_atol": flow.atol}
        return found | {"ode_steps": float(flow.steps)}


def likelihood(
    model: Any, x: Tensor, draws: int = 4096, *, cond: Any = None, importance_times: bool = False, **settings: Any
) -> dict[str, Found]:
    """The model's bound on -log p(x), over a set of x (N, *event), and what else `Scorer`'s settings ask for.

    nats, nats_per_dim, its standard error over the examples, the parts as nats_NAME (their sum is nats), and
    bits_per_dim = nats/(d log 2) where the likelihood is discrete on the data's own grid (`grey_levels`), which is
    stated with the dequantization. With importance_samples = K the same of the importance-weighted bound, and its
    effective number of samples; with flow = {...} ode_nats and so on: by the probability flow, exact for a density,
    with its solver, tolerances and the number of evaluations.
    Random levels are averaged over at least `draws` examples, the set repeated as often as that takes.
    importance_times: draw a diffusion's levels where the bound is large, as measured on up to 512 of x.
    Raises NotOffered for an implicit model, ValueError for x that is not finite or off the grid.
    """
    if "repeats" not in settings:
        settings["repeats"] = 1 if settings.get("every_level") else max(1, math.ceil(draws / len(x)))
    if importance_times:
        settings["times"] = measured_times(model, x, cond)
    scorer = Scorer(model, **settings)
    return scorer.summary([scorer(x, cond)], x[0].numel())


def measured_times(model: Any, x: Tensor, cond: Any = None, examples: int = 512) -> TimeSampler:
    """`Diffusion.proposal` of the first examples of x. Raises NotOffered for a model without levels in time."""
    if not hasattr(model, "proposal"):
        raise NotOffered(f"importance_times are of a Diffusion; got {_name(model)}")
    return model.proposal(x[:examples], rows_of(cond, slice(examples)))


def _name(model: Any) -> str:
    return type(model).__name__


def _explicit(model: Any) -> Any:
    """The model itself, or the VAE that a latent model is; refuses what cannot score."""
    if hasattr(model, "nll"):
        return model
    if not hasattr(model, "vae"):
        raise implicit(model)
    second = model.second
    if not hasattr(second, "nll"):
        raise NotOffered(f"{_name(model)} cannot be scored: its second stage cannot. {implicit(second)}")
    return model.vae()


# The importance-weighted bound.


@torch.no_grad()
def importance_weighted(
    model: Any, x: Tensor, samples: int, cond: Any = None, rows: int = 512
) -> tuple[Tensor, Tensor]:
    """Return log (1/K) Σ_k w_k, K = samples, and the effective number of samples (Σ w)²/Σ w²: (B,) nats, (B,), float64.

    w_k = p(x, z_k)/q(z_k|x), z_k ~ q. In expectation a bound on log p(x) from below: the ELBO at K = 1, never falling
    in K, tight as K grows, and exact at any K where q(z|x) is p(z|x). Burda 2015, 1509.00519, theorem 1.
    The logarithms of sums are carried along, so that memory is that of `rows` examples whatever B and K.
    Arguments: model, which offers log_weight(x, cond) (B,); x (B, *event); cond, of as many rows, or None.
    Raises NotOffered for a model that offers none, ValueError for samples < 1.
    """
    if not hasattr(model, "log_weight"):
        name = type(model).__name__
        raise NotOffered(f"model must offer log_weight for an importance-weighted bound; {name} does not")
    if samples < 1 or rows < 1:
        raise ValueError(f"samples and rows must be at least 1; got {samples} and {rows}")
    sums, squares = [], []
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        some, given = x[part], rows_of(cond, part)
        total = torch.full((len(some),), -math.inf, dtype=torch.float64, device=x.device)
        square, left = total, samples
        while left > 0:
            k = min(left, max(1, rows // len(some)))
            w = model.log_weight(some.repeat(k, *[1] * (x.ndim - 1)), repeated(given, k)).double().view(k, -1)
            total = torch.logaddexp(total, w.logsumexp(0))
            square = torch.logaddexp(square, (2 * w).logsumexp(0))
            left -= k
        sums.append(total)
        squares.append(square)
    log_sum = torch.cat(sums)
    return log_sum - math.log(samples), (2 * log_sum - torch.cat(squares)).exp()


def rows_of(cond: Any, part: slice) -> Any:
    """Some rows of a condition: of labels (B,), or of tokens and their mask."""
    if isinstance(cond, tuple):
        return tuple(rows_of(each, part) for each in cond)
    return None if cond is None else cond[part]


def repeated(cond: Any, k: int) -> Any:
    """A condition k times, one after the other."""
    if isinstance(cond, tuple):
        return tuple(repeated(each, k) for each in cond)
    return None if cond is None else cond.repeat(k, *[1] * (cond.ndim - 1))
