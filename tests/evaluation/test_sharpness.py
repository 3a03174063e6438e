import math

import pytest
import torch

from hybrids.evaluation.samples.sharpness import high_frequency, laplacian, power_spectrum, radius


def noise(n, channels=1, height=16, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, height, width, generator=generator, dtype=torch.float64)


def wave(cycles_y, cycles_x, side=16, channels=1):
    """One cosine of so many cycles an image: (1, C, side, side)."""
    place = torch.arange(side, dtype=torch.float64) * 2 * math.pi / side
    return (cycles_y * place[:, None] + cycles_x * place).cos().expand(1, channels, side, side)


def standard_errors(values, expected):
    """How many standard errors of its mean lie between it and what is expected."""
    return abs((values.mean() - expected) / (values.std() / math.sqrt(len(values))))


def blurred(x, kernel):
    """Circular convolution with a kernel, and its |H|²."""
    padded = torch.zeros(x.shape[-2:], dtype=torch.float64)
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    transfer = torch.fft.fft2(padded)
    return torch.fft.ifft2(torch.fft.fft2(x) * transfer).real, transfer.abs().square()


def gaussian(std, size=9):
    place = torch.arange(size, dtype=torch.float64) - size // 2
    one = (-0.5 * (place / std).square()).exp()
    return (one[:, None] * one) / one.sum() ** 2


def test_power_is_the_sum_of_squares_about_the_mean():
    """Parseval, to float64's rounding, and nothing at frequency 0."""
    x = 3 + noise(5, 3, 8, 12)
    power = power_spectrum(x)
    wanted = (x - x.mean((2, 3), keepdim=True)).square().sum((1, 2, 3))
    assert torch.allclose(power.sum((1, 2)), wanted, rtol=1e-12)
    assert (power[:, 0, 0] < 1e-20).all()


@pytest.mark.parametrize("side", [8, 9, 16])
def test_the_radius_is_one_at_the_nyquist_frequency(side):
    """N cycles in N pixels are two Nyquists: k cycles are 2k/N."""
    found = radius(side, 12)
    assert found[0, 0] == 0 and found[0, 6] == 1
    assert found[2, 3].item() == pytest.approx(math.hypot(2 * 2 / side, 2 * 3 / 12), rel=1e-12)


@pytest.mark.parametrize("channels,height,width", [(1, 16, 16), (3, 8, 12)])
def test_white_noise_has_a_beta_share(channels, height, width):
    """The direction of Gaussian noise is even on the sphere: a share of C n of its C (N - 1) coordinates."""
    x = noise(3000, channels, height, width)
    n, total = int((radius(height, width) > 0.5).sum()), height * width - 1
    a, b = channels * n / 2, channels * (total - n) / 2
    share = high_frequency(x)
    assert standard_errors(share, n / total) < 4
    # The sample variance of near-Gaussian shares has a relative standard error of √(2/3000).
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    assert abs(share.var().item() / variance - 1) < 4 * math.sqrt(2 / 3000)


def test_the_ring_of_eight_by_eight_counted_by_hand():
    """In quarters of Nyquist, frequencies are 0, ±1, ±2, ±3, 4 each way; within radius 2: 0, 4, 4, 4 places = 13."""
    assert int((radius(8, 8) <= 0.5).sum()) == 13


@pytest.mark.parametrize("cycles,share", [((0, 3), 0.0), ((0, 4), 0.0), ((0, 5), 1.0), ((3, 3), 1.0), ((2, 3), 0.0)])
def test_a_wave_is_all_in_or_all_out(cycles, share):
    """Of 16 pixels, Nyquist is 8 cycles: those within a radius of 4 are low, the ring itself included."""
    assert high_frequency(wave(*cycles, channels=2)).item() == pytest.approx(share, abs=1e-12)


def test_two_waves_share_as_the_squares_of_their_heights():
    assert high_frequency(3 * wave(0, 2) + wave(6, 0)).item() == pytest.approx(1 / 10, rel=1e-12)


def test_a_blur_lowers_power_by_its_transfer_function():
    """E power = σ² |H|² of white noise: at each place, and so in the share, whose error of a ratio is O(1/N)."""
    x, transfer = blurred(noise(2000), gaussian(0.8))
    power = power_spectrum(x)
    error = power.std(0) / math.sqrt(len(x))
    error[0, 0] = 1.0
    far = ((power.mean(0) - transfer) / error).abs()
    far[0, 0] = 0
    # 255 places, of which the largest of so many standard normals stays below 4.5 (1 - 255 × 7e-6).
    assert far.max() < 4.5
    high = radius(16, 16) > 0.5
    transfer[0, 0] = 0
    wanted = transfer[high].sum() / transfer.sum()
    found = power[:, high].sum() / power.sum()
    assert found.item() == pytest.approx(wanted.item(), rel=0.02)
    assert high_frequency(x).mean().item() == pytest.approx(wanted.item(), rel=0.05)


def test_blur_lowers_both_the_more_the_wider_it_is():
    x = noise(200)
    seen = [x, *(blurred(x, gaussian(std))[0] for std in (0.5, 1.0, 2.0))]
    for measure in (high_frequency, laplacian):
        figures = [measure(each).mean().item() for each in seen]
        assert figures == sorted(figures, reverse=True) and figures[-1] < 0.1 * figures[0]


def test_a_wave_of_the_laplacian_is_scaled_by_its_eigenvalue():
    """Δ cos(ωx) = -(2 - 2 cos ω) cos(ωx); each channel counts the same."""
    x = wave(0, 3)
    value = 2 - 2 * math.cos(2 * math.pi * 3 / 16)
    wanted = value**2 * x[..., 1:-1, 1:-1].var(correction=0).item()
    assert laplacian(x).item() == pytest.approx(wanted, rel=1e-12)
    assert laplacian(torch.cat([x, 2 * x], 1)).item() == pytest.approx(2.5 * wanted, rel=1e-12)


def test_the_laplacian_of_white_noise():
    """E var = ‖C L‖²_F/n of the matrix L of inner Laplacians and the centring C: near 20."""
    basis = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    inner = basis[..., 1:-1, 1:-1]
    around = sum(basis.roll((a, b), (2, 3))[..., 1:-1, 1:-1] for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1)))
    matrix = (around - 4 * inner).flatten(1).T
    wanted = (matrix - matrix.mean(0)).square().sum() / len(matrix)
    assert 18 < wanted < 20
    assert standard_errors(laplacian(noise(4000, 1, 8, 8)), wanted) < 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (2, 3, 7, 9)])
@pytest.mark.parametrize("value", [0.0, 0.1, -1.0, 0.9])
def test_a_constant_has_neither(value, shape, dtype):
    """The mean of 1024 times 0.9 is not 0.9, by a rounding at no frequency."""
    x = torch.full(shape, value, dtype=dtype)
    assert (high_frequency(x) < 1e-20).all() and (laplacian(x) < 1e-28).all()


def test_a_slope_and_a_parabola_have_no_laplacian():
    y = torch.arange(8.0)[:, None].expand(8, 8)
    assert (laplacian(torch.stack([y, y.square()])[:, None]) == 0).all()


def test_both_are_of_each_image_alone():
    x = noise(600, 2, 8, 8)
    for measure in (high_frequency, laplacian):
        together = measure(x)
        assert together.shape == (600,) and together.dtype == torch.float64
        assert torch.allclose(together[510:520], measure(x[510:520]), rtol=1e-12)
    assert torch.allclose(high_frequency(5 * x - 2), high_frequency(x), rtol=1e-9)
    assert torch.allclose(laplacian(5 * x - 2), 25 * laplacian(x), rtol=1e-9)


@pytest.mark.parametrize("measure", [high_frequency, laplacian])
@pytest.mark.parametrize(
    "x,said",
    [
        (torch.zeros(5, 2), r"\(B, C, H, W\).*\(5, 2\)"),
        (torch.zeros(2, 1, 2, 8), "3 × 3"),
        (torch.zeros(0, 1, 8, 8), "at least"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.tensor([0.0, math.nan]).view(2, 1, 1, 1).expand(2, 1, 8, 8), "image 1 has NaN"),
    ],
)
def test_what_is_no_image_is_refused(measure, x, said):
    with pytest.raises(ValueError, match=said):
        measure(x)
