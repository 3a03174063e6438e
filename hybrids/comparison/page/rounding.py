"""Numbers as a reader needs them: as many digits as their uncertainty carries."""

import math
from typing import TypeGuard

__all__ = ["finite", "integer", "interval", "places", "shown", "text"]

_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def finite(value: float | None) -> TypeGuard[float]:
    """Whether there is a number, and it is one."""
    return value is not None and math.isfinite(value)


def places(value: float, low: float | None = None, high: float | None = None, whole: bool = False) -> int:
    """How many decimals a value deserves; negative ones round to tens, hundreds, ...

    Two digits of the interval's half-width where it begins with 1 or 2, else one, so that rounding costs a sixth of it
    at most; without an interval three significant digits, or none after the point of a whole number.
    """
    half = _half(low, high)
    if half > 0:
        first = math.floor(math.log10(half))
        return (1 if half / 10.0**first < 3 else 0) - first
    if value == 0 or (whole and value == int(value) and abs(value) < 1e7):
        return 0
    return 2 - math.floor(math.log10(abs(value)))


def text(value: float, decimals: int) -> str:
    """A number rounded to so many decimals: thousands apart, powers of ten from 10⁷ on and below 10⁻⁴, a true minus.

    'diverged' for what is no number.
    """
    if not math.isfinite(value):
        return "diverged"
    if abs(value) >= 1e7 or 0 < abs(value) < 1e-4:
        power = math.floor(math.log10(abs(value)))
        mantissa = f"{value / 10.0**power:.{min(max(0, power + decimals), 6)}f}"
        written = f"{mantissa} × 10{str(power).translate(_RAISED)}"
    else:
        written = f"{round(value, decimals):,.{max(0, decimals)}f}"
    # Nothing is less than zero by nothing.
    if not any(digit in written for digit in "123456789"):
        written = written.lstrip("-")
    return written.replace("-", "−")


def _half(low: float | None, high: float | None) -> float:
    """Half the width of an interval; 0 where there is none, or it is a point."""
    return max(0.0, (high - low) / 2) if finite(low) and finite(high) else 0.0


def shown(value: float, low: float | None = None, high: float | None = None, whole: bool = False) -> str:
    """A value to the digits that its 95% interval leaves it; whole: it is a count."""
    return text(value, places(value, low, high, whole)) if math.isfinite(value) else text(value, 0)


def interval(value: float, low: float | None, high: float | None) -> str:
    """`[low, high]` to the same decimals as the value; '' where there is none, or it is a point."""
    if low is None or high is None or not (finite(value) and _half(low, high) > 0):
        return ""
    decimals = places(value, low, high)
    return f"[{text(low, decimals)}, {text(high, decimals)}]"


def integer(value: float | None) -> str:
    """A count, thousands apart; large ones as powers of ten to three digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if finite(value) and abs(value) < 1e9 else shown(value)
