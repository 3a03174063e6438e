import math
import random

import pytest

from hybrids.comparison.page.rounding import integer, interval, places, shown


def read(text: str) -> float:
    """What a reader takes a written number for."""
    raised = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
    mantissa, _, power = text.replace("−", "-").replace(",", "").partition(" × 10")
    return float(mantissa) * 10.0 ** int(power.translate(raised) or 0)


@pytest.mark.parametrize(
    ("value", "low", "high", "said", "spread"),
    [
        (1.0, 0.9, 1.1, "1.00", "[0.90, 1.10]"),
        (12.3456, 11.9, 12.8, "12.3", "[11.9, 12.8]"),
        (5.27, 4.9, 5.6, "5.3", "[4.9, 5.6]"),
        (8734.0, 8012.0, 9388.0, "8,700", "[8,000, 9,400]"),
        (-0.0123, -0.0125, -0.0121, "−0.01230", "[−0.01250, −0.01210]"),
        (0.5, 0.5, 0.5, "0.500", ""),
        (0.98765, None, None, "0.988", ""),
        (0.0, None, None, "0", ""),
        (1.3e12, None, None, "1.30 × 10¹²", ""),
        (2.5e-6, None, None, "2.50 × 10⁻⁶", ""),
        (math.nan, None, None, "diverged", ""),
        (-math.inf, 0.0, 1.0, "diverged", ""),
        (1.0, math.nan, 2.0, "1.00", ""),
    ],
)
def test_numbers_are_written_to_what_their_uncertainty_carries(value, low, high, said, spread):
    assert shown(value, low, high) == said
    assert interval(value, low, high) == spread


def test_counts_are_whole():
    assert [shown(v, whole=True) for v in (25.0, 1000.0, 24.67)] == ["25", "1,000", "24.7"]
    assert [integer(v) for v in (64000, 0, None, 1_234_567, 1e12)] == ["64,000", "0", "–", "1,234,567", "1.00 × 10¹²"]


def test_rounding_costs_at_most_a_sixth_of_the_half_width_and_says_no_more_than_it_knows():
    """At half-width h the last digit is at most h/3, so rounding errs by h/6 at most; and it is h/30 at least."""
    rng = random.Random(0)
    for _ in range(2000):
        value = rng.choice((-1, 1)) * 10 ** rng.uniform(-3.5, 6.5)
        half = abs(value) * 10 ** rng.uniform(-3, 0)
        unit = 10.0 ** -places(value, value - half, value + half)
        assert half / 30 <= unit * (1 + 1e-9) and unit <= half / 3 * (1 + 1e-9)
        assert abs(read(shown(value, value - half, value + half)) - value) <= half / 6 * (1 + 1e-6)


def test_three_significant_digits_without_an_interval():
    rng = random.Random(1)
    for _ in range(2000):
        value = rng.choice((-1, 1)) * 10 ** rng.uniform(-12, 15)
        assert abs(read(shown(value)) / value - 1) <= 0.00501


def test_a_true_minus_and_no_negative_zero():
    assert shown(-1.5) == "−1.50"
    assert shown(-0.0001, -10.0, 10.0) == "0"
