"""Grids of times that samplers go down."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ..schedules import Schedule

__all__ = ["Spacing", "check_times", "ends_in_mean", "time_grid"]

ROUNDING = 1e-4
"""Of an end of σ/α that is given as a number: diffusers prints four decimals of a float32."""

Spacing = Literal["trailing", "leading", "linspace", "karras", "log_snr"]


@torch.no_grad()
def time_grid(
    steps: int,
    start: float = 1.0,
    end: float = 0.0,
    spacing: Spacing = "trailing",
    schedule: Schedule | None = None,
    timesteps: int = 1000,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Tensor:
    """Return steps + 1 times falling from start to end: (steps + 1,), float64, CPU.

    Spacings, the first three named as in diffusers, whose timestep k is t = (k+1)/T:

        trailing: even.
        leading: as diffusers', by ⌊T/steps⌋ timesteps from t = end + 1/T upwards; then the end. The first time lies
            below `start`, so noise is taken for x at less than that (Lin 2023, 2305.08891, table 2).
        linspace: `steps` even times from start to 1/T above the end, then the end.
        karras: even in (σ/α)^(1/ρ) (Karras 2022, 2206.00364, eq. 5).
        log_snr: even in λ, the limit of karras for large ρ (Lu 2022, 2206.00927, section 3.4).

    The last two are even from sigma_max to sigma_min; start and end are steps of their own where they lie outside, as
    they do where σ/α is infinite or 0, which no such grid can hold. (With too few steps for that, what is left of the
    grid is its middle, or nothing.)

    Arguments:
        steps: at least 1.
        start, end: in [0, 1].
        spacing: one of the above.
        schedule: needed by karras and log_snr.
        timesteps: T.
        sigma_min: least σ/α, by default that of the end, or of 1/T above it if it is 0.
        sigma_max: largest σ/α, by default that of the start, but at most Karras' 80: a table of cosines ends at 2e4,
            where half of the grid would be wasted. A number is the schedule's own end if it is so to 1e-4, as printed.
        rho: ρ.
    Raises ValueError for what cannot be.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    if not 0 <= end < start <= 1:
        raise ValueError(f"0 <= end < start <= 1 must hold; got start {start} and end {end}")
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing must be one of {', '.join(get_args(Spacing))}; got {spacing!r}")
    if timesteps < 1:
        raise ValueError(f"timesteps must be at least 1; got {timesteps}")
    if spacing == "trailing":
        return torch.linspace(start, end, steps + 1, dtype=torch.float64)
    if spacing in ("karras", "log_snr"):
        if schedule is None:
            raise ValueError(f"spacing {spacing!r} needs the schedule; got None")
        if not 0 < rho < math.inf:
            raise ValueError(f"rho must be above 0 and finite; got {rho}")
        return _noise_grid(steps, start, end, schedule, timesteps, sigma_min, sigma_max, rho, spacing)
    first = 1 / timesteps
    if spacing == "leading":
        stride = math.floor(timesteps * (start - end) / steps + 1e-9)
        if stride < 1:
            raise ValueError(f"steps must be at most timesteps × (start - end) with spacing 'leading'; got {steps}")
        inner = end + (1 + stride * torch.arange(steps - 1, -1, -1, dtype=torch.float64)) / timesteps
    else:
        if steps > 1 and not end + first < start:
            raise ValueError(
                f"1/timesteps must be below start - end with spacing 'linspace'; got timesteps {timesteps}"
            )
        inner = torch.linspace(start, end + first, steps, dtype=torch.float64)
    return torch.cat([inner, inner.new_tensor([end])])


def _noise_grid(
    steps: int,
    start: float,
    end: float,
    schedule: Schedule,
    timesteps: int,
    sigma_min: float | None,
    sigma_max: float | None,
    rho: float,
    spacing: Spacing,
) -> Tensor:
    """Return the spacings karras and log_snr."""

    def noise(t: float) -> float:
        return float(torch.exp(-schedule.log_snr(t) / 2))

    high, low = noise(start), noise(end)
    largest = sigma_max if sigma_max is not None else min(high, 80.0)
    least = sigma_min if sigma_min is not None else low if low > 0 else noise(min(end + 1 / timesteps, start))
    if not 0 < least < largest < math.inf:
        raise ValueError(f"0 < sigma_min < sigma_max must hold and be finite; got {least:g} and {largest:g}")
    before, after = largest < high * (1 - ROUNDING), least > low * (1 + ROUNDING)
    if largest > high * (1 + ROUNDING) or least < low * (1 - ROUNDING):
        raise ValueError(
            f"sigma_min and sigma_max must lie within the schedule's σ/α, {low:g} at the end to {high:g} at the start; "
            f"got {least:g} and {largest:g}"
        )
    many = steps + 1 - before - after
    place = torch.linspace(0, 1, many, dtype=torch.float64) if many != 1 else torch.tensor([0.5], dtype=torch.float64)
    if spacing == "karras":
        sigma = (largest ** (1 / rho) + place * (least ** (1 / rho) - largest ** (1 / rho))) ** rho
    else:
        sigma = largest * (least / largest) ** place
    inner = schedule.time(-2 * sigma.log()).cpu().double()
    ends = inner.new_tensor([start, end])
    if steps == 1:
        return ends
    # the ends themselves, to the bit
    return torch.cat([ends[:1], inner[0 if before else 1 : None if after else -1], ends[1:]])


def ends_in_mean(schedule: Schedule, times: Tensor) -> bool:
    """Return whether a grid's last step is to noise at t = 0, where samplers take the denoiser's mean by default."""
    return times.ndim == 1 and bool((times[-1:] == 0).all()) and not schedule.noiseless(0.0)


def check_times(times: Tensor, mean_at_end: bool = False) -> None:
    """Refuse a grid that samplers cannot go down (raises ValueError); with mean_at_end the last time may be twice."""
    falling = times[:-1] if mean_at_end else times
    if times.ndim != 1 or len(times) < 2 or not bool((falling.diff() < 0).all()) or not times[-1] <= times[-2]:
        raise ValueError(f"times must be (steps + 1,), strictly falling; got {times.tolist()}")
    if not 0 <= float(times[-1]) <= float(times[0]) <= 1:
        raise ValueError(f"times must be in [0, 1]; got {float(times[0])} to {float(times[-1])}")
