"""A batch: examples x, and what they are conditioned on."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from components.conditions import drop

__all__ = [
    "Batch",
    "as_batch",
    "check_batch",
    "check_batches",
    "check_scale",
    "classes_of",
    "complaint",
    "in_range",
    "spans",
    "to_device",
    "unpack",
]

Batch = Tensor | Mapping[str, Tensor]

EDGE = 1 + 1e-3
"""Largest absolute value of an image: decoding and resizing round."""


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


def check_batch(batch: Batch, classes: int | None = None) -> None:
    """Refuse what no model expects; warn of images in [0, 1].

    Arguments:
        batch: x (B, *event), or a mapping with x.
        classes: the K of labels in 0..K-1; None: any label passes.
    Raises:
        ValueError: integers, NaN, infinities, images ((B, 1, H, W) and (B, 3, H, W)) that leave [-1, 1], labels that
            leave 0..K-1; with the sample's index.
        TypeError: x is no tensor.
    """
    x = _x_of(batch)
    bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        raise ValueError(f"x must be finite; sample {int(bad.nonzero()[0])} of the batch has NaN or infinite values")
    labels = _labels_of(batch, classes)
    if labels is not None and classes is not None and ((labels < 0) | (labels >= classes)).any():
        worst = int(((labels < 0) | (labels >= classes)).nonzero()[0])
        raise ValueError(
            f"labels must be in 0..{classes - 1}, since the networks have num_classes={classes}; sample {worst} of the "
            f"batch has {int(labels[worst])}"
        )
    if not _is_image(x):
        return
    if x.abs().max() > EDGE:
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


def spans(batch: Batch, classes: int | None = None) -> tuple[Sequence[Tensor], bool]:
    """Return the smallest and largest value of x, then of its labels, each (); and whether x is images.

    One pass over the data, without a wait for its device; `in_range` judges what it returns.
    """
    x, labels = _x_of(batch), _labels_of(batch, classes)
    return x.aminmax() if labels is None else (*x.aminmax(), *labels.aminmax()), _is_image(x)


def in_range(extremes: Sequence[Any], image: bool, classes: int | None) -> Any:
    """Return whether the `spans` of a batch, tensors or numbers, are what `check_batch` lets pass."""
    highest = EDGE if image else torch.finfo(torch.float32).max
    # NaN is in no range.
    inside = (extremes[0] >= -highest) & (extremes[1] <= highest)
    if len(extremes) == 4 and classes is not None:
        inside = inside & (extremes[2] >= 0) & (extremes[3] < classes)
    return inside


def complaint(extremes: Sequence[Tensor], image: bool, classes: int | None) -> str | None:
    """Return what is wrong with the `spans` of a batch, or None. It reads them, and so waits for the device."""
    if in_range(extremes, image, classes):
        return None
    low, high, *labels = [value.item() for value in extremes]
    named = f" and its labels {labels[0]} to {labels[1]}" if labels else ""
    expected = "images in [-1, 1]" if image else "finite values"
    expected += f" and labels below num_classes={classes}" if labels else ""
    return f"x of a batch spans {low:g} to {high:g}{named}; expected {expected}"


def classes_of(modules: Iterable[nn.Module]) -> int | None:
    """Return the largest `num_classes` of some modules, or None; 0 and 1, as timm's networks have, count for none."""
    numbers = [getattr(module, "num_classes", None) for module in modules]
    return max((n for n in numbers if isinstance(n, int) and n > 1), default=None)


def _x_of(batch: Batch) -> Tensor:
    """Return x of a batch, whose form alone is looked at (raises ValueError, TypeError)."""
    x = batch if isinstance(batch, Tensor) else batch.get("x")
    if x is None:
        raise ValueError(f"a batch that is a mapping must have x; got {sorted(batch)}")
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor (B, *event); got a {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, images in [-1, 1]; got {x.dtype}: scale with x / 127.5 - 1")
    if not x.numel():
        raise ValueError(f"a batch must hold an example at least; got shape {tuple(x.shape)}")
    return x


def _labels_of(batch: Batch, classes: int | None) -> Tensor | None:
    """Return the labels (B,) of a batch, where there are some and networks that take them."""
    cond = None if classes is None or isinstance(batch, Tensor) else batch.get("cond")
    return cond if isinstance(cond, Tensor) and cond.ndim == 1 and cond.dtype == torch.int64 else None


def _is_image(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[1] in (1, 3)


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
