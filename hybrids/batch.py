"""A batch: examples x, and what they are conditioned on."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from components.conditions import drop

__all__ = ["Batch", "as_batch", "check_batch", "check_batches", "check_labels", "check_scale", "to_device", "unpack"]

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


def as_batch(given: Any) -> Batch:
    """Return a tensor x or a mapping as it is, and the (x,) or (x, cond) of torch's `TensorDataset` as one of these."""
    if isinstance(given, list | tuple) and len(given) in (1, 2) and all(isinstance(part, Tensor) for part in given):
        return given[0] if len(given) == 1 else {"x": given[0], "cond": given[1]}
    if not isinstance(given, Tensor | Mapping):
        got = type(given).__name__ + (f" of {len(given)}" if isinstance(given, list | tuple) else "")
        raise TypeError(f"a batch must be a tensor x, a mapping with x and cond, or a pair (x, cond); got {got}")
    return given


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


def check_scale(batch: Batch) -> None:
    """Warn of vectors (B, D) with a dimension whose root mean square is above 10: networks expect about 1."""
    x, _ = unpack(batch)
    if x.ndim == 2 and (largest := x.float().square().mean(0).sqrt().max().item()) > 10:
        warnings.warn(
            f"vectors should have about mean 0 and variance 1; a dimension of the batch has root mean square "
            f"{largest:.3g}: use Data.standardized(), whose to_data maps samples back",
            stacklevel=2,
        )


def check_labels(batch: Batch, classes: int | None, wait: bool = True) -> None:
    """Refuse labels (B,) that are not in 0 … classes - 1; what is no tensor of labels passes.

    The label `classes` itself is the null class, which `components.conditions.drop` gives within a loss.

    Arguments:
        classes: of the network; None where it takes no labels.
        wait: whether to look at labels that lie on a GPU, which waits for it.
    Raises:
        ValueError: a label is out of range.
    """
    cond = None if isinstance(batch, Tensor) else batch.get("cond")
    if classes is None or not isinstance(cond, Tensor) or cond.dtype != torch.int64 or cond.ndim != 1 or not len(cond):
        return
    if cond.device.type != "cpu" and not wait:
        return
    low, high = int(cond.min()), int(cond.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"cond must be labels in 0 … {classes - 1}, of a network with {classes} classes; the batch has {low} … "
            f"{high}: count from 0, or build the network with more classes"
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
    return {key: _moved(value, device) for key, value in batch.items()}


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):  # tokens and their mask
        return tuple(_moved(part, device) for part in value)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
