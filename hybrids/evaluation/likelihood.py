"""Likelihood of any explicit model: its bound and the terms of it, importance-weighted, and by the probability flow."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from components.distributions import check_grid
from components.losses import TimeSampler

from ..models.model import NotOffered, implicit

__all__ = ["Scorer", "importance_weighted", "likelihood", "measured_times"]

Value = float | str | list[float]
"""A number, a description, or numbers by level."""
DEQUANTIZATIONS = {
    "none": "none: the bound is on a density of x",
    "grid": "none: the bound is on the probability of grey levels",
    "uniform": "uniform over each level's bin: a bound in expectation (Theis 2015, 1511.01844)",
    "encoder": "the diffusion's own q(x_first|x) and last decoder: a bound in expectation",
    "latent": "the flow is of z ~ q(z|x): a bound in expectation",
}


class Scorer:
    """The estimates of `likelihood` for each example, so that examples can be distributed over processes.

        scorer = Scorer(model, repeats=4, importance_samples=100)
        values = [scorer(chunk) for chunk in x.split(64)]     # each {name: (B,)}, float64 on the CPU
        summary = scorer.summary(values, x[0].numel())

    Arguments:
        model: offers nll(x, cond), as every explicit model; a latent model is scored as a VAE.
        repeats: number of draws of the bound for each example.
        every_level: sum the bound over all levels (`bound`) instead of drawing one (`nll`): slower, less variance.
        per_level: return also the mean rate of each level of a diffusion; needs every_level.
        times: sampler of the levels that `nll` draws, such as `Diffusion.proposal`; for a diffusion only.
        importance_samples: K of the importance-weighted bound; 0: none.
        flow: settings of the probability flow (`Diffusion.flow`), such as {"rtol": 1e-5, "divergence": "rademacher"},
            for log p of a diffusion, or of the latents of a VAE whose prior is one; None: none.
        dequantization: of grey levels for the flow, as in `Diffusion.log_prob`.
        bound: False skips the bound; a flow that starts at zero noise in continuous time has none.
        rows: examples in one forward pass.
        log_scale: `Data.log_scale`, added to every -log p and returned as nats_scale: -log p is then of the data's own
            values, not of the standardized x.
    Raises NotOffered, with the alternative, for an implicit model and for a model without a required method;
    ValueError for arguments out of range.
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
            raise ValueError("nothing to measure: bound is False; give importance_samples or flow")
        if per_level and not (every_level and hasattr(self.model, "rates")):
            raise ValueError(
                f"per_level needs every_level=True and a model with rates, such as a Diffusion; got every_level="
                f"{every_level} and {type(self.model).__name__}"
            )
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
        """Return the estimates {name: (N,)} for x (N, *event), float64 on the CPU; names with `nats` are in nats.

        Raises ValueError for x that is not finite, or not on the grid of the model's grey levels.
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
        estimates: dict[str, Tensor] = {}
        for _ in range(self.repeats if self.bound else 0):
            for name, values in self._bound(x, cond).items():
                estimates[name] = estimates.get(name, 0) + values.double() / self.repeats
        if self.importance_samples:
            log_p, effective = importance_weighted(self.model, x, self.importance_samples, cond, self.rows)
            estimates |= {"importance_nats": -log_p, "importance_effective_samples": effective}
        if self.flow is not None:
            estimates["ode_nats"] = -self.model.log_prob(x, cond, self.flow, self.dequantization)
            estimates["ode_evaluations"] = torch.full((len(x),), float(self.flow.evaluations), dtype=torch.float64)
        if self.log_scale:
            for name in estimates.keys() & {"nats", "importance_nats", "ode_nats"}:
                estimates[name] = estimates[name] + self.log_scale
            if self.bound:
                estimates["nats_scale"] = torch.full((len(x),), self.log_scale, dtype=torch.float64)
        return {name: values.double().cpu() for name, values in estimates.items()}

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

    def summary(self, values: Sequence[Mapping[str, Tensor]], d: int) -> dict[str, Value]:
        """Return means over all examples, their standard errors, and the settings: see `likelihood`.

        Arguments:
            values: the results of all calls, in the order of the examples.
            d: the number of dimensions of one x.
        """
        estimates = {name: torch.cat([each[name] for each in values]) for name in values[0]}
        examples = len(next(iter(estimates.values())))
        summary: dict[str, Value] = {}
        for name in ("nats", "importance_nats", "ode_nats"):
            if name in estimates:
                summary |= self._in_units(name, estimates.pop(name), d)
        for name, value in estimates.items():
            summary[name] = value.mean(0).tolist()
        summary |= {"examples": float(examples), "dimensions": float(d)}
        if self.bound:
            summary["draws"] = float(self.repeats)
        if self.grey_levels is None:
            summary |= {"grid": "none", "dequantization": DEQUANTIZATIONS["none"]}
        else:
            summary |= {"grey_levels": float(self.grey_levels), "grid": f"x = 2v/(K-1) - 1, K = {self.grey_levels}",
                        "dequantization": DEQUANTIZATIONS["grid"]}  # fmt: skip
        if self.importance_samples:
            summary["importance_samples"] = float(self.importance_samples)
        return summary | self._flow_settings()

    def _in_units(self, name: str, nats: Tensor, d: int) -> dict[str, Value]:
        """Return the mean of nats (N,) in nats, nats/dim and bits/dim, and its standard errors."""
        error = (nats.std() / math.sqrt(len(nats))).item()
        values: dict[str, Value] = {
            name: nats.mean().item(),
            f"{name}_per_dim": nats.mean().item() / d,
            f"{name}_per_dim_standard_error": error / d,
        }
        if self.grey_levels is not None:
            bits = name.replace("nats", "bits_per_dim")
            nats_per_bit = d * math.log(2)
            values |= {bits: nats.mean().item() / nats_per_bit, f"{bits}_standard_error": error / nats_per_bit}
        return values

    def _flow_settings(self) -> dict[str, Value]:
        """Return the settings of the probability flow, for the summary."""
        if self.flow is None:
            return {}
        flow = self.flow
        own = "none" if self.grey_levels is None else self.dequantization
        kind = getattr(self.model, "flow_dequantization", own)
        divergence = "exact" if flow.divergence == "exact" else f"Hutchinson, {flow.probes} {flow.divergence} probe(s)"
        settings: dict[str, Value] = {
            "ode_method": flow.method,
            "ode_divergence": divergence,
            "ode_first_time": float(flow.first),
            "ode_dequantization": DEQUANTIZATIONS[kind],
        }
        if flow.steps is None:
            return settings | {"ode_rtol": flow.rtol, "ode_atol": flow.atol}
        return settings | {"ode_steps": float(flow.steps)}


def likelihood(
    model: Any, x: Tensor, draws: int = 4096, *, cond: Any = None, importance_times: bool = False, **settings: Any
) -> dict[str, Value]:
    """Return the model's bound on -log p(x), averaged over x (N, *event), and the other estimates of `Scorer`.

    The result has nats, nats_per_dim, its standard error over the examples, the terms as nats_NAME (their sum is nats),
    and bits_per_dim = nats/(d log 2) where the likelihood is discrete on the data's grid (`grey_levels`), which is
    stated with the dequantization. With importance_samples=K it has the same for the importance-weighted bound
    (importance_nats, ...) and its effective number of samples; with flow={...} for the probability flow (ode_nats,
    ...), exact for a density, with solver, tolerances and number of evaluations.

    Arguments:
        model: as in `Scorer`.
        x: (N, *event).
        draws: random levels are averaged over at least this many draws, the set being repeated as needed.
        cond: condition, with N rows.
        importance_times: draw a diffusion's levels in proportion to the bound, measured on up to 512 of x.
        settings: further arguments of `Scorer`.
    Raises NotOffered for an implicit model, ValueError for x that is not finite or not on the grid.
    """
    if "repeats" not in settings:
        settings["repeats"] = 1 if settings.get("every_level") else max(1, math.ceil(draws / len(x)))
    if importance_times:
        settings["times"] = measured_times(model, x, cond)
    scorer = Scorer(model, **settings)
    return scorer.summary([scorer(x, cond)], x[0].numel())


def measured_times(model: Any, x: Tensor, cond: Any = None, examples: int = 512) -> TimeSampler:
    """Return `Diffusion.proposal` of the first examples of x. Raises NotOffered for a model without `proposal`."""
    if not hasattr(model, "proposal"):
        raise NotOffered(f"importance_times needs a Diffusion; got {_name(model)}")
    return model.proposal(x[:examples], rows_of(cond, slice(examples)))


def _name(model: Any) -> str:
    return type(model).__name__


def _explicit(model: Any) -> Any:
    """Return the model, or the VAE that a latent model is. Raises NotOffered for an implicit model."""
    if hasattr(model, "nll"):
        return model
    if not hasattr(model, "vae"):
        raise implicit(model)
    second = model.second
    if not hasattr(second, "nll"):
        raise NotOffered(f"{_name(model)} has no likelihood, because its second stage has none. {implicit(second)}")
    return model.vae()


# The importance-weighted bound.


@torch.no_grad()
def importance_weighted(
    model: Any, x: Tensor, samples: int, cond: Any = None, rows: int = 512
) -> tuple[Tensor, Tensor]:
    """Return log (1/K) Σ_k w_k, K = samples, and the effective number of samples (Σ w)²/Σ w²: (B,) nats, (B,), float64.

    w_k = p(x, z_k)/q(z_k|x), z_k ~ q(z|x). It is a lower bound on log p(x) in expectation: the ELBO at K = 1,
    non-decreasing in K, tight as K → ∞, and exact at any K where q(z|x) = p(z|x). Burda 2015, 1509.00519, theorem 1.
    Sums are accumulated in the log domain, with the memory of `rows` examples for any B and K.
    Arguments:
        model: offers log_weight(x, cond) → (B,).
        x: (B, *event).
        cond: condition with B rows, or None.
        rows: examples in one forward pass.
    Raises NotOffered for a model without `log_weight`, ValueError for samples or rows below 1.
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
    """Return a slice of a condition: of labels (B,), or of tokens and their mask."""
    if isinstance(cond, tuple):
        return tuple(rows_of(each, part) for each in cond)
    return None if cond is None else cond[part]


def repeated(cond: Any, k: int) -> Any:
    """Return a condition repeated k times along the batch."""
    if isinstance(cond, tuple):
        return tuple(repeated(each, k) for each in cond)
    return None if cond is None else cond.repeat(k, *[1] * (cond.ndim - 1))
