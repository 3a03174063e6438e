"""The objective as a value: named per-example terms with weights, which add and scale."""

from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

from components.precision import wide

__all__ = ["Terms"]

Weight = float | Tensor


class Terms(Mapping[str, tuple[Weight, Tensor]]):
    """An objective Σ_k w_k E_batch[values_k]: a mapping from names to (weight, values (B,)).

        Terms(rate=rate, distortion=(2.0, distortion))     # a tensor alone has weight 1
        a + b            # both; their names must differ
        0.1 * a          # every weight scaled
        a.under("prior") # "rate" becomes "prior.rate"

    Values are (B,), in nats where they are likelihoods; a batch-level value () is expanded to (B,), as soon as another
    term says what B is; half precision is widened. A term of weight 0 is a measurement: it is reported, never
    differentiated.
    Raises ValueError for another shape, for unequal B, and for equal names in a sum; TypeError for what is no tensor.
    """

    def __init__(
        self,
        terms: Mapping[str, Tensor | tuple[Weight, Tensor]] | None = None,
        **more: Tensor | tuple[Weight, Tensor],
    ) -> None:
        entries: dict[str, tuple[Weight, Tensor]] = {}
        for name, entry in {**(terms or {}), **more}.items():
            weight, values = entry if isinstance(entry, tuple) else (1.0, entry)
            if not isinstance(values, Tensor):
                raise TypeError(f"term {name!r} must be a tensor (B,) or (weight, tensor); got {type(values).__name__}")
            if values.ndim > 1:
                raise ValueError(f"term {name!r} must be (B,), one value an example; got shape {tuple(values.shape)}")
            if isinstance(weight, Tensor) and weight.ndim > 0:
                raise ValueError(f"the weight of term {name!r} must be a number or (); got shape {tuple(weight.shape)}")
            measured = isinstance(weight, int | float) and weight == 0
            entries[name] = (weight, wide(values.detach() if measured else values))
        sizes = {name: len(values) for name, (_, values) in entries.items() if values.ndim}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"all terms must have one batch size; got {sizes}")
        shape = next(((size,) for size in sizes.values()), ())
        self._entries = {name: (weight, values.expand(shape)) for name, (weight, values) in entries.items()}

    def __getitem__(self, name: str) -> tuple[Weight, Tensor]:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __add__(self, other: "Terms") -> "Terms":
        if not isinstance(other, Terms):
            return NotImplemented
        both = self.keys() & other.keys()
        if both:
            raise ValueError(f"both sides have a term {sorted(both)}: rename one side with .under(name)")
        return Terms({**self._entries, **other._entries})

    def __radd__(self, other: int) -> "Terms":
        # sum() starts from 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, factor: Weight) -> "Terms":
        if not isinstance(factor, int | float | Tensor):
            return NotImplemented
        return Terms({name: (factor * weight, values) for name, (weight, values) in self._entries.items()})

    __rmul__ = __mul__

    def under(self, scope: str) -> "Terms":
        """The same terms, each name as "scope.name"."""
        return Terms({f"{scope}.{name}": entry for name, entry in self._entries.items()})

    @property
    def per_example(self) -> Tensor:
        """Σ_k w_k values_k: (B,)."""
        if not self._entries:
            raise ValueError("an empty Terms has no total")
        # 0 × inf would be NaN: a measurement may be infinite.
        weighted = [
            weight * values if isinstance(weight, Tensor) or weight != 0 else torch.zeros_like(values)
            for weight, values in self._entries.values()
        ]
        return torch.stack(torch.broadcast_tensors(*weighted)).sum(0) if len(weighted) > 1 else weighted[0]

    @property
    def total(self) -> Tensor:
        """Σ_k w_k mean(values_k): (), what a player minimizes."""
        parts = [
            weight * self._averages[name]
            for name, (weight, _) in self._entries.items()
            if isinstance(weight, Tensor) or weight != 0
        ]
        if not parts:
            raise ValueError(f"nothing to minimize: no term has a weight other than 0; got {list(self._entries)}")
        return sum(parts[1:], parts[0])

    def means(self) -> dict[str, Tensor]:
        """{name: mean(values)}: (), detached and unweighted, for logs."""
        return {name: average.detach() for name, average in self._averages.items()}

    @cached_property
    def _averages(self) -> dict[str, Tensor]:
        return {name: values.mean() for name, (_, values) in self._entries.items()}

    def __repr__(self) -> str:
        weights = (
            f"{name}={float(weight):g} × {tuple(values.shape)}" for name, (weight, values) in self._entries.items()
        )
        return f"Terms({', '.join(weights)})"
