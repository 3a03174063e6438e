"""What samples look like to somebody who knows the data: modes found, and what a classifier of real digits sees."""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...data import Mixture
from ..figures import variance_beyond

__all__ = ["agreement", "coverage", "stacked_coverage"]


def coverage(samples: Tensor, mixture: Mixture) -> dict[str, float]:
    """How samples (N, D) lie among the modes of a mixture.

    modes: those with a sample within 3σ; high_quality: the share of such samples; kl: KL(found ‖ true) in nats of the
    histogram over nearest modes; kl_standard_error: what it varies by from N samples to others.
    """
    index, distance = mixture.nearest(samples)
    good = distance < 3
    kl, error = _kl(torch.bincount(index, minlength=len(mixture.means)))
    return {
        "modes": float(index[good].unique().numel()),
        "high_quality": good.double().mean().item(),
        "kl": kl,
        "kl_standard_error": error,
    }


def _kl(counts: Tensor) -> tuple[float, float]:
    """KL(histogram ‖ even) in nats of counts (K,), and its standard error where they are several to a mode.

    By the delta method, (Σ s log² Ks - KL²)/N for shares s; of an even histogram what is left is of second order,
    (modes that are met - 1)/2N², from χ²/2N (Miller 1955). See `variance_beyond`.
    """
    n, share = counts.sum().item(), counts.double() / counts.sum()
    logarithm = torch.where(share > 0, len(counts) * share, 1.0).log()
    kl = (share * logarithm).sum().item()
    plug_in = max((share * logarithm.square()).sum().item() - kl**2, 0.0) / n
    return kl, math.sqrt(variance_beyond(plug_in, (int((counts > 0).sum()) - 1) / (2 * n**2)))


@lru_cache(maxsize=2)
def _classifier(resolution: int) -> Any:
    """A small network that reads single digits, and its accuracy on held-out ones."""
    from sklearn.neural_network import MLPClassifier

    from ...data import digits

    data = digits(resolution)
    assert data.x is not None and data.held_out is not None and data.held_out_labels is not None
    network = MLPClassifier((128,), alpha=1e-3, max_iter=200, random_state=0)
    network.fit(data.decode(data.x).flatten(1).numpy(), data.labels.numpy())  # type: ignore[union-attr]
    accuracy = network.score(data.decode(data.held_out).flatten(1).numpy(), data.held_out_labels.numpy())
    return network, accuracy


def _read(images: Tensor) -> tuple[Tensor, float]:
    """The probabilities (N, 10) that a classifier of real digits gives images (N, H, W), and its held-out accuracy."""
    network, accuracy = _classifier(images.shape[-1])
    return torch.as_tensor(network.predict_proba(images.flatten(1).cpu().double().numpy())), accuracy


def agreement(samples: Tensor, labels: Tensor | None = None) -> dict[str, float]:
    """What a classifier of real digits sees in samples (N, C, H, W): its mean confidence (largest probability), how
    many of the ten classes appear, the share of the rarest, and the classifier's own held-out accuracy.

    With labels (N,) also label_agreement, the share of samples that it reads as their label.
    """
    probabilities, accuracy = _read(samples.mean(1))
    share = torch.bincount(probabilities.argmax(1), minlength=10).double() / len(samples)
    found = {}
    if labels is not None:
        found["label_agreement"] = (probabilities.argmax(1) == labels.cpu()).double().mean().item()
    return found | {
        "confidence": probabilities.max(1).values.mean().item(),
        "classes": float((share > 0).sum()),
        "rarest_class_share": share.min().item(),
        "classifier_accuracy": accuracy,
    }


def stacked_coverage(samples: Tensor) -> dict[str, float]:
    """How stacked digits (N, 3, H, W) lie among their 1000 modes, each channel read by a classifier of real digits.

    modes: those seen at all; kl: KL(seen ‖ uniform) in nats of their histogram; kl_standard_error: what it varies by
    from N samples to others; kl_floor: 999/2N, about what N exact
    samples show (χ² of 999 degrees of freedom over 2N); confidence: the mean of the largest probability; and the
    classifier's own accuracy on held-out single digits. What it misreads counts as found, or as missed.
    Metz 2016, 1611.02163. Raises ValueError for another number of channels than three.
    """
    if samples.ndim != 4 or samples.shape[1] != 3:
        raise ValueError(f"samples must be (N, 3, H, W); got shape {tuple(samples.shape)}")
    probabilities, accuracy = _read(samples.flatten(0, 1))
    confidence, digit = probabilities.max(1)
    mode = (digit.view(-1, 3) * torch.tensor([100, 10, 1])).sum(1)
    counts = torch.bincount(mode, minlength=1000)
    kl, error = _kl(counts)
    return {
        "modes": float((counts > 0).sum()),
        "kl": kl,
        "kl_standard_error": error,
        "kl_floor": 999 / (2 * len(samples)),
        "confidence": confidence.mean().item(),
        "classifier_accuracy": accuracy,
    }
