"""Grey levels as values of a density: the grid, the noise over a bin, the bin's volume."""

import math

import pytest
import torch
from answers import F64

from components.distributions import check_grid, dequantized, grid, log_bin


@pytest.mark.parametrize("grey_levels", [2, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_every_level_is_on_the_grid(grey_levels, dtype):
    values = grid(grey_levels, torch.zeros(1, dtype=dtype))
    check_grid(values[:, None], grey_levels)


@pytest.mark.parametrize("value, message", [
    (0.1, "example 2, which spans 0 to 0.1, is off by 0.2 of a level"),
    (1.125, "example 2, which spans 0 to 1.125, is off by 1 of a level"),
    (-1.5, "example 2, which spans -1.5 to 0, is off by 4 of a level"),
    (math.nan, "x must be finite; example 2 has NaN or infinite values"),
    (math.inf, "x must be finite; example 2 has NaN or infinite values"),
])  # fmt: skip
def test_refusals_name_the_worst_example(value, message):
    x = torch.zeros(4, 1, 2, 2)
    x[2, 0, 1, 1] = value
    with pytest.raises(ValueError, match=message):
        check_grid(x, 17)


def test_noise_fills_each_bin_evenly_and_no_more():
    x = grid(17, torch.zeros(1, dtype=F64)).expand(20_000, 17)
    u = (dequantized(x, 17) - x) * 8
    assert u.min() >= -0.5 and u.max() < 0.5
    n = u.numel()
    assert abs(u.mean().item()) < 4 / math.sqrt(12 * n)
    assert u.var().item() == pytest.approx(1 / 12, abs=4 * math.sqrt(1 / 180 / n))


def test_noise_repeats_with_a_generator_and_has_the_type_of_x():
    x = torch.zeros(3, 2)
    one, other = (dequantized(x, 17, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, other) and one.dtype == torch.float32


@pytest.mark.parametrize("grey_levels, bits", [(17, 3.0), (256, math.log2(127.5))])
def test_a_bin_is_two_over_k_minus_one_wide(grey_levels, bits):
    """The uniform density on [-1, 1] and half a bin beyond gives each level 1/K."""
    density = 1 / (2 * grey_levels / (grey_levels - 1))
    assert math.log(density) + log_bin(grey_levels) == pytest.approx(-math.log(grey_levels), rel=1e-12)
    assert -log_bin(grey_levels) / math.log(2) == pytest.approx(bits, rel=1e-12)
