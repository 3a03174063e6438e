"""Coverage of known modes by samples, and the predictions of a classifier of real digits."""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...data import Mixture
from ..measurements import variance_beyond

__all__ = ["WITHIN", "agreement", "coverage", "stacked_coverage"]

WITHIN = 3
"""A sample within so many σ of a mode is of high quality."""


def coverage(samples: Tensor, mixture: Mixture) -> dict[str, float]:
    """Return how samples (N, D) cover the modes of a mixture.

    modes: the number of modes with a sample within 3σ. high_quality: the share of samples within 3σ of a mode. kl:
    KL(histogram of the samples' nearest modes ‖ uniform) in nats, and kl_standard_error, its standard error.
    """
    index, distance = mixture.nearest(samples)
    good = distance < WITHIN
    kl, error = _kl(torch.bincount(index, minlength=len(mixture.means)))
    return {
        "modes": float(index[good].unique().numel()),
        "high_quality": good.double().mean().item(),
        "kl": kl,
        "kl_standard_error": error,
    }


def _kl(counts: Tensor) -> tuple[float, float]:
    """Return KL(histogram ‖ uniform) of counts (K,), in nats, and its standard error where modes have several counts.

    The variance is (Σ s log² Ks - KL²)/N for shares s, by the delta method; for a uniform histogram this is 0, and the
    second-order term (modes with a count - 1)/2N² remains, from χ²/2N (Miller 1955). See `variance_beyond`.
    """
    n, share = counts.sum().item(), counts.double() / counts.sum()
    logarithm = torch.where(share > 0, len(counts) * share, 1.0).log()
    kl = (share * logarithm).sum().item()
    plug_in = max((share * logarithm.square()).sum().item() - kl**2, 0.0) / n
    return kl, math.sqrt(variance_beyond(plug_in, (int((counts > 0).sum()) - 1) / (2 * n**2)))


@lru_cache(maxsize=2)
def _classifier(resolution: int) -> Any:
    """Train a small classifier of single digits; return it and its held-out accuracy."""
    from sklearn.neural_network import MLPClassifier

    from ...data import digits

    data = digits(resolution)
    assert data.x is not None and data.held_out is not None and data.held_out_labels is not None
    network = MLPClassifier((128,), alpha=1e-3, max_iter=200, random_state=0)
    network.fit(data.decode(data.x).flatten(1).numpy(), data.labels.numpy())  # type: ignore[union-attr]
    accuracy = network.score(data.decode(data.held_out).flatten(1).numpy(), data.held_out_labels.numpy())
    return network, accuracy


def _read(images: Tensor) -> tuple[Tensor, float]:
    """Return the class probabilities (N, 10) of images (N, H, W) by the classifier of real digits, and its accuracy."""
    network, accuracy = _classifier(images.shape[-1])
    return torch.as_tensor(network.predict_proba(images.flatten(1).cpu().double().numpy())), accuracy


def agreement(samples: Tensor, labels: Tensor | None = None) -> dict[str, float]:
    """Return statistics of the predictions of a classifier of real digits for samples (N, C, H, W).

    confidence: the mean largest probability. classes: how many of the ten are predicted. rarest_class_share: the
    share of the rarest class. classifier_accuracy: on held-out digits. With labels (N,) also label_agreement: the
    share of samples whose predicted class is their label.
    """
    probabilities, accuracy = _read(samples.mean(1))
    share = torch.bincount(probabilities.argmax(1), minlength=10).double() / len(samples)
    statistics = {}
    if labels is not None:
        statistics["label_agreement"] = (probabilities.argmax(1) == labels.cpu()).double().mean().item()
    return statistics | {
        "confidence": probabilities.max(1).values.mean().item(),
        "classes": float((share > 0).sum()),
        "rarest_class_share": share.min().item(),
        "classifier_accuracy": accuracy,
    }


def stacked_coverage(samples: Tensor) -> dict[str, float]:
    """Return how stacked digits (N, 3, H, W) cover their 1000 modes, each channel classified as a digit.

    modes: the number of modes with a sample. kl: KL(histogram of modes ‖ uniform) in nats. kl_standard_error: its
    standard error. kl_floor: 999/2N, its expectation for N exact samples (χ² of 999 degrees of freedom over 2N).
    confidence: the mean largest probability. classifier_accuracy: on held-out single digits; its errors count in modes
    and kl. Metz 2016, 1611.02163. Raises ValueError for another number of channels than three.
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
