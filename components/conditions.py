"""Conditions, class labels or tokens with a mask: their dropout, and their embedding and that of time in networks.

The null condition is the label `num_classes`, or a mask that is False everywhere; cond=None is the null condition of
all examples.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ClassEmbedding", "Condition", "Context", "TimeAndLabel", "TimeEmbedding", "drop", "masked", "sinusoidal"]

Condition = Tensor | tuple[Tensor, Tensor | None]
"""Labels (B,) int64, or (tokens (B, L, F), mask (B, L) bool, True where there is a token; None where all are)."""


def drop(
    cond: Condition | None, p: float, num_classes: int | None = None, generator: torch.Generator | None = None
) -> Condition | None:
    """Replace each example's condition by the null one with probability p; None stays None.

    Ho & Salimans 2022, 2207.12598, algorithm 1.

    Arguments:
        cond: labels (B,) int64, which need num_classes; or (tokens (B, L, F), mask (B, L) bool, True where there is a
            token, None where all are), whose mask becomes all False.
        p: in [0, 1].
        num_classes: the null label.
        generator: on the condition's device; None for torch's own.
    Raises:
        ValueError: p is outside [0, 1], num_classes is None for labels, or the mask is not (B, L).
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1]; got {p}")
    if cond is None:
        return None
    if isinstance(cond, tuple):
        tokens, mask = masked(cond)
        if mask.shape != tokens.shape[:2]:
            raise ValueError(f"mask must be (B, L) = {tuple(tokens.shape[:2])}; got {tuple(mask.shape)}")
        return tokens, mask & (torch.rand(len(mask), 1, device=mask.device, generator=generator) >= p)
    if num_classes is None:
        raise ValueError("labels need num_classes, the null label; got None")
    return cond.masked_fill(torch.rand(len(cond), device=cond.device, generator=generator) < p, num_classes)


def masked(cond: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    """Return tokens and their mask (B, L) bool, which is True everywhere where None was given."""
    tokens, mask = cond
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask


def sinusoidal(t: Tensor, width: int, scale: float = 1000.0) -> Tensor:
    """Return cos and sin of scale t ω_k, ω_k = 10000^(-k / (width / 2)): (B,) to (B, width).

    Arguments:
        t: (B,).
        width: even.
        scale: maps t in [0, 1] to the thousand steps of Ho et al. 2020 (arXiv 2006.11239).
    """
    half = width // 2
    omega = torch.exp(torch.arange(half, device=t.device, dtype=t.dtype) * (-math.log(10000.0) / half))
    angle = (scale * t)[:, None] * omega
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """An MLP on sinusoids of t: (B,) or () in [0, 1], of any floating dtype and device, to (B, width).

    Arguments:
        width: features of the embedding.
        frequencies: sinusoids of t, rounded down to an even number.
    """

    def __init__(self, width: int, frequencies: int = 64) -> None:
        super().__init__()
        self.frequencies = frequencies - frequencies % 2
        self.first = nn.Linear(self.frequencies, width)
        self.last = nn.Linear(width, width)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return (B, width), with the batch size and device of x and the dtype of the weights.

        Arguments:
            t: (B,) or () in [0, 1].
            x: the network's input (B, ...).
        Raises:
            ValueError: t has another shape or an integer dtype.
        """
        if t.ndim and t.shape != x.shape[:1]:
            raise ValueError(f"t must be (B,) or () in [0, 1] with B = {len(x)}; got shape {tuple(t.shape)}")
        if not t.is_floating_point():
            raise ValueError(f"t must be floating point in [0, 1]; got {t.dtype}")
        # sinusoids in float32: in bf16 a thousand times would share a few hundred values
        t = t.to(device=x.device, dtype=torch.float32).expand(len(x))
        return self.last(F.silu(self.first(sinusoidal(t, self.frequencies).to(self.first.weight.dtype))))


class ClassEmbedding(nn.Module):
    """A table of num_classes + 1 rows, the last for the null class: labels (B,) int64 to (B, width).

    cond=None means the null class for all, so the table is always in the graph (DistributedDataParallel needs every
    parameter). With num_classes=None there is no table, the result is None, and a cond is refused.

    Arguments:
        num_classes: the number of classes, or None for no labels.
        width: features of the embedding.
    """

    def __init__(self, num_classes: int | None, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.table = None if num_classes is None else nn.Embedding(num_classes + 1, width)

    def forward(self, cond: Tensor | None, x: Tensor) -> Tensor | None:
        """Return (B, width), or None where there are no classes.

        Arguments:
            cond: labels (B,) int64 in 0..num_classes, or None. The range is left to the lookup, since checking would
                wait for the device at each step.
            x: the network's input (B, ...).
        Raises:
            ValueError: cond is not (B,) int64, or the network has no classes.
        """
        if self.table is None or self.num_classes is None:
            if cond is None:
                return None
            got = "labels" if isinstance(cond, Tensor) else f"a {type(cond).__name__}"
            raise ValueError(f"cond must be None for a network built with num_classes=None; got {got}")
        if cond is None:
            cond = torch.full((len(x),), self.num_classes, device=x.device)
        elif not isinstance(cond, Tensor):
            raise ValueError(f"cond must be labels (B,) of dtype int64; got {type(cond).__name__}")
        elif cond.shape != x.shape[:1] or cond.dtype != torch.int64:
            got = f"got shape {tuple(cond.shape)} of dtype {cond.dtype}"
            raise ValueError(f"cond must be labels (B,) of dtype int64 with B = {len(x)}; {got}")
        return self.table(cond)


class TimeAndLabel(nn.Module):
    """The embedding that adapts every block: SiLU(time + label + style), (B, width).

    A style (B, width) is passed with the time, as the pair (t, style), so that every backbone passes it on in place of
    its t. `components.backbones.Stochastic` computes one from a latent.

    Arguments:
        width: features of the embedding.
        frequencies: as for TimeEmbedding.
        num_classes: as for ClassEmbedding.
    """

    def __init__(self, width: int, frequencies: int, num_classes: int | None) -> None:
        super().__init__()
        self.width = width
        self.time = TimeEmbedding(width, frequencies)
        self.label = ClassEmbedding(num_classes, width)

    def forward(self, t: Tensor | tuple[Tensor, Tensor], cond: Tensor | None, x: Tensor) -> Tensor:
        """Return (B, width).

        Arguments:
            t: (B,) or () in [0, 1], or (t, style (B, width)).
            cond: labels (B,) int64, or None for the null class.
            x: the network's input (B, ...).
        """
        t, style = t if isinstance(t, tuple) else (t, None)
        embedding, label = self.time(t, x), self.label(cond, x)
        if style is not None:
            embedding = embedding + style
        return F.silu(embedding if label is None else embedding + label)


class Context(nn.Module):
    """Condition tokens with a learned null token before them: (tokens (B, L, F), mask (B, L)) to (B, 1 + L, F), a mask.

    The null token is visible where no other is: for cond=None, which is the same as a mask of False only. It is always
    in the graph, as DistributedDataParallel needs.

    Arguments:
        features: F of a token.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.null = nn.Parameter(torch.randn(features) / math.sqrt(features))

    def forward(self, cond: Condition | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, 1 + L, F) and a mask (B, 1 + L) bool, or None where all are visible.

        Arguments:
            cond: (tokens (B, L, F), mask (B, L) bool or None), or None for the null condition.
            x: the network's input (B, ...).
        Raises:
            ValueError: cond is no such pair.
        """
        null = self.null.expand(len(x), 1, -1)
        if cond is None:
            return null, None
        if not isinstance(cond, tuple) or len(cond) != 2:
            raise ValueError(f"cond must be (tokens, mask) for a network built with context; got {type(cond).__name__}")
        tokens, mask = masked(cond)
        if tokens.ndim != 3 or len(tokens) != len(x) or tokens.shape[2] != self.features:
            raise ValueError(f"tokens must be ({len(x)}, L, {self.features}); got shape {tuple(tokens.shape)}")
        if mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be (B, L) = {tuple(tokens.shape[:2])} of dtype bool; "
                f"got shape {tuple(mask.shape)} of dtype {mask.dtype}"
            )
        tokens = torch.cat([null.to(tokens.dtype), tokens], dim=1)
        return tokens, torch.cat([~mask.any(1, keepdim=True), mask], dim=1)
