"""Sharpness of images: the share of their power at high frequencies, and the variance of their Laplacian."""

import torch
from torch import Tensor

__all__ = ["high_frequency", "laplacian", "power_spectrum", "radius"]

ROWS = 512
"""Images that are transformed at once: a spectrum in float64 takes four times the memory of the image."""


def power_spectrum(x: Tensor) -> Tensor:
    """Return |F[x - mean]|², summed over channels, of images x (B, C, H, W): (B, H, W) float64, F orthonormal.

    The mean is that of each channel, so the power at frequency 0 is 0, and Σ power is the sum of (x - mean)²
    (Parseval). The transform treats an image as one period: where opposite edges differ, the jump is in the spectrum,
    of real images and samples alike. Raises ValueError for x that is not (B, C, H, W), at least 3 × 3, or not finite.
    """
    _check(x)
    x = x.double()
    centred = x - x.mean((-2, -1), keepdim=True)
    return torch.fft.fft2(centred, norm="ortho").abs().square().sum(1)


def radius(height: int, width: int) -> Tensor:
    """Return √(f_y² + f_x²) of each entry of a spectrum over the Nyquist frequency ½ per pixel: (H, W) in [0, √2]."""
    y, x = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    return 2 * (y[:, None].square() + x[None].square()).sqrt()


def high_frequency(x: Tensor) -> Tensor:
    """Return the share of the power of images x (B, C, H, W) beyond half the Nyquist radius: (B,) in [0, 1], float64.

    The power is `power_spectrum`, the radius √(f_y² + f_x²); the corners beyond the Nyquist radius are included. The
    share is 0 for a constant image, and Beta(C n/2, C (N - 1 - n)/2) for Gaussian white noise of N pixels and C
    channels, n of the N - 1 frequencies being high. Blur lowers it.
    Spectra of generated images: Durall 2020, 2003.01826. Raises ValueError as `power_spectrum`.
    """
    _check(x)
    high = (radius(*x.shape[-2:]) > 0.5).to(x.device)
    shares = []
    for some in x.split(ROWS):
        power = power_spectrum(some)
        # For a constant image rounding leaves power at frequency 0 only, which is in the total and not in the share.
        total = power.sum((1, 2))
        shares.append((power * high).sum((1, 2)) / torch.where(total > 0, total, 1.0))
    return torch.cat(shares)


def laplacian(x: Tensor) -> Tensor:
    """Return the variance of the discrete Laplacian over inner pixels, averaged over channels: (B,) float64, units x².

    Δx is the sum of the four neighbours less four times the pixel; the variance is the mean square about the mean: 0
    for constant, linear and quadratic images, about 20 σ² for white noise. As a measure of focus: Pech-Pacheco et al.
    2000, "Diatom autofocusing in brightfield microscopy", ICPR. Raises ValueError as `power_spectrum`.
    """
    _check(x)
    variances = []
    for some in x.split(ROWS):
        some = some.double()
        inner = some[..., 1:-1, 1:-1]
        around = some[..., :-2, 1:-1] + some[..., 2:, 1:-1] + some[..., 1:-1, :-2] + some[..., 1:-1, 2:]
        variances.append((around - 4 * inner).var((-2, -1), correction=0).mean(1))
    return torch.cat(variances)


def _check(x: Tensor) -> None:
    """Raise ValueError unless x is (B, C, H, W), at least 3 × 3 pixels, of finite real numbers."""
    if x.ndim != 4 or min(x.shape) < 1 or min(x.shape[-2:]) < 3:
        raise ValueError(f"x must be images (B, C, H, W) of at least 3 × 3 pixels; got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be images of floating-point numbers, as in [-1, 1]; got {x.dtype}")
    bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        raise ValueError(f"x must be finite; image {int(bad.nonzero()[0])} has NaN or infinite pixels")
