"""Feature spaces in which distances between examples are measured: x (B, *event) → (B, d)."""

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
"""Short names of timm's models in `features_for`."""


class Features(Protocol):
    """A map of examples into the space in which distances are measured, with a name."""

    name: str

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features (B, d) of x (B, *event)."""
        ...


class Pixels:
    """The pixels of x, flattened; beyond `limit` dimensions, a fixed Gaussian projection onto `limit` dimensions.

    The projection preserves squared distances in expectation, with a relative standard deviation of about √(2/limit)
    (Johnson & Lindenstrauss 1984): 6% at 512. Points (N, D) are returned as they are.
    Arguments:
        shape: of one example.
        limit: largest d without projection.
    """

    def __init__(self, shape: tuple[int, ...], limit: int = 512) -> None:
        self.shape, d = tuple(shape), math.prod(shape)
        self.name = "points" if len(shape) == 1 else "pixels"
        self.projection = None
        if d > limit:
            self.name += f", of which {limit} random projections"
            self.projection = torch.randn(d, limit, generator=torch.Generator().manual_seed(0)) / math.sqrt(limit)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features (B, d) of x. Raises ValueError for x that is not (B, *shape)."""
        _check_shape(x, self.shape)
        x = x.flatten(1).float()
        return x if self.projection is None else x @ self.projection.to(x.device)


class Classifier:
    """The last hidden layer of a small classifier, trained on the labels of a data set's training examples.

    Digits have the classifier of `agreement`; stacked digits have it for each channel, the features being concatenated;
    other images have three convolutions (images being resized to at most 64 pixels a side), points a perceptron. It is
    trained once, and cached in memory and, where `cache` is given, in that folder.

    Attributes:
        name: for reports.
        accuracy: on held-out examples, or on a tenth of the training examples that is left out of training.
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
        """Return the features (B, d) of x. Raises ValueError for x that is not (B, *shape)."""
        _check_shape(x, self.shape)
        if not self.digits:
            return torch.cat([self.network[:-1](part) for part in x.float().cpu().split(512)])
        pictures = x.float().cpu()
        if self.shape[0] != 3 or self.name != "classifier of stacked-digits":
            pictures = pictures.mean(1, keepdim=True)
        return self.network[:-1](pictures.flatten(0, 1)).reshape(len(x), -1)

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """Return the most likely class of each x: (B,), or (B, 3) for stacked digits."""
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
    # Pooled to 4 × 4, not to one value: where its edges are tells a shape from another.
    layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128 * 16, 128), nn.ReLU(), nn.Linear(128, classes)]
    return nn.Sequential(*layers)


class _AtMost(nn.Module):
    """Resize images whose larger side exceeds `side` to that size, antialiased."""

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
    """Copy the classifier of `agreement` into a torch network; return it and its accuracy."""
    from .recognition import _classifier

    fitted, accuracy = _classifier(resolution)
    linear: list[nn.Linear] = [layer for layer in network if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, weight, bias in zip(linear, fitted.coefs_, fitted.intercepts_):
            layer.weight.copy_(torch.as_tensor(weight.T))
            layer.bias.copy_(torch.as_tensor(bias))
    return network.eval().requires_grad_(False), float(accuracy)


def _fit(network: nn.Sequential, data: Data, passes: int = 6, batch_size: int = 100) -> tuple[nn.Sequential, float]:
    """Train a network on labels by AdamW with a cosine schedule; return it and its held-out accuracy."""
    assert data.x is not None and data.labels is not None
    x, y, held_x, held_y = data.x, data.labels, data.held_out, data.held_out_labels
    if held_x is None or held_y is None:
        order = torch.randperm(len(x))
        n = max(1, len(x) // 10)
        held_x, held_y, x, y = x[order[:n]], y[order[:n]], x[order[n:]], y[order[n:]]
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
    correct = [network(data.decode(a)).argmax(1) == b for a, b in zip(held_x.split(512), held_y.split(512))]
    return network, torch.cat(correct).double().mean().item()


def _load(path: Path | None, network: nn.Sequential) -> tuple[nn.Sequential, float] | None:
    """Return the classifier that `_save` wrote; None where the file is missing, damaged, or of another network."""
    if path is None or not path.is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
        accuracy = stored.pop("accuracy").item()
        network.load_state_dict(stored)
    except (OSError, RuntimeError, KeyError, SafetensorError):
        path.unlink(missing_ok=True)
        return None
    return network.eval().requires_grad_(False), accuracy


def _save(path: Path, network: nn.Sequential, accuracy: float) -> None:
    from safetensors.torch import save_file

    stored = {**network.state_dict(), "accuracy": torch.tensor(accuracy, dtype=torch.float64)}
    write_whole(path, lambda temporary: save_file(stored, temporary))


def fingerprint(data: Data, examples: int = 4096) -> str:
    """Return a digest that identifies a data set: of name, shape, size, and up to `examples` examples and labels."""
    digest = hashlib.sha256(repr((data.card(), len(data))).encode())
    for part in (data.x, data.labels):
        if part is not None:
            digest.update(part[:: max(1, len(part) // examples)].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class TimmSpace:
    """The pooled features of a timm model: images (B, C, H, W) in [-1, 1] → (B, d), for the Fréchet distance of papers.

    Distances in DINOv2 agree better with human judgement than those in Inception: Stein 2023, 2306.04675. Images are
    resized to `size` bicubically; grey ones are repeated to three channels.
    Arguments:
        name, pretrained, size: as in `timm_features`.
        rows: images in one forward pass.
    """

    def __init__(self, name: str, pretrained: bool | str = True, size: int = 224, rows: int = 32) -> None:
        model = SHORT.get(name, name)
        options = {"img_size": size} if "vit_" in model else {}
        try:
            # Only the backbone is used; the head has one output.
            self.backbone = TimmEncoder(model, 1, pretrained, frozen=True, **options).backbone.eval()
        except RuntimeError as error:
            raise ValueError(
                f"features {name!r} cannot be loaded: {error} Or use features 'auto', which need no weights"
            ) from error
        self.name, self.size, self.rows = f"{model} (timm)", size, rows

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the features (B, d) of x. Raises ValueError for x that is not (B, 1 or 3, H, W)."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"x must be images (B, 1 or 3, H, W) for {self.name}; got shape {tuple(x.shape)}")
        self.backbone.to(x.device)
        features = []
        for part in x.float().split(self.rows):
            part = part.expand(-1, 3, -1, -1)
            part = F.interpolate(part, size=(self.size,) * 2, mode="bicubic", align_corners=False, antialias=True)
            features.append(self.backbone(part.clamp(-1, 1)))
        return torch.cat(features)


def timm_features(name: str, pretrained: bool | str = True, size: int | None = None) -> TimmSpace:
    """Return the `TimmSpace` of "dinov2", "inception" or any model name of timm's.

    Arguments:
        pretrained: as in `components.encoders.TimmEncoder`: True, or a file of weights.
        size: of the resized images; None: 299 for Inception, else 224.
    Raises ValueError, with the remedy, for an unknown name, and where the weights cannot be loaded.
    """
    return TimmSpace(name, pretrained, size or (299 if "inception" in name else 224))


def features_for(data: Data, name: str = "auto", cache: str | os.PathLike[str] | None = None) -> Features:
    """Return a feature space for data by name: classifier, pixels, dinov2, inception, timm:MODEL or auto.

    auto is the classifier for labelled images, else pixels.
    Arguments:
        cache: folder in which a trained classifier is stored.
    Raises ValueError for another name.
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
