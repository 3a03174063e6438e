"""How sharp images are: the share of their power at high frequencies, and how much their Laplacian varies."""

import torch
from torch import Tensor

__all__ = ["high_frequency", "laplacian", "power_spectrum", "radius"]

ROWS = 512
"""Images that are transformed at once: in float64 a spectrum is four times the image."""


def power_spectrum(x: Tensor) -> Tensor:
    """|F[x - mean]|², summed over channels, of images x (B, C, H, W): (B, H, W) float64, F orthonormal.

    The mean is each channel's own, so the power at no frequency is 0, and Σ power is the sum of (x - mean)² (Parseval).
    The transform takes an image for one period: where opposite edges differ, that jump is in the spectrum, of real
    images as of samples. Raises ValueError for what are no images.
    """
    _check(x)
    x = x.double()
    centred = x - x.mean((-2, -1), keepdim=True)
    return torch.fft.fft2(centred, norm="ortho").abs().square().sum(1)


def radius(height: int, width: int) -> Tensor:
    """√(f_y² + f_x²) of each place of a spectrum over the Nyquist frequency of ½ per pixel: (H, W), in [0, √2]."""
    y, x = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    return 2 * (y[:, None].square() + x[None].square()).sqrt()


def high_frequency(x: Tensor) -> Tensor:
    """Share of the power of images x (B, C, H, W) beyond half of the Nyquist radius: (B,) in [0, 1], float64.

    The power is that of `power_spectrum`, summed over rings of the radius √(f_y² + f_x²); the corners beyond the
    Nyquist radius count. 0 of a constant image. N pixels of white noise, in each of C channels, have such frequencies
    at n of N - 1 places, and Gaussian noise a share ~ Beta(C n/2, C (N - 1 - n)/2). Blur lowers it.
    Spectra of generated images: Durall 2020, 2003.01826. Raises ValueError for what are no images.
    """
    _check(x)
    high = (radius(*x.shape[-2:]) > 0.5).to(x.device)
    shares = []
    for some in x.split(ROWS):
        power = power_spectrum(some)
        # What rounding leaves of a constant lies at no frequency, which is part of the total.
        total = power.sum((1, 2))
        shares.append((power * high).sum((1, 2)) / torch.where(total > 0, total, 1.0))
    return torch.cat(shares)


def laplacian(x: Tensor) -> Tensor:
    """Variance of the discrete Laplacian over inner pixels, the mean over channels: (B,) float64, in units of x².

    Δx is the sum of the four neighbours less four times the pixel; the variance is the mean square about the mean. 0 of
    constant, linear and quadratic images; about 20 σ² of white noise. As a measure of focus: Pech-Pacheco et al. 2000,
    "Diatom autofocusing in brightfield microscopy", ICPR. Raises ValueError for what are no images.
    """
    _check(x)
    found = []
    for some in x.split(ROWS):
        some = some.double()
        inner = some[..., 1:-1, 1:-1]
        around = some[..., :-2, 1:-1] + some[..., 2:, 1:-1] + some[..., 1:-1, :-2] + some[..., 1:-1, 2:]
        found.append((around - 4 * inner).var((-2, -1), correction=0).mean(1))
    return torch.cat(found)


def _check(x: Tensor) -> None:
    """Refuse what are no images (raises ValueError)."""
    if x.ndim != 4 or min(x.shape) < 1 or min(x.shape[-2:]) < 3:
        raise ValueError(f"x must be images (B, C, H, W) of at least 3 × 3 pixels; got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be images of real numbers, such as [-1, 1]; got {x.dtype}")
    bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        raise ValueError(f"x must be finite; image {int(bad.nonzero()[0])} has NaN or infinite pixels")
