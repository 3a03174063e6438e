"""A data set, and batches of it in an order that depends on the seed and the epoch alone."""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..refusal import is_main
from .points import Density, Mixture
from .streaming import Stream, Workers

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Batches", "Data", "say", "trained_on", "few"]


def say(text: str) -> None:
    """Print text, on the main process."""
    if is_main():
        print(text, flush=True)


def trained_on(held: Tensor, labels: Tensor) -> Tensor:
    """Return which examples to hold out, (N,) bool: those of `held`, but the first of each class of which all are."""
    held = held.clone()
    for label in labels[held].unique():
        of_class = (labels == label).nonzero()[:, 0]
        if held[of_class].all():
            held[of_class[0]] = False
    return held


@dataclass(frozen=True)
class Data:
    """A data set: what a recipe needs to know of it, and its examples.

    Arguments:
        name: as in `--data`.
        shape: of one example, (C, H, W) or (D,).
        classes: how many labels there are; 0 if there are none.
        grey_levels: grey levels K of the values 2v/(K-1) - 1 that x takes; None for continuous data.
        x: training examples, uint8 v of shape (N, C, H, W) or float32 (N, D); None where only its shape is known, or
            where they are in `stream`.
        labels: (N,) int64, or None.
        held_out, held_out_labels: the same for examples that no model is trained on.
        density: the exact density that the examples were drawn from, or None.
        stream: training images that are too many for memory, decoded when a batch needs them; or None.
        class_names: what the labels mean, where that is known, in the order of the labels.
        factors, held_out_factors: (N, F) float32, what each example was made from; or None.
        factor_names: of the F factors.
        augment: applied to the x of each training batch, on its device; or None.
        mean, scale: of each dimension of vectors; an example of x is (value - mean) / scale of the data's own values.
            Empty where x is the data's own values, as for images.
    Raises:
        ValueError: labels or factors are not as many as the training examples, labels are not in 0 … classes - 1,
            class_names are not as many as the classes, or mean and scale are not as many as the dimensions.
    """

    name: str
    shape: tuple[int, ...]
    classes: int = 0
    grey_levels: int | None = None
    x: Tensor | None = field(default=None, repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    held_out: Tensor | None = field(default=None, repr=False)
    held_out_labels: Tensor | None = field(default=None, repr=False)
    density: Density | None = field(default=None, repr=False)
    stream: Stream | None = field(default=None, repr=False)
    class_names: tuple[str, ...] = field(default=(), repr=False)
    factors: Tensor | None = field(default=None, repr=False)
    held_out_factors: Tensor | None = field(default=None, repr=False)
    factor_names: tuple[str, ...] = ()
    augment: Callable[[Tensor], Tensor] | None = None
    mean: tuple[float, ...] = field(default=(), repr=False)
    scale: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name, values in (("labels", self.labels), ("factors", self.factors)):
            if values is not None and len(self) and len(values) != len(self):
                raise ValueError(f"{name} must be as many as the examples, {len(self)}; got {len(values)}")
        for name, values in (("labels", self.labels), ("held_out_labels", self.held_out_labels)):
            if self.classes and values is not None and len(values):
                low, high = int(values.min()), int(values.max())
                if low < 0 or high >= self.classes:
                    raise ValueError(f"{name} must be in 0 … {self.classes - 1}; got {low} … {high}: count from 0")
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"class_names must be as many as the classes, {self.classes}; got {self.class_names}")
        if {len(self.mean), len(self.scale)} not in ({0}, {self.dimensions}):
            raise ValueError(
                f"mean and scale must have one value a dimension, {self.dimensions}; got {len(self.mean)} and "
                f"{len(self.scale)}"
            )

    @property
    def is_image(self) -> bool:
        """Whether an example is (C, H, W)."""
        return len(self.shape) == 3

    @property
    def modes(self) -> Mixture | None:
        """The density, if it is an even mixture of Gaussians, whose components are modes that can be counted."""
        return self.density if isinstance(self.density, Mixture) and self.density.weights is None else None

    @property
    def dimensions(self) -> int:
        """How many numbers an example has: d of bits/dim."""
        return int(torch.Size(self.shape).numel())

    def __len__(self) -> int:
        stored = self.stream if self.x is None else self.x
        return 0 if stored is None else len(stored)

    def decode(self, x: Tensor) -> Tensor:
        """Stored examples as models see them: float32, images 2v/(K-1) - 1 in [-1, 1]."""
        if self.grey_levels is None:
            return x.float()
        # In place: for small images the memory's speed is that of a batch.
        return x.to(torch.float32, copy=True).mul_(2 / (self.grey_levels - 1)).sub_(1)

    def to_data(self, x: Tensor) -> Tensor:
        """Return what models see, (..., D), in the data's own values: scale x + mean. Images stay as they are.

        In the dtype of x, at least float32; in float64 where float32 is too short: where its step at the mean exceeds a
        thousandth of the scale, or its range ends.
        """
        if not self.scale:
            return x
        mean, scale = self._mean_and_scale(x.device)
        values = x.double() * scale + mean
        single = torch.finfo(torch.float32)
        too_short = (mean.abs() * single.eps > 1e-3 * scale) | (mean.abs() + 100 * scale > single.max)
        return values if too_short.any() else values.to(torch.promote_types(x.dtype, torch.float32))

    def to_unit(self, values: Tensor) -> Tensor:
        """Return the data's own values (..., D) as models see them, (value - mean) / scale: the inverse of `to_data`.

        Computed in float64, returned in the dtype of `values`, at least float32; images stay as they are.
        """
        if not self.scale:
            return values
        mean, scale = self._mean_and_scale(values.device)
        return ((values.double() - mean) / scale).to(torch.promote_types(values.dtype, torch.float32))

    def _mean_and_scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, scale = (torch.tensor(values, dtype=torch.float64, device=device) for values in (self.mean, self.scale))
        return mean, scale

    @property
    def log_scale(self) -> float:
        """Σ log scale over the dimensions: the nats by which -log p of the data's own values exceeds that of x."""
        return sum(map(math.log, self.scale))

    def standardized(self) -> "Data":
        """Return vectors with mean 0 and variance 1 in each dimension, as models expect them; `to_data` maps back.

        A dimension of one value is only shifted. Raises ValueError for images, data with a density, data without
        examples here, and values whose standard deviation is not finite in float64.
        """
        if self.is_image or self.density is not None or self.x is None:
            raise ValueError(f"only vectors whose examples are here can be standardized; got {self}")
        std, mean = torch.std_mean(self.to_data(self.x.double()), 0, correction=0)
        if not std.isfinite().all():
            bad = int((~std.isfinite()).nonzero()[0])
            raise ValueError(
                f"the standard deviation of dimension {bad} must be finite; got {std[bad]:g}, of values up to "
                f"{self.x[:, bad].abs().max():g}: divide them by a constant"
            )
        std = torch.where(std > 1e-12 * mean.abs(), std, 1.0)
        return self.rescaled(tuple(mean.tolist()), tuple(std.tolist()))

    def rescaled(self, mean: Sequence[float], scale: Sequence[float]) -> "Data":
        """Return vectors as (value - mean) / scale of the data's own values; both empty: the own values.

        A model is evaluated on other examples by the mean and scale of those that it was trained on. Raises ValueError
        for images, data with a density, and data without examples here.
        """
        if self.is_image or self.density is not None or self.x is None:
            raise ValueError(f"only vectors whose examples are here can be rescaled; got {self}")
        to = replace(self, mean=tuple(mean), scale=tuple(scale))
        x, held_out = (
            None if part is None else to.to_unit(self.to_data(part.double())).float()
            for part in (self.x, self.held_out)
        )
        return replace(to, x=x, held_out=held_out)

    def label(self, name: str) -> int:
        """Return the label of a class by its name or number; where names are known, a name comes first.

        Raises ValueError with the classes there are.
        """
        if name in self.class_names:
            return self.class_names.index(name)
        if name.isdecimal() and int(name) < self.classes:
            return int(name)
        expected = f"one of {self._listed()}" if self.classes else "none, since there are no labels"
        raise ValueError(f"label {name}: expected {expected}")

    def describe_classes(self) -> str:
        """Return each label, the name of its class and how many training examples it has: `0 cat (20), 1 dog (18)`."""
        if self.labels is None:
            return self._listed()
        return self._listed([f" ({n})" for n in torch.bincount(self.labels.cpu(), minlength=self.classes).tolist()])

    def _listed(self, notes: Sequence[str] = (), most: int = 20) -> str:
        names, notes = self.class_names or [""] * self.classes, notes or [""] * self.classes
        parts = [f"{label} {name}".strip() + note for label, (name, note) in enumerate(zip(names, notes))]
        return ", ".join(parts[:most]) + (f" and {len(parts) - most} more" if len(parts) > most else "")

    def card(self) -> dict[str, Any]:
        """Return what a run records of its data, enough to build its networks and to show its samples."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "classes": self.classes,
            "grey_levels": self.grey_levels,
            "class_names": list(self.class_names),
            "examples": len(self),
            "mean": list(self.mean),
            "scale": list(self.scale),
        }

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> "Data":
        """Return the data set without its examples."""
        return cls(
            card["name"],
            tuple(map(operator.index, card["shape"])),
            operator.index(card["classes"]),
            card["grey_levels"],
            class_names=tuple(card.get("class_names", ())),
            mean=tuple(map(float, card.get("mean", ()))),
            scale=tuple(map(float, card.get("scale", ()))),
        )

    @classmethod
    def from_tensor(cls, x: "Tensor | ArrayLike", name: str = "tensor", grey_levels: int | None = 256) -> "Data":
        """Data of one's own: images (N, C, H, W) in [-1, 1] on the grid of K levels (None: not on a grid), or (N, D).

        x may be an array, too. Raises ValueError, naming the sample, for integers, NaN and images out of range.
        """
        from ..batch import check_batch

        x = torch.as_tensor(x)
        check_batch(x)
        if x.ndim != 4 or grey_levels is None:
            return cls(name, tuple(x.shape[1:]), x=x.float())
        if grey_levels > 256:
            raise ValueError(f"grey_levels must be at most 256, or None; got {grey_levels}")
        bad = x.abs().flatten(1).amax(1) > 1 + 1e-3  # whatever the channels: uint8 would wrap around
        if bad.any():
            raise ValueError(f"images must be in [-1, 1]; sample {int(bad.nonzero()[0])} is not; or grey_levels=None")
        values = ((x + 1) * (grey_levels - 1) / 2).round().to(torch.uint8)
        return cls(name, tuple(x.shape[1:]), grey_levels=grey_levels, x=values)

    def batches(
        self,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        labels: bool = False,
    ) -> "Batches":
        """Endless batches for one of `world_size` processes; see `Batches`."""
        return Batches(self, batch_size, seed, rank, world_size, device, labels)


class Batches:
    """Endless batches (B, *shape), or {"x": …, "cond": labels}, shuffled anew in each epoch.

    Sample number i of the stream is order(seed, epoch)[i mod N] of epoch i div N, so a batch may straddle two epochs
    and none is dropped. Each step consumes world_size × B samples, of which process r takes the r-th B. The position
    is the number of samples consumed: it survives a change of world size. All this holds for images in memory and for
    those that workers decode.

    Raises ValueError if the data set has no examples or a step needs more than it has.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        labels: bool = False,
    ) -> None:
        if data.x is None and data.stream is None:
            raise ValueError(f"the data set {data.name!r} has no examples here, only its shape")
        if not 0 <= rank < world_size:
            raise ValueError(f"0 <= rank < world_size must hold; got rank {rank} and world_size {world_size}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if batch_size * world_size > len(data):
            raise ValueError(
                f"--batch-size {batch_size} on {world_size} process{'es' * (world_size > 1)} needs "
                f"{batch_size * world_size} examples a step; {data.name} has {len(data)}: lower --batch-size"
            )
        if labels and data.labels is None:
            raise ValueError(f"the data set {data.name!r} has no labels")
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.rank, self.world_size = rank, world_size
        # Small sets live on the device as uint8: a batch is one gather there.
        self.x = None if data.x is None else data.x.to(device)
        self.device = torch.device(device)
        self.labels = data.labels.to(device) if labels and data.labels is not None else None
        self.consumed = 0
        self._plan = _Plan(len(data), seed, batch_size, rank)
        self._workers = None
        if self.x is None and data.stream is not None:
            # A plan of its own: reading ahead, it is in another epoch.
            plan = _Plan(len(data), seed, batch_size, rank)
            self._workers = Workers(data.stream, plan, batch_size * world_size, pin=self.device.type == "cuda")

    def order(self, epoch: int) -> Tensor:
        """The order of an epoch: (N,) indices, a function of (seed, epoch) alone."""
        return self._plan.order(epoch)

    def __iter__(self) -> Iterator[Tensor | dict[str, Tensor]]:
        while True:
            index = self._plan(self.consumed).to(self.device, non_blocking=True)
            if self.x is not None:
                stored = self.x.index_select(0, index)
            else:
                assert self._workers is not None
                # A bad image is replaced by another, which keeps its own label.
                stored, index = (part.to(self.device, non_blocking=True) for part in self._workers.take(self.consumed))
            self.consumed += self.batch_size * self.world_size
            x = self.data.decode(stored)
            if self.data.augment is not None:
                x = self.data.augment(x)
            yield x if self.labels is None else {"x": x, "cond": self.labels[index]}

    def state_dict(self) -> dict[str, int]:
        """The position in the stream, the same on every rank."""
        return {"consumed": self.consumed, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position. Raises ValueError if the order there was of another seed, or it is no position."""
        if state["seed"] != self.seed:
            raise ValueError(f"the data order was of seed {state['seed']}; got --seed {self.seed}")
        if not isinstance(state["consumed"], int) or not 0 <= state["consumed"] < 2**62:
            raise ValueError(f"the position in the data must be a number of examples; got {state['consumed']!r}")
        self.consumed = state["consumed"]


class _Plan:
    """Which examples the batch of a process has that begins at a position: (B,) indices."""

    def __init__(self, examples: int, seed: int, batch_size: int, rank: int) -> None:
        self.examples, self.seed, self.batch_size, self.rank = examples, seed, batch_size, rank
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + epoch) % 2**63)
        return torch.randperm(self.examples, generator=generator)

    def __call__(self, consumed: int) -> Tensor:
        start, count, parts = consumed + self.rank * self.batch_size, self.batch_size, []
        while count > 0:
            epoch, place = divmod(start, self.examples)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self.order(epoch)
            parts.append(self._order[place : place + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def few(data: Data, n: int) -> Data:
    """Return a data set of the first n examples, in memory and without augmentation; its order is its own."""
    rows = index = torch.arange(min(n, len(data)))
    x = data.x
    if data.stream is not None:
        x, index, bad = data.stream.read(rows)
        data.stream.skipping.add(bad)
    return replace(
        data,
        x=None if x is None else x[: len(rows)],
        labels=None if data.labels is None else data.labels[index],
        factors=None if data.factors is None else data.factors[index],
        stream=None,
        augment=None,
    )
