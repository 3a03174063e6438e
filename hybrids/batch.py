"""A batch: examples x, and what they are conditioned on."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from components.conditions import drop

__all__ = ["Batch", "check_batch", "check_batches", "to_device", "unpack"]

Batch = Tensor | Mapping[str, Tensor]


def unpack(batch: Batch, dropout: float = 0.0, num_classes: int | None = None) -> tuple[Tensor, Any]:
    """Return x and cond of a batch; None for cond where it has none.

    Arguments:
        dropout: probability that an example loses its condition, as in `components.conditions.drop` (classifier-free
            guidance: Ho & Salimans 2022, 2207.12598).
        num_classes: the null label, which labels need for it.
    """
    if isinstance(batch, Tensor):
        return batch, None
    x, cond = batch["x"], batch.get("cond")
    return x, drop(cond, dropout, num_classes) if dropout else cond


def check_batch(batch: Batch) -> None:
    """Refuse what no model expects: integers, NaN, images that are not in [-1, 1]; warn of images in [0, 1]."""
    x = batch if isinstance(batch, Tensor) else batch.get("x")
    if x is None:
        raise ValueError(f"a batch that is a mapping must have x; got {sorted(batch)}")
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor (B, *event); got a {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, images in [-1, 1]; got {x.dtype}: scale with x / 127.5 - 1")
    bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        raise ValueError(f"x must be finite; sample {int(bad.nonzero()[0])} of the batch has NaN or infinite values")
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return
    if x.abs().max() > 1 + 1e-3:
        worst = int(x.abs().flatten(1).amax(1).argmax())
        raise ValueError(
            f"images must be in [-1, 1]; sample {worst} of the batch spans {x[worst].min():g} to {x[worst].max():g}"
        )
    # One image may be bright all over, and one value throughout tells nothing of its scale.
    if len(x) > 1 and 0 <= x.min() < x.max():
        warnings.warn(
            "images must be in [-1, 1]; those of the batch are all in [0, 1]: scale with 2 * x - 1, unless they are "
            "so bright",
            stacklevel=2,
        )


def check_batches(batches: Iterable[Batch]) -> None:
    """Refuse what holds examples and gives no batches of them (raises TypeError)."""
    if isinstance(batches, Tensor) or not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        data = "Data.from_tensor(x)" if isinstance(batches, Tensor) else "data"
        raise TypeError(
            f"batches must be an iterable of batches, such as {data}.batches(64); got a {type(batches).__name__}"
        )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch, on the device; what of a mapping is no tensor stays as it is, but for tuples of tensors."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    raise TypeError(f"a batch must be a tensor, or a mapping with x and cond; got {type(batch).__name__}")


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):  # tokens and their mask
        return tuple(_moved(part, device) for part in value)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
