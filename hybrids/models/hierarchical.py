"""The hierarchical variational autoencoder: a ladder of latents, each conditioned on those above."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from components.denoisers import Denoiser
from components.distributions import Delta, Distribution, Normal, kl
from components.ladders import Ladder
from components.precision import full_precision, wide, widest
from components.ranks import mean_over_ranks
from components.schedules import Schedule

from ..terms import Terms
from .diffusion import Diffusion, VariationalBound
from .model import NotOffered
from .parts import log_ratio
from .rates import distortion

__all__ = ["DiffusionLadder", "HierarchicalVAE", "Level"]

LEVEL_METHODS = ("posterior", "prior")


class Level(Protocol):
    """One latent z of a ladder.

    `above` is the output of the level above, a tensor or a tuple; None at the top. x is the encoder's output, or the
    data. The prior of the top has batch size 1, or that of cond. A level may also offer `below(above, z, cond)`, its
    output to the next level, which is otherwise z.
    """

    def posterior(self, above: Any, x: Any, cond: Tensor | None = None) -> Distribution:
        """Return q(z|above, x)."""
        ...

    def prior(self, above: Any, cond: Tensor | None = None) -> Distribution:
        """Return p(z|above)."""
        ...


class HierarchicalVAE(nn.Module):
    """-ELBO = E_q[-log p(x|z_1 … z_L) + Σ_l β KL(q(z_l|above, x) ‖ p(z_l|above))], z_1 the top.

    Sønderby 2016, 1602.02282; learned levels: Vahdat & Kautz 2020, 2007.03898, and Child 2020, 2011.10650. With fixed
    posteriors and a denoiser's priors it is a diffusion model (Kingma 2021, 2107.00630, section 2).

    Arguments:
        ladder: the levels from the top: Modules, or a Module that iterates over levels which share its parameters.
        decoder: output of the lowest level → p(x|z_1 … z_L).
        encoder: x → the input x of all posteriors, evaluated once; None: the identity.
        beta: weight of the rates in `loss`; 1 is the ELBO.
        free_bits: nats of each level that `loss` does not charge, max(free_bits, E_batch KL_l) (Kingma 2016,
            1606.04934).
    Raises ValueError for negative weights, and for a ladder that is empty or holds a module without posterior or prior.
    """

    def __init__(
        self,
        ladder: Iterable[nn.Module] | nn.Module,
        decoder: nn.Module,
        encoder: nn.Module | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
    ) -> None:
        super().__init__()
        if beta < 0 or free_bits < 0:
            raise ValueError(f"beta and free_bits must not be negative; got {beta} and {free_bits}")
        if isinstance(ladder, Ladder):
            raise ValueError(
                "ladder must be the levels; got a Ladder: give HierarchicalVAE(ladder.levels, decoder, ladder.encoder)"
            )
        ladder_module: Any = ladder if isinstance(ladder, nn.Module) else nn.ModuleList(ladder)
        levels = list(ladder_module)
        bad = [type(level).__name__ for level in levels if not all(hasattr(level, name) for name in LEVEL_METHODS)]
        if bad or not levels:
            got = bad[0] if bad else "none"
            raise ValueError(f"ladder must hold levels that offer {' and '.join(LEVEL_METHODS)}; got {got}")
        self.ladder, self.decoder, self.encoder = ladder_module, decoder, encoder
        self.beta, self.free_bits = beta, free_bits

    @classmethod
    def from_diffusion(cls, diffusion: Diffusion) -> "HierarchicalVAE":
        """Return a diffusion in discrete time as a hierarchical VAE with T latents and the same modules.

        Its samples end at the mean of the reconstruction; those of a diffusion whose schedule has noise at t = 0 end at
        x̂. Raises ValueError in continuous time.
        """
        return cls(DiffusionLadder(diffusion), _Reconstruction(diffusion))

    @property
    def grey_levels(self) -> int | None:
        """Grey levels of a likelihood that is discrete on the data's grid, as in VAE; None for a density."""
        return getattr(getattr(self.decoder, "head", self.decoder), "grey_levels", None)

    def forward(
        self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[list[tuple[Distribution, Distribution]], Distribution]:
        """Return (q(z_l|above, x), p(z_l|above)) of each level from the top, at one draw of z; and p(x|z_1 … z_L)."""
        features = x if self.encoder is None else self.encoder(x, cond)
        above, pairs = None, []
        for level in self.ladder:
            q, p = level.posterior(above, features, cond), level.prior(above, cond)
            pairs.append((q, p))
            above = _below(level, above, q.rsample(generator), cond)
        return pairs, self.decoder(above, cond)

    @full_precision()
    def nelbo(
        self,
        x: Tensor,
        pairs: list[tuple[Distribution, Distribution]],
        p: Distribution,
        beta: float = 1.0,
        free_bits: float = 0.0,
    ) -> Terms:
        """Return the negative ELBO from the output of `forward`: distortion = -log p(x|z), rate_1 (of the top), …"""
        rates = {f"rate_{i}": kl(*pair) for i, pair in enumerate(pairs, 1)}
        if free_bits > 0:
            # The mean over the batch is max(free_bits, mean KL_l), and so is its gradient.
            rates = {
                name: torch.where(mean_over_ranks(each.mean()) > free_bits, each, free_bits)
                for name, each in rates.items()
            }
        return Terms(distortion=distortion(p, x)) + beta * Terms(rates)

    def loss(self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Terms:
        """Return what training minimizes: the negative ELBO with β and free bits."""
        pairs, p = self(x, cond, generator)
        return self.nelbo(x, pairs, p, self.beta, self.free_bits)

    def nll(self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Terms:
        """Return the negative ELBO, without β and free bits: an upper bound on -log p(x) in expectation, (B,) nats."""
        pairs, p = self(x, cond, generator)
        return self.nelbo(x, pairs, p)

    def bound(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        strata: int = 128,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Return `nll`, which already sums all levels."""
        return self.nll(x, cond, generator)

    @torch.no_grad()
    @full_precision()
    def log_weight(self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return log p(x, z_1 … z_L) - log q(z_1 … z_L|x) of one draw down the ladder: (B,) nats, float64.

        Its expectation is the ELBO, that of its exp is p(x). Burda 2015, 1509.00519, eq. 8.
        """
        features = x if self.encoder is None else self.encoder(x, cond)
        above, total = None, widest(x.new_zeros(len(x)))
        for level in self.ladder:
            q, p = level.posterior(above, features, cond), level.prior(above, cond)
            z = q.rsample(generator)
            total = total + log_ratio(p, q, z)
            above = _below(level, above, z, cond)
        return total + widest(self.decoder(above, cond).log_prob(x))

    @torch.no_grad()
    def sample(self, n: int, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, *event): the mean of p(x|z_1 … z_L), each z_l drawn from its prior."""
        above = None
        for level in self.ladder:
            p = level.prior(above, cond)
            z = (_repeated(p, n) if above is None else p).rsample(generator)
            above = _below(level, above, z, cond)
        return self.decoder(above, cond).mean

    # Latents.

    def posterior(self, x: Tensor, cond: Tensor | None = None) -> tuple[Distribution, ...]:
        """Return q(z_l|above, x) of each level from the top, given the means of the levels above.

        Raises NotOffered for levels with fixed posteriors.
        """
        if getattr(self.ladder, "fixed", False):
            raise NotOffered(f"the posteriors of a {type(self.ladder).__name__} are fixed, not learned")
        return tuple(self._posteriors(x, cond))

    def _posteriors(self, x: Tensor, cond: Tensor | None) -> Iterator[Distribution]:
        features = x if self.encoder is None else self.encoder(x, cond)
        above = None
        for level in self.ladder:
            q = level.posterior(above, features, cond)
            yield q
            above = _below(level, above, q.mean, cond)

    def encode(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the mean of each level's posterior from the top, given the means of the levels above: (B, *event)."""
        return tuple(q.mean for q in self._posteriors(x, cond))

    def decode(self, z: tuple[Tensor, ...], cond: Tensor | None = None) -> Distribution:
        """Return p(x|z_1 … z_L) for the z of all levels, from the top. Raises ValueError for another number of z."""
        levels = list(self.ladder)
        if len(z) != len(levels):
            raise ValueError(f"z must have {len(levels)} parts, one for each level from the top; got {len(z)}")
        above = None
        for level, each in zip(levels, z):
            above = _below(level, above, each, cond)
        return self.decoder(above, cond)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z_1 … z_L), each z_l at the mean of its posterior."""
        return self.decode(self.encode(x, cond), cond).mean

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks of a ladder that offers them, else the decoder, which stands for learned levels too."""
        return self.ladder.networks() if hasattr(self.ladder, "networks") else {"decoder": self.decoder}


def _below(level: Any, above: Any, z: Tensor, cond: Tensor | None) -> Any:
    """Return the output of a level to the next one."""
    return level.below(above, z, cond) if hasattr(level, "below") else z


def _repeated(p: Distribution, n: int) -> Distribution:
    """Return the prior of the top for n examples, where it has batch size 1."""
    if not isinstance(p, Normal) or len(p.mean) == n:
        return p
    return Normal(p.mean.expand(n, *p.mean.shape[1:]), p.std)


class _Noise:
    """The top level of a diffusion: q(x_1|x) and N(0, σ² I)."""

    def __init__(self, schedule: Schedule, elbo: VariationalBound) -> None:
        self.schedule, self.elbo = schedule, elbo

    def posterior(self, above: None, x: Tensor, cond: Tensor | None = None) -> Normal:
        """Return q(x_1|x)."""
        return self.schedule.marginal(x, 1.0)

    def prior(self, above: None, cond: Tensor | None = None) -> Normal:
        """Return N(0, σ² I), σ = 1, or σ_1 of a variance-exploding schedule."""
        return self.elbo.start(self.schedule)


class _Step:
    """The level of x_s, below x_t: the fixed q(x_s|x_t, x), and the denoiser's p(x_s|x_t)."""

    def __init__(self, denoiser: Denoiser, s: float, t: float) -> None:
        self.denoiser, self.s, self.t = denoiser, s, t

    def posterior(self, above: Tensor, x: Tensor, cond: Tensor | None = None) -> Normal | Delta:
        """Return q(x_s|x_t, x)."""
        return self.denoiser.schedule.posterior(above, wide(x), self.s, self.t)

    def prior(self, above: Tensor, cond: Tensor | None = None) -> Normal | Delta:
        """Return p(x_s|x_t)."""
        return self.denoiser.reverse(above, self.s, self.t, cond)


class _Reconstruction(nn.Module):
    """p(x|x_first) of a diffusion; its denoiser is registered by the ladder only."""

    denoiser: Denoiser

    def __init__(self, diffusion: Diffusion) -> None:
        super().__init__()
        self.elbo: VariationalBound = diffusion.elbo
        object.__setattr__(self, "denoiser", diffusion.denoiser)

    @property
    def grey_levels(self) -> int | None:
        """K, or None for a density."""
        return self.elbo.grey_levels

    def forward(self, x_first: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return p(x|x_first)."""
        return self.elbo.decode(self.denoiser, x_first, cond)


class DiffusionLadder(nn.Module):
    """The T levels of a diffusion in discrete time, from pure noise down to the level of its reconstruction.

    They share the diffusion's denoiser. For a schedule without noise at t = 0 the lowest level is the reconstruction,
    as in Ho 2020, 2006.11239, section 3.3. Raises ValueError for continuous time, which has no levels.
    """

    elbo: VariationalBound
    fixed = True

    def __init__(self, diffusion: Diffusion) -> None:
        super().__init__()
        self.denoiser, self.chain = diffusion.denoiser, diffusion.elbo.chain
        # Not registered here, but by the model's decoder.
        object.__setattr__(self, "elbo", diffusion.elbo)

    def __iter__(self) -> Iterator[Level]:
        yield _Noise(self.denoiser.schedule, self.elbo)
        for s, t in reversed(self.chain):
            yield _Step(self.denoiser, s, t)

    def __len__(self) -> int:
        return 1 + len(self.chain)

    def networks(self) -> dict[str, nn.Module]:
        """Return the denoiser's backbone."""
        return {"backbone": self.denoiser.backbone}
