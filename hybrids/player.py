"""A player: a loss, and the modules whose parameters it moves."""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from .batch import Batch
from .terms import Terms

__all__ = ["Player", "warmup_cosine"]

ADAMW = partial(torch.optim.AdamW, lr=1e-4)


class Player(nn.Module):
    """A loss and the modules that it may move; its forward IS its loss, so that DDP synchronises all of it.

    Arguments:
        loss: batch → Terms, or (batch, step) → Terms if it has a parameter named `step`.
        moves: the modules whose parameters it optimizes; those that do not require a gradient are left alone.
        uses: modules that only it needs and nobody trains (a teacher, a perceptual network): moved to the device,
            set to eval, frozen. What another player moves need not be named.
        optimizer: parameters → torch optimizer.
        clip: largest norm of the gradient, or None.
        lr: (step, steps) → factor on the optimizer's learning rate, such as `warmup_cosine()`; steps is the length that
            `train` was given.
        every: it takes its turn in each step divisible by this.
        per: the loss is divided by this, such as the dimensions d of x: what papers state for losses which are
            means over dimensions, such as clip 1, then holds.
        name: what logs and errors call it.
        allow_unused: let a step leave some of its parameters without a gradient (they get zeros).
    Raises:
        ValueError, TypeError: naming the player, for arguments that cannot work.
    """

    loss: Callable[..., Terms]

    def __init__(
        self,
        loss: Callable[..., Terms],
        moves: Iterable[nn.Module],
        uses: Iterable[nn.Module] = (),
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = ADAMW,
        clip: float | None = None,
        lr: Callable[[int, int], float] | None = None,
        every: int = 1,
        per: float = 1,
        name: str = "player",
        allow_unused: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.clip, self.lr, self.every, self.per = name, clip, lr, every, per
        self.allow_unused = allow_unused
        self.moves, self.uses = _listed(name, "moves", moves), _listed(name, "uses", uses)
        parameters = [p for p in self.moves.parameters() if p.requires_grad]
        self._check(loss, optimizer, parameters)
        # Not `self.loss = loss`: a bound method of a model is no module, but a loss that is one must not be
        # registered, or its parameters would count as this player's.
        object.__setattr__(self, "loss", loss)
        self.takes_step = "step" in inspect.signature(loss).parameters
        self.optimizer = optimizer(parameters)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def parameters_moved(self) -> list[nn.Parameter]:
        """What its optimizer updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss on a batch, divided by `per`, and each term's mean, neither weighted nor divided."""
        try:
            terms = self.loss(batch, step=step) if self.takes_step else self.loss(batch)
        except (AttributeError, KeyError, TypeError) as error:
            if isinstance(batch, Mapping):
                error.add_note(
                    f"player {self.name!r}: its batches are mappings of {', '.join(map(str, batch))}; a loss of x, or "
                    "of x and cond, takes them as lambda batch: loss(*hybrids.unpack(batch))"
                )
            raise
        if not isinstance(terms, Terms):
            raise TypeError(f"player {self.name!r}: its loss must return Terms; got {type(terms).__name__}")
        total = terms.total if self.per == 1 else terms.total / self.per
        if self.allow_unused:
            # A zero that touches every parameter: DDP then finds each of them ready on every rank.
            total = total + sum(0.0 * p.sum() for p in self.parameters_moved())
        return total, terms.means()

    def _check(self, loss: object, optimizer: object, parameters: list[nn.Parameter]) -> None:
        """Raise ValueError or TypeError, naming the player, for arguments that cannot work."""
        if not callable(loss):
            raise TypeError(f"player {self.name!r}: loss must be a function of a batch; got {type(loss).__name__}")
        if not parameters:
            raise ValueError(f"player {self.name!r}: moves holds no parameter that requires a gradient")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"a player's name must be of letters, digits, _ and -; got {self.name!r}")
        if self.every < 1:
            raise ValueError(f"player {self.name!r}: every must be at least 1; got {self.every}")
        if not 0 < self.per < math.inf:
            raise ValueError(f"player {self.name!r}: per must be above 0 and finite; got {self.per}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"player {self.name!r}: clip must be above 0, or None; got {self.clip}")
        if not callable(optimizer):
            raise TypeError(
                f"player {self.name!r}: optimizer must be a function of parameters, such as partial(AdamW, lr=1e-3); "
                f"got a {type(optimizer).__name__}"
            )
        if self.lr is not None and not _takes_two(self.lr):
            raise TypeError(
                f"player {self.name!r}: lr must be a function (step, steps) → factor on the optimizer's rate, such as "
                f"warmup_cosine(); got {self.lr!r}: the rate itself goes in optimizer=partial(AdamW, lr=1e-3)"
            )
        moved = {id(p) for p in parameters}
        for key, p in self.uses.named_parameters():
            if id(p) in moved:
                raise ValueError(
                    f"player {self.name!r}: {key} is in both moves and uses; a player trains it or does not"
                )

    def extra_repr(self) -> str:
        return f"name={self.name!r}, every={self.every}, clip={self.clip}"


def _listed(player: str, argument: str, modules: Iterable[nn.Module]) -> nn.ModuleList:
    """Return an argument's modules as a list; raise TypeError, with player and argument, for anything else."""
    if not isinstance(modules, Iterable):
        raise TypeError(
            f"player {player!r}: {argument} must be a list of modules, such as [model]; got a {type(modules).__name__}"
        )
    listed = list(modules)
    for module in listed:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"player {player!r}: {argument} must hold modules, whose parameters it finds; got a "
                f"{type(module).__name__}"
            )
    return nn.ModuleList(listed)


def _takes_two(function: object) -> bool:
    """Return whether it can be called with two arguments."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(0, 1)
    except TypeError:
        return False
    return True


def warmup_cosine(warmup: float = 0.05, final: float = 0.0) -> Callable[[int, int], float]:
    """Return a learning-rate factor of (step, steps): a linear rise to 1, then half a cosine down to `final`.

    Arguments:
        warmup: share of the steps in which it rises, in [0, 1); of w such steps the first has the factor 1/w.
        final: factor of the last step, at least 0.
    Raises ValueError for values out of range.
    """
    if not 0 <= warmup < 1 or not final >= 0:
        raise ValueError(
            f"warmup must be a share of the steps, in [0, 1), and final at least 0; got {warmup} and {final}"
        )

    def factor(step: int, steps: int) -> float:
        # 0.05 * 140 is above 7 in floating point, and 0.29 * 100 below 29.
        rising = int(warmup * steps + 1e-9)
        if step < rising:
            return (step + 1) / rising
        progress = min((step - rising) / max(steps - 1 - rising, 1), 1.0)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
