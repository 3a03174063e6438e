"""Bottlenecks: an encoder's output rounded to one of finitely many codes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .distributions import per_example
from .precision import full_precision, wide
from .ranks import rank_and_world, shared, sum_over_ranks

__all__ = ["FSQ", "VQ", "Quantized"]


@dataclass(frozen=True)
class Quantized:
    """The output of a bottleneck.

    Arguments:
        z: the quantized latent (B, c, ...).
        indices: of the codes, (B, ...) int64.
        perplexity: () exp of the entropy of how often each code is used: the number of codes when all are used equally,
            1 when one is.
        losses: name → (weight, values (B,)).
    """

    z: Tensor
    indices: Tensor
    perplexity: Tensor
    losses: dict[str, tuple[float, Tensor]] = field(default_factory=dict)


class VQ(nn.Module):
    """Vector quantization: each vector of z becomes its nearest code, z_q = e_k, k = argmin_j ‖z - e_j‖.

    The losses are summed over the event, sg being the stop of the gradient: commitment, β ‖z - sg[e_k]‖², and without
    `decay` codebook, ‖sg[z] - e_k‖². (The code of Esser et al. has β on the other one of the two; for losses that are
    means, multiply by 1/d.) z is that before the straight-through estimator z_q = z + sg[e_k - z], whose Jacobian is
    the identity. van den Oord et al. 2017, arXiv 1711.00937, eq. 3; Esser et al. 2021, arXiv 2012.09841.

    With `decay` the codes are buffers that follow the means of their vectors (its appendix A.1): with n_k the vectors
    that chose k, S_k their sum and N_k ← decay N_k + (1 - decay) n_k,

        e_k ← e_k + (1 - decay) (S_k - n_k e_k) / N_k,

    the ratio of the two moving averages in a form that leaves an unused code where it is. With decay=None the codebook
    is a parameter and learns by its loss.

    A dead code, of N_k ≤ revive mean(N), becomes a vector of the batch drawn at random, and N_k the mean. All are dead
    at first, so the codes start from the first batch. revive=0 revives none later.

    Counts, sums and draws are over all processes: every process must call the forward. The codebook is updated only in
    training mode with gradients enabled, so not in a critic's turn, which encodes under no_grad; there and in eval mode
    nothing is communicated, and the perplexity is that of this process's batch.

    Arguments:
        codes: K, at least 2.
        features: c, of each vector.
        commitment: β, at least 0.
        decay: in [0, 1), or None for a codebook that is a parameter.
        revive: in [0, 1); its default is an unmeasured guess.
    Raises:
        ValueError: an argument is not as above.
    """

    counts: Tensor

    def __init__(
        self,
        codes: int,
        features: int,
        commitment: float = 0.25,
        decay: float | None = 0.99,
        revive: float = 0.1,
    ) -> None:
        super().__init__()
        _check(codes, features, commitment, decay, revive)
        self.codes, self.features, self.commitment, self.decay, self.revive = codes, features, commitment, decay, revive
        codebook = torch.randn(codes, features)
        if decay is None:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.zeros(codes))

    @full_precision()
    def forward(self, z: Tensor) -> Quantized:
        """Return z_q of z (B, c) or (B, c, h, w), in float32 or wider; raises ValueError for another shape."""
        _check_latent(z, self.features)
        z = wide(z)
        vectors = rearrange(z.detach(), "b c ... -> (b ...) c")
        learn = self.training and torch.is_grad_enabled()
        if learn:
            self._revive(vectors)
        nearest = self._nearest(vectors)
        used = _usage(nearest, self.codes)
        if learn:
            used = sum_over_ranks(used)
        indices = nearest.view(len(z), *z.shape[2:])
        e = self.lookup(indices)
        losses = {"commitment": (self.commitment, per_example((z - e.detach()).square()))}
        if self.decay is None:
            losses["codebook"] = (1.0, per_example((z.detach() - e).square()))
        if learn:
            self._follow(vectors, nearest, used)
        # not z + (e - z), whose rounding would leave z_q off the code
        z_q = e.detach() + (z - z.detach())
        return Quantized(z_q, indices, _perplexity(used), losses)

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codes (B, c) or (B, c, h, w) of indices (B,) or (B, h, w) int64; raises ValueError for others."""
        _check_indices(indices)
        return rearrange(F.embedding(indices, self.codebook), "b ... c -> b c ...")

    @torch.no_grad()
    def _nearest(self, vectors: Tensor) -> Tensor:
        """Return the indices (N,) of the codes nearest to the vectors (N, c)."""
        # ‖z - e‖² without the ‖z‖² that all codes share, about the mean code: far from 0 the squares would cancel
        middle = self.codebook.mean(0)
        codes = (self.codebook - middle).to(vectors.dtype)
        return torch.addmm(codes.square().sum(1), vectors - middle, codes.T, alpha=-2).argmin(1)

    @torch.no_grad()
    def _revive(self, vectors: Tensor) -> None:
        """Replace dead codes by vectors of the batch (N, c)."""
        drawn = torch.randint(len(vectors), (self.codes,), device=vectors.device)
        candidates = shared(vectors[drawn].to(self.codebook.dtype))
        mean = self.counts.mean()
        dead = self.counts <= self.revive * mean
        # before anything was counted, an equal share of this batch
        share = torch.where(mean > 0, mean, len(vectors) * rank_and_world()[1] / self.codes)
        self.codebook.copy_(torch.where(dead[:, None], candidates, self.codebook))
        self.counts.copy_(torch.where(dead, share, self.counts))

    @torch.no_grad()
    def _follow(self, vectors: Tensor, nearest: Tensor, used: Tensor) -> None:
        """Move counts, and with `decay` codes, by vectors (N, c), their codes (N,) and all processes' counts (K,)."""
        decay = 0.99 if self.decay is None else self.decay
        # above 0, which would mean dead at any `revive`
        tiny = torch.finfo(self.counts.dtype).tiny
        self.counts.mul_(decay).add_(used, alpha=1 - decay).clamp_(min=tiny)
        if self.decay is None:
            return
        offsets = vectors - self.codebook[nearest]
        sums = torch.zeros_like(self.codebook).index_add_(0, nearest, offsets.to(self.codebook.dtype))
        sums = sum_over_ranks(sums)
        self.codebook.add_((1 - decay) * sums / self.counts[:, None])


class FSQ(nn.Module):
    """Finite scalar quantization: each of c numbers rounded to L_i levels; ∏ L_i codes, no codebook and no losses.

        y_i = h_i tanh(z_i + s_i) - o_i,        z_q = round(y_i) / ⌊L_i/2⌋ in [-1, 1]

    with h_i = (L_i - 1)(1 + 10⁻³)/2, o_i = ½ for even L_i and else 0, and tanh(s_i) = o_i/h_i, so that z = 0 goes to 0.
    The gradient passes the rounding unchanged. Mentzer et al. 2023, arXiv 2309.15505, section 3.1.

    Arguments:
        levels: L_i, one for each channel of z, each at least 3 (the paper finds 5 the least to use).
    Raises:
        ValueError: levels is empty, or one is below 3.
    """

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        super().__init__()
        if not levels or min(levels) < 3:
            raise ValueError(f"levels must be one or more numbers of at least 3; got {tuple(levels)}")
        self.features, self.codes = len(levels), math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    @full_precision()
    def forward(self, z: Tensor) -> Quantized:
        """Return z_q of z (B, c) or (B, c, h, w), in float32 or wider; raises ValueError for another shape."""
        _check_latent(z, self.features)
        last = rearrange(wide(z), "b c ... -> b ... c")
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        y = half * torch.tanh(last + torch.atanh(offset / half)) - offset
        rounded = y.detach().round() + (y - y.detach())
        indices = ((rounded.detach().long() + self.levels // 2) * self.strides).sum(-1)
        perplexity = _perplexity(_usage(indices, self.codes))
        return Quantized(rearrange(rounded / (self.levels // 2), "b ... c -> b c ..."), indices, perplexity)

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codes (B, c) or (B, c, h, w), in [-1, 1], of indices as in `VQ.lookup`."""
        _check_indices(indices)
        digits = indices[..., None] // self.strides % self.levels
        return rearrange((digits - self.levels // 2) / (self.levels // 2), "b ... c -> b c ...")


def _check(codes: int, features: int, commitment: float, decay: float | None, revive: float) -> None:
    """Raise ValueError for arguments of a VQ that are out of range."""
    if codes < 2 or features < 1:
        raise ValueError(f"codes must be at least 2 and features at least 1; got {codes} and {features}")
    if commitment < 0:
        raise ValueError(f"commitment must not be negative; got {commitment}")
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(f"decay must be None or in [0, 1); got {decay}")
    if not 0 <= revive < 1:
        raise ValueError(f"revive must be in [0, 1), a share of the mean count; got {revive}")


def _check_latent(z: Tensor, features: int) -> None:
    """Raise ValueError unless z is (B, features) or (B, features, h, w)."""
    if z.ndim not in (2, 4) or z.shape[1] != features:
        raise ValueError(f"z must be (B, {features}) or (B, {features}, h, w); got shape {tuple(z.shape)}")


def _check_indices(indices: Tensor) -> None:
    """Raise ValueError unless indices are (B,) or (B, h, w) long."""
    if indices.ndim not in (1, 3) or indices.dtype != torch.int64:
        raise ValueError(
            f"indices must be (B,) or (B, h, w) of dtype int64; got shape {tuple(indices.shape)} of {indices.dtype}"
        )


def _usage(indices: Tensor, codes: int) -> Tensor:
    """Return how often each code is used: (codes,) float. Not bincount, which waits for the device."""
    ones = torch.ones(indices.numel(), device=indices.device)
    return torch.zeros(codes, device=indices.device).index_add_(0, indices.flatten(), ones)


def _perplexity(counts: Tensor) -> Tensor:
    """Return exp(-Σ p log p), p = counts / Σ counts: (K,) to ()."""
    return torch.special.entr(counts / counts.sum()).sum().exp()
