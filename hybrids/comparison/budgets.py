"""Equal terms: widths of matched parameter counts, and how many steps of a recipe a budget pays for."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from ..data import Data
from ..ema import EMA
from ..experiment.feed import batches_of, read, seed_all
from ..experiment.settings import Settings
from ..game import train
from ..stage import Stage

__all__ = ["KINDS", "Kind", "flops_of_stages", "lengths", "matched", "seconds_of_stages", "trained_parameters"]

Kind = Literal["images", "flops", "seconds"]
KINDS: dict[str, str] = {
    "images": "examples seen in training, an example counting each time it is seen",
    "flops": "floating-point operations of training, all players, forward and backward",
    "seconds": "seconds of training, start-up, checkpoints and pictures left out",
}
WIDEST = 4096
WARM_UP = 5


def trained_parameters(stages: Sequence[Stage]) -> int:
    """How many numbers the players of all stages move, critics included, each counted once."""
    moved: set[Tensor] = {p for stage in stages for player in stage.players for p in player.parameters_moved()}
    return sum(p.numel() for p in moved)


def matched(count: Callable[[int], int], target: int, least: int = 1) -> tuple[int, int]:
    """The width whose count is nearest to `target`, and that count, which is never quite the target.

    Arguments: count, of parameters by width, rising with it, which raises ValueError for a width that cannot be;
    target; least, the smallest width.
    """

    def at(width: int) -> tuple[int, int]:
        for candidate in range(width, width + 16):
            try:
                return candidate, count(candidate)
            except ValueError as error:
                reason = error
        raise reason

    low = high = at(least)
    while high[1] < target and high[0] < WIDEST:
        low, high = high, at(2 * high[0])
    while high[0] - low[0] > 1:
        middle = at((low[0] + high[0]) // 2)
        if middle[0] >= high[0]:
            break
        low, high = (middle, high) if middle[1] < target else (low, middle)
    return min(low, high, key=lambda found: (abs(found[1] - target), found[0]))


def lengths(value: float, costs: Sequence[float], split: bool) -> list[int]:
    """Steps of each stage that a budget pays for, at least one.

    Arguments: value, the budget; costs, of one step of each stage, in the budget's unit; split, whether stages may
    have lengths of their own: each then has the same share of the budget, else the same number of steps.
    """
    if split:
        return [max(1, int(value / len(costs) / cost)) for cost in costs]
    return [max(1, int(value / sum(costs)))] * len(costs)


def few(data: Data, n: int) -> Data:
    """The first n examples, where they are in memory: enough to know what a step costs."""
    if data.x is None:
        return data
    return replace(
        data,
        x=data.x[:n],
        labels=None if data.labels is None else data.labels[:n],
        factors=None if data.factors is None else data.factors[:n],
    )


def flops_of_stages(settings: Settings, build: Callable[..., list[Stage]], data: Data) -> list[float]:
    """FLOPs of one step of each stage, all players and micro-batches, as `hybrids.evaluation.costs` counts them."""
    from ..evaluation.costs import batch_of, flops_per_step

    some = few(data, 4 * settings.batch_size)
    seed_all(0)
    stages = build(settings, some)
    return [
        settings.accumulation * flops_per_step(stage, batch_of(stage, some, settings.batch_size)) for stage in stages
    ]


def seconds_of_stages(
    settings: Settings, build: Callable[..., list[Stage]], data: Data, seconds: float, warm_up: int = WARM_UP
) -> list[float]:
    """Seconds of one step of each stage, the first steps left out; `seconds` are spent on each stage, about.

    A step is what a run does in it: the batch, all turns, the logs, the moving average. Its time is the mean over the
    fastest fifth of those seconds: what else a machine does can only slow a step, and would cost a recipe its steps.
    Work that comes every k steps, as a lazy penalty, is missed where a fifth of the seconds has fewer than k.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=settings.mixed_precision)
    some = few(data, 4 * settings.batch_size)
    seed_all(0)
    found = []
    for index, stage in enumerate(build(settings, some)):
        stage.root().to(accelerator.device)
        batches = batches_of(stage, index, some, settings, accelerator)
        ema = EMA(stage.model, settings.ema) if settings.ema > 0 else None
        begin = window = time.perf_counter()
        first, fastest = warm_up, math.inf
        # Never reached: the loop below ends it by the clock, after at least five steps that count.
        for n, logs in train(stage.players, read(batches), accelerator, 10**9):
            if ema is not None:
                ema.update_parameters(stage.model)
            if n % 10 == 0 or n <= warm_up:
                # Reading a number waits for the device.
                float(next(iter(logs.values())))
            now = time.perf_counter()
            if n == warm_up:
                begin = window = now
            elif n % 10 == 0 and n - first >= 5 and now - window >= seconds / 5:
                fastest = min(fastest, (now - window) / (n - first))
                first, window = n, now
                if now - begin >= seconds:
                    break
        found.append(fastest)
    return found
