"""Real examples that samples are compared with, the same for every model of a comparison."""

from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...data import Data
from ..figures import Unavailable
from .features import Features, Pixels, fingerprint
from .neighbours import Neighbours, nearest

__all__ = ["LEAST_SAMPLES", "MOST_NEAREST", "Reference", "reference", "training_examples"]

T = TypeVar("T")

LEAST_SAMPLES = 16
"""Fewer are compared with nothing: the floors of all distances would drown whatever they say."""
SPLITS = 10
"""Random splits of real examples that a floor is the mean of: its spread is known to 24%."""
MOST_TRAINING, MOST_NEAREST = 60_000, 2000
"""Examples among which the nearest is looked for, and for how many."""


def training_examples(data: Data, index: Tensor) -> Tensor:
    """Training examples at an index (B,), as models see them, whether in memory or decoded now.

    Raises Unavailable for data of which only the shape is known.
    """
    if data.x is not None:
        return data.decode(data.x[index])
    if data.stream is None:
        raise Unavailable(f"{data.name} has no examples here, only its shape")
    pixels, bad = data.stream.read(index)
    data.stream.skipping.add(bad)
    return data.decode(pixels)


class Reference:
    """Two halves of the training examples, the same for every model, of n each: samples are compared with the first.

    Floors are the mean over random splits of both halves together: n against n, as samples are.
    Arguments: n, at most half of the set; features, the space of distances.
    """

    def __init__(self, data: Data, n: int, features: Features) -> None:
        self.data, self.features, self.pixels = data, features, Pixels(data.shape)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        self.n = min(n, len(data) // 2)
        if self.n < LEAST_SAMPLES:
            raise Unavailable(f"{data.name} has {len(data)} examples; halves of at least {LEAST_SAMPLES} are compared")
        self.x = training_examples(data, order[: self.n])
        self.other = training_examples(data, order[self.n : 2 * self.n])
        self._known: dict[str, Any] = {}

    def known(self, name: str, compute: Callable[[], T]) -> T:
        """Return something about the halves that does not depend on samples, computed once."""
        if name not in self._known:
            self._known[name] = compute()
        return self._known[name]

    def floor(self, name: str, compute: Callable[[], Tensor]) -> tuple[float, float]:
        """Return the mean and the standard deviation of a metric (S,) over the splits, computed once."""

        def both() -> tuple[float, float]:
            values = compute()
            return values.mean().item(), values.std().item()

        return self.known(name, both)

    def over_splits(self, examples: Tensor, distance: Callable[[Tensor, Tensor], float]) -> Tensor:
        """Return distance(one half, the other half) of examples (2n, ...) for each split: (S,) float64."""
        return torch.tensor([distance(examples[a], examples[~a]) for a in self.halves], dtype=torch.float64)

    @cached_property
    def halves(self) -> Tensor:
        """Which of both halves' examples are in the first half of each split: (SPLITS, 2n) bool."""
        generator = torch.Generator().manual_seed(2)
        order = torch.stack([torch.randperm(2 * self.n, generator=generator) for _ in range(SPLITS)])
        return order < self.n

    @cached_property
    def seen(self) -> Tensor:
        return self.features(self.x)

    @cached_property
    def all_seen(self) -> Tensor:
        """The features of both halves (2n, d)."""
        return torch.cat([self.seen, self.features(self.other)])

    @cached_property
    def neighbours(self) -> Neighbours:
        return Neighbours(self.seen)

    @cached_property
    def training(self) -> Tensor:
        """Training examples as pixels, in which memorization is looked for."""
        index = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(1))[:MOST_TRAINING]
        return torch.cat([self.pixels(training_examples(self.data, part)) for part in index.split(4096)])

    @cached_property
    def held_out_distance(self) -> float:
        """The median distance of held-out examples to their nearest training example."""
        if self.data.held_out is None:
            raise Unavailable(f"{self.data.name} has no held-out examples to compare with")
        held_out = self.pixels(self.data.decode(self.data.held_out[:MOST_NEAREST]))
        return nearest(held_out, self.training).median().item()


_REFERENCES: OrderedDict[tuple[str, int, str], Reference] = OrderedDict()


def reference(data: Data, n: int, features: Features, most: int = 4) -> Reference:
    """The `Reference` of that data, made once; the few last asked for are kept."""
    key = (fingerprint(data), n, features.name)
    if key not in _REFERENCES:
        _REFERENCES[key] = Reference(data, n, features)
    _REFERENCES.move_to_end(key)
    while len(_REFERENCES) > most:
        _REFERENCES.popitem(last=False)
    return _REFERENCES[key]
