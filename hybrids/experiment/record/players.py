"""Who moves what: the players of a stage as a table of text."""

import math
import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from torch import nn

from ...batch import Batch
from ...player import Player
from ...stage import Stage
from ...terms import Terms

__all__ = ["players_table"]

_HEADINGS = ("player", "moves", "uses", "frozen in its turn", "optimizer", "clip", "every", "per")
_WIDTH = 120


def players_table(stage: Stage, steps: int, batch: Batch | None = None) -> str:
    """Return the players of a stage in order of turns, aligned within 120 columns.

    For each: the modules it moves, uses, and that are frozen in its turn, by their names in the model (of modules
    outside of it: their class), each with its number of parameters; its optimizer with the learning rate and the
    factor that varies it, the largest norm of its gradient, the steps between its turns, the divisor of its loss.
    Below it stands its loss, if a batch is given: the terms with their weights, as they are in the first step, and in
    the last where they differ by then.

    Arguments:
        stage: of `build`; it is afterwards as it was.
        steps: its length.
        batch: of those that its players take, or None. Each loss is computed on it once, and once more if it takes the
            step.
    """
    losses = ["", *("" if batch is None else _loss(stage, player, batch, steps) for player in stage.players)]
    rows = [[[heading] for heading in _HEADINGS], *(_row(stage, player) for player in stage.players)]
    widths = [max(len(line) for cell in column for line in cell) for column in zip(*rows)]
    lines = [f"stage {stage.name}: {steps} steps"]
    for row, loss in zip(rows, losses):
        for cells in zip_longest(*row, fillvalue=""):
            lines.append("".join("  " + cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
        if loss:
            lines += _wrapped(loss, " " * (widths[0] + 4))
    return "\n".join(lines)


def _row(stage: Stage, player: Player) -> list[list[str]]:
    """The cells of one player, a list of lines each."""
    moved = {id(p) for p in player.parameters_moved()}
    used = {id(p) for p in player.uses.parameters()}
    everything = {id(p) for p in stage.root().parameters()}
    rates = dict.fromkeys(f"{group['initial_lr']:g}" for group in player.optimizer.param_groups)
    # A closure goes by the name of the function that made it.
    factor = getattr(player.lr, "__qualname__", type(player.lr).__name__).partition(".<locals>")[0]
    cells = [
        player.name,
        *(_modules(stage, wanted) for wanted in (moved, used, everything - moved - used)),
        f"{type(player.optimizer).__name__} {', '.join(rates)}" + ("" if player.lr is None else f" × {factor}"),
        "–" if player.clip is None else f"{player.clip:g}",
        str(player.every),
        f"{player.per:g}",
    ]
    return [cell.split("\n") for cell in cells]


def _modules(stage: Stage, wanted: set[int]) -> str:
    """The largest modules whose parameters are all wanted, a line each, with their numbers of parameters."""
    claimed: set[int] = set()
    root = stage.model
    # Where all of a model lies in one module, such as a denoiser of which a part is frozen, names begin inside it.
    while len(holders := [m for m in root.children() if any(True for _ in m.parameters())]) == 1 and not (
        {id(p) for p in holders[0].parameters()} <= wanted
    ):
        root = holders[0]
    parts = list(_covered(root, "", wanted, claimed))
    for player in stage.players:
        for module in (*player.moves, *player.uses):
            parts += _covered(module, type(module).__name__, wanted, claimed)
    if len(parts) > 6:
        parts[5:] = [(f"and {len(parts) - 5} more,", sum(count for _, count in parts[5:]))]
    return "\n".join(f"{name} {count:,}" for name, count in parts) or "–"


def _covered(module: nn.Module, name: str, wanted: set[int], claimed: set[int]) -> Iterator[tuple[str, int]]:
    # A parameter that two modules share is named once.
    parameters = [p for p in module.parameters() if id(p) not in claimed]
    inside = [p for p in parameters if id(p) in wanted]
    if name and inside and len(inside) == len(parameters):
        claimed.update(map(id, inside))
        yield name, sum(p.numel() for p in inside)
    elif inside:
        prefix = f"{name}." if name else ""
        own = {key: p for key, p in module.named_parameters(recurse=False) if any(p is each for each in inside)}
        if own:
            claimed.update(map(id, own.values()))
            label = prefix + next(iter(own)) if len(own) == 1 else f"{name or 'model'}: {len(own)} tensors"
            yield label, sum(p.numel() for p in own.values())
        for key, child in module.named_children():
            yield from _covered(child, prefix + key, wanted, claimed)


def _loss(stage: Stage, player: Player, batch: Batch, steps: int) -> str:
    """`loss = (distortion + 0.5 rate) / 64; measures …`; empty where the loss cannot be had of this batch."""
    periods: list[Any] = [player.every, *(module.lazy for module in stage.root().modules() if hasattr(module, "lazy"))]
    try:
        first = _terms(stage, player, batch, 0)
        # The last step in which a lazy term is charged too.
        step = (steps - 1) // math.lcm(*periods) * math.lcm(*periods)
        last = _terms(stage, player, batch, step) if player.takes_step and step else first
    except Exception:
        # The first step computes this loss again, and says what is wrong with it.
        return ""
    names = dict.fromkeys([*first, *last])
    terms, measured = [], []
    for name in names:
        weights = dict.fromkeys(f"{float(t[name][0]):.4g}" if name in t else "0" for t in (first, last))
        if list(weights) == ["0"]:
            measured.append(name)
        elif list(weights) == ["1"]:
            terms.append(name)
        else:
            terms.append(f"{next(iter(weights))} {name}" if len(weights) == 1 else f"({' → '.join(weights)}) {name}")
    total = " + ".join(terms)
    if player.per != 1:
        total = (f"({total})" if len(terms) > 1 else total) + f" / {player.per:g}"
    return f"loss = {total}" + (f"; measures {', '.join(measured)}" if measured else "")


def _terms(stage: Stage, player: Player, batch: Batch, step: int) -> Terms:
    with stage.turn(player):
        return player.loss(batch, step=step) if player.takes_step else player.loss(batch)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + " " * 7,
        break_long_words=False,
        break_on_hyphens=False,
    )
