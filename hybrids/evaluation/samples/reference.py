"""The real examples that samples are compared with, the same for every model of a comparison."""

from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...data import Data
from ..measurements import Unavailable
from .features import Features, Pixels, fingerprint
from .neighbours import Neighbours, nearest

__all__ = ["LEAST_SAMPLES", "MOST_NEAREST", "Reference", "reference", "training_examples"]

T = TypeVar("T")

LEAST_SAMPLES = 16
"""Fewest samples that are compared with real examples: with fewer the floors exceed any difference."""
SPLITS = 10
"""Random splits of real examples that a floor is the mean over: its standard deviation is then known to 24%."""
MOST_TRAINING, MOST_NEAREST = 60_000, 2000
"""Training examples that are searched for the nearest one, and samples whose nearest one is searched for."""


def training_examples(data: Data, index: Tensor) -> Tensor:
    """Return the training examples at index (B,) in the models' scale, from memory or decoded from their files.

    Raises Unavailable for data of which only the shape is known.
    """
    if data.x is not None:
        return data.decode(data.x[index])
    if data.stream is None:
        raise Unavailable(f"{data.name} has no training examples: only its shape is known")
    pixels, _, bad = data.stream.read(index)
    data.stream.skipping.add(bad)
    return data.decode(pixels)


class Reference:
    """Two halves of n training examples each, the same for every model; samples are compared with the first half.

    A floor is the mean of a metric over random splits of both halves together: n examples against n, as for samples.
    Arguments:
        data: the data set.
        n: at most half of its training examples.
        features: a map of examples into the space in which distances are measured.
    Raises Unavailable for data with fewer than 2 LEAST_SAMPLES examples.
    """

    def __init__(self, data: Data, n: int, features: Features) -> None:
        self.data, self.features, self.pixels = data, features, Pixels(data.shape)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        self.n = min(n, len(data) // 2)
        if self.n < LEAST_SAMPLES:
            raise Unavailable(
                f"{data.name} has {len(data)} training examples; at least {2 * LEAST_SAMPLES} are needed for two halves"
            )
        self.x = training_examples(data, order[: self.n])
        self.other = training_examples(data, order[self.n : 2 * self.n])
        self._cache: dict[str, Any] = {}

    def cached(self, name: str, compute: Callable[[], T]) -> T:
        """Return compute(), a property of the halves that does not depend on samples, computed once for each name."""
        if name not in self._cache:
            self._cache[name] = compute()
        return self._cache[name]

    def floor(self, name: str, compute: Callable[[], Tensor]) -> tuple[float, float]:
        """Return the mean and the standard deviation of compute(), a metric (S,) of the splits, computed once."""

        def moments() -> tuple[float, float]:
            values = compute()
            return values.mean().item(), values.std().item()

        return self.cached(name, moments)

    def over_splits(self, examples: Tensor, distance: Callable[[Tensor, Tensor], float]) -> Tensor:
        """Return distance(one half, the other half) of examples (2n, ...) for each split: (S,) float64."""
        return torch.tensor([distance(examples[a], examples[~a]) for a in self.halves], dtype=torch.float64)

    @cached_property
    def halves(self) -> Tensor:
        """Mark the examples of both halves that are in the first half of each split: (SPLITS, 2n) bool."""
        generator = torch.Generator().manual_seed(2)
        order = torch.stack([torch.randperm(2 * self.n, generator=generator) for _ in range(SPLITS)])
        return order < self.n

    @cached_property
    def embeddings(self) -> Tensor:
        """The features of the first half (n, d)."""
        return self.features(self.x)

    @cached_property
    def all_embeddings(self) -> Tensor:
        """The features of both halves (2n, d)."""
        return torch.cat([self.embeddings, self.features(self.other)])

    @cached_property
    def neighbours(self) -> Neighbours:
        return Neighbours(self.embeddings)

    @cached_property
    def training(self) -> Tensor:
        """Up to MOST_TRAINING training examples in `Pixels`, the space in which memorization is measured."""
        index = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(1))[:MOST_TRAINING]
        return torch.cat([self.pixels(training_examples(self.data, part)) for part in index.split(4096)])

    @cached_property
    def held_out_distance(self) -> float:
        """The median distance of held-out examples to their nearest training example, in `Pixels`."""
        if self.data.held_out is None:
            raise Unavailable(f"{self.data.name} has no held-out examples to compare with")
        held_out = self.pixels(self.data.decode(self.data.held_out[:MOST_NEAREST]))
        return nearest(held_out, self.training).median().item()


_REFERENCES: OrderedDict[tuple[str, int, str], Reference] = OrderedDict()


def reference(data: Data, n: int, features: Features, most: int = 4) -> Reference:
    """Return the `Reference` of data, n and features; the `most` last used are cached."""
    key = (fingerprint(data), n, features.name)
    if key not in _REFERENCES:
        _REFERENCES[key] = Reference(data, n, features)
    _REFERENCES.move_to_end(key)
    while len(_REFERENCES) > most:
        _REFERENCES.popitem(last=False)
    return _REFERENCES[key]
