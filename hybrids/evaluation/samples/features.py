"""Feature spaces, in which distances between images say more than between pixels: x (B, *event) → (B, d)."""

import hashlib
import math
import os
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.encoders import TimmEncoder

from ...data import Data
from ...files import write_whole
from ...modes import own_random_numbers

__all__ = ["Classifier", "Features", "Pixels", "TimmSpace", "features_for", "fingerprint", "timm_features"]

SHORT = {"dinov2": "vit_small_patch14_dinov2.lvd142m", "inception": "inception_v3.tv_in1k"}
"""Names of timm's models that `features_for` knows by a shorter one."""


class Features(Protocol):
    """A map into a space whose distances are looked at, and what to call it."""

    name: str

    def __call__(self, x: Tensor) -> Tensor:
        """(B, d) of x (B, *event)."""
        ...


class Pixels:
    """x itself, flattened; where it has more than `limit` dimensions, a fixed Gaussian projection onto so many.

    The projection keeps squared distances in expectation, each within about √(2/limit) of itself (Johnson &
    Lindenstrauss 1984): 6% at 512. Points (N, D) stay what they are.
    Argument: shape, of one example.
    """

    def __init__(self, shape: tuple[int, ...], limit: int = 512) -> None:
        self.shape, d = tuple(shape), math.prod(shape)
        self.name = "points" if len(shape) == 1 else "pixels"
        self.projection = None
        if d > limit:
            self.name += f", of which {limit} random projections"
            self.projection = torch.randn(d, limit, generator=torch.Generator().manual_seed(0)) / math.sqrt(limit)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, d): raises ValueError for x not (B, *shape)."""
        _check_shape(x, self.shape)
        x = x.flatten(1).float()
        return x if self.projection is None else x @ self.projection.to(x.device)


class Classifier:
    """The last hidden layer of a small network that was trained to tell the labels of a data set's training examples.

    Digits are read by the network that `agreement` asks, and stacked digits by the same, channel by channel, side by
    side; other images by three convolutions (the largest side brought to 64 at most), points by a perceptron. Trained
    once: kept in memory, and in `cache`, a folder, where one is given.

    Attributes: name; accuracy, on held-out examples (or a tenth kept apart), which says how far to trust it.
    Raises ValueError for data without labels or examples.
    """

    def __init__(self, data: Data, cache: str | os.PathLike[str] | None = None) -> None:
        self.shape, self.name = tuple(data.shape), f"classifier of {data.name}"
        self.digits = data.name in ("digits", "stacked-digits") and data.is_image
        if not self.digits and (data.labels is None or data.x is None or data.classes < 2):
            raise ValueError(
                f"features 'classifier' need labelled examples in memory; {data.name} has none: use pixels"
            )
        key = f"digits-{data.shape[-1]}" if self.digits else fingerprint(data)
        path = None if cache is None else Path(cache) / f"classifier-{key}.safetensors"
        if key not in _TRAINED:
            with own_random_numbers(seed=0):
                _TRAINED[key] = _load(path, self._network(data)) or self._trained(data)
        self.network, self.accuracy = _TRAINED[key]
        if path is not None and not path.is_file():
            _save(path, self.network, self.accuracy)

    def _network(self, data: Data) -> nn.Sequential:
        if self.digits:
            return _perceptron(data.shape[-1] * data.shape[-2], 10)
        return _convolutions(data.shape, data.classes) if data.is_image else _perceptron(data.dimensions, data.classes)

    def _trained(self, data: Data) -> tuple[nn.Sequential, float]:
        if self.digits:
            return _of_digits(data.shape[-1], self._network(data))
        torch.manual_seed(0)
        return _fit(self._network(data), data)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """(B, d): raises ValueError for x not (B, *shape)."""
        _check_shape(x, self.shape)
        if not self.digits:
            return torch.cat([self.network[:-1](part) for part in x.float().cpu().split(512)])
        pictures = x.float().cpu()
        if self.shape[0] != 3 or self.name != "classifier of stacked-digits":
            pictures = pictures.mean(1, keepdim=True)
        return self.network[:-1](pictures.flatten(0, 1)).reshape(len(x), -1)

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """The label that it finds most likely, of the network's own classes: (B,), or (B, 3) of stacked digits."""
        parts = self(x)
        if self.name == "classifier of stacked-digits":
            parts = parts.reshape(len(x), self.shape[0], -1)
        return self.network[-1](parts).argmax(-1)


_TRAINED: dict[str, tuple[nn.Sequential, float]] = {}


def _perceptron(d: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(d, 128), nn.ReLU(), nn.Linear(128, classes))


def _convolutions(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    layers: list[nn.Module] = [_AtMost(64)]
    for before, after in ((shape[0], 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.ReLU()]
    # 4 × 4 places: what a shape is lies in where its edges are, which a mean over all places would lose.
    layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128 * 16, 128), nn.ReLU(), nn.Linear(128, classes)]
    return nn.Sequential(*layers)


class _AtMost(nn.Module):
    """Images with their larger side brought down to `side`, antialiased; smaller ones as they are."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        if max(x.shape[-2:]) <= self.side:
            return x
        scale = self.side / max(x.shape[-2:])
        size = [max(1, round(side * scale)) for side in x.shape[-2:]]
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


def _of_digits(resolution: int, network: nn.Sequential) -> tuple[nn.Sequential, float]:
    """The perceptron that reads digits for `agreement`, its weights in one of torch."""
    from .recognition import _classifier

    fitted, accuracy = _classifier(resolution)
    linear: list[nn.Linear] = [layer for layer in network if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, weight, bias in zip(linear, fitted.coefs_, fitted.intercepts_):
            layer.weight.copy_(torch.as_tensor(weight.T))
            layer.bias.copy_(torch.as_tensor(bias))
    return network.eval().requires_grad_(False), float(accuracy)


def _fit(network: nn.Sequential, data: Data, passes: int = 6, batch_size: int = 100) -> tuple[nn.Sequential, float]:
    """Train on labels by AdamW under one cosine, and the accuracy on what was held out."""
    assert data.x is not None and data.labels is not None
    x, y, held_x, held_y = data.x, data.labels, data.held_out, data.held_out_labels
    if held_x is None or held_y is None:
        apart = torch.randperm(len(x))
        many = max(1, len(x) // 10)
        held_x, held_y, x, y = x[apart[:many]], y[apart[:many]], x[apart[many:]], y[apart[many:]]
    held_x, held_y = held_x[:5000], held_y[:5000]
    steps = max(600, min(passes * len(x) // batch_size, 2000))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randint(len(x), (min(batch_size, len(x)),))
        loss = F.cross_entropy(network(data.decode(x[index])), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)
    right = [network(data.decode(a)).argmax(1) == b for a, b in zip(held_x.split(512), held_y.split(512))]
    return network, torch.cat(right).double().mean().item()


def _load(path: Path | None, network: nn.Sequential) -> tuple[nn.Sequential, float] | None:
    """A classifier as `_save` kept it; None where there is none, or another's, or a damaged one."""
    if path is None or not path.is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        kept = load_file(path)
        accuracy = kept.pop("accuracy").item()
        network.load_state_dict(kept)
    except (OSError, RuntimeError, KeyError, SafetensorError):
        path.unlink(missing_ok=True)
        return None
    return network.eval().requires_grad_(False), accuracy


def _save(path: Path, network: nn.Sequential, accuracy: float) -> None:
    from safetensors.torch import save_file

    kept = {**network.state_dict(), "accuracy": torch.tensor(accuracy, dtype=torch.float64)}
    write_whole(path, lambda temporary: save_file(kept, temporary))


def fingerprint(data: Data, examples: int = 4096) -> str:
    """What tells a data set from another: of name, shape, size, and so many examples and labels at most."""
    digest = hashlib.sha256(repr((data.card(), len(data))).encode())
    for part in (data.x, data.labels):
        if part is not None:
            digest.update(part[:: max(1, len(part) // examples)].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class TimmSpace:
    """What a timm model says of images, pooled: (B, C, H, W) in [-1, 1] → (B, d), for the Fréchet distances of papers.

    DINOv2 judges pictures more as people do than Inception: Stein 2023, 2306.04675. Images are brought to `size`,
    bicubically, and shown in three channels. Arguments: as `timm_features`.
    """

    def __init__(self, name: str, pretrained: bool | str = True, size: int = 224, rows: int = 32) -> None:
        model = SHORT.get(name, name)
        options = {"img_size": size} if "vit_" in model else {}
        try:
            # Its last layer is not asked.
            self.backbone = TimmEncoder(model, 1, pretrained, frozen=True, **options).backbone.eval()
        except RuntimeError as error:
            raise ValueError(
                f"features {name!r} cannot be had: {error} Or measure in features 'auto', which need no weights"
            ) from error
        self.name, self.size, self.rows = f"{model} (timm)", size, rows

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """(B, d): raises ValueError for x not (B, 1 or 3, H, W)."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"x must be images (B, 1 or 3, H, W) for {self.name}; got shape {tuple(x.shape)}")
        self.backbone.to(x.device)
        found = []
        for part in x.float().split(self.rows):
            part = part.expand(-1, 3, -1, -1)
            part = F.interpolate(part, size=(self.size,) * 2, mode="bicubic", align_corners=False, antialias=True)
            found.append(self.backbone(part.clamp(-1, 1)))
        return torch.cat(found)


def timm_features(name: str, pretrained: bool | str = True, size: int | None = None) -> TimmSpace:
    """`TimmSpace` of "dinov2", "inception" or any name of timm's, with its weights, or those of a file.

    Arguments: pretrained, as in `components.encoders.TimmEncoder`; size, of the images it sees: 299 for Inception, else
    224. Raises ValueError where the name is unknown, or the weights cannot be had, with the remedy.
    """
    return TimmSpace(name, pretrained, size or (299 if "inception" in name else 224))


def features_for(data: Data, name: str = "auto", cache: str | os.PathLike[str] | None = None) -> Features:
    """The feature space of a name for data: "classifier", "pixels", "dinov2", "inception", "timm:MODEL" or "auto".

    auto: the classifier where there are labels to train one on, else pixels; points are always what they are.
    Argument: cache, the folder where a classifier is kept. Raises ValueError for another name.
    """
    if name == "auto":
        labelled = data.is_image and data.classes > 1 and data.x is not None and data.labels is not None
        name = "classifier" if labelled else "pixels"
    if name == "classifier":
        return Classifier(data, cache)
    if name == "pixels":
        return Pixels(data.shape)
    if name in SHORT or name.startswith("timm:"):
        return timm_features(name.removeprefix("timm:"))
    known = ", ".join(("auto", "classifier", "pixels", *SHORT, "timm:MODEL"))
    raise ValueError(f"features must be one of {known}; got {name!r}")


def _check_shape(x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"x must be {('B', *shape)}; got shape {tuple(x.shape)}")
