"""The hierarchical variational autoencoder: a ladder of latents, each given what is above; a diffusion model is one."""

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

OFFERED = ("posterior", "prior")


class Level(Protocol):
    """One latent z of a ladder. `above` is what the level above left, a tensor or a tuple; None at the top.

    x is what the model's encoder made of the data, or the data. The top's prior is over (1, *event), or over as many
    as cond has. A level may also offer `below(above, z, cond)`, what it leaves to the next one: else that is z itself.
    """

    def posterior(self, above: Any, x: Any, cond: Tensor | None = None) -> Distribution:
        """Return q(z|above, x)."""
        ...

    def prior(self, above: Any, cond: Tensor | None = None) -> Distribution:
        """Return p(z|above)."""
        ...


class HierarchicalVAE(nn.Module):
    """-ELBO = E_q[-log p(x|z_1 … z_L) + Σ_l β KL(q(z_l|above, x) ‖ p(z_l|above))], z_1 the top.

    Sønderby 2016, 1602.02282; learned levels are those of Vahdat & Kautz 2020, 2007.03898, and Child 2020, 2011.10650;
    fixed posteriors and a denoiser's priors make it a diffusion model (Kingma 2021, 2107.00630, section 2).

    Arguments:
        ladder: the levels from the top: Modules, or a Module that iterates over levels which share its parameters.
        decoder: what the lowest level leaves → p(x|z_1 … z_L).
        encoder: x → what every posterior sees as x, run once; None: x itself.
        beta: weight of the rates in `loss`; 1 is the ELBO.
        free_bits: nats a level that `loss` leaves uncharged, max(free_bits, E_batch KL_l) (Kingma 2016, 1606.04934).
    Raises ValueError for negative weights and for a ladder without levels, or of what are none.
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
            raise ValueError("ladder must be its levels; give HierarchicalVAE(ladder.levels, decoder, ladder.encoder)")
        held: Any = ladder if isinstance(ladder, nn.Module) else nn.ModuleList(ladder)
        levels = list(held)
        bad = [type(level).__name__ for level in levels if not all(hasattr(level, name) for name in OFFERED)]
        if bad or not levels:
            got = bad[0] if bad else "none"
            raise ValueError(f"ladder must hold levels, which offer {' and '.join(OFFERED)}; got {got}")
        self.ladder, self.decoder, self.encoder = held, decoder, encoder
        self.beta, self.free_bits = beta, free_bits

    @classmethod
    def from_diffusion(cls, diffusion: Diffusion) -> "HierarchicalVAE":
        """Return the same model of p(x), by the same modules, as T latents.

        Its samples are the chain's: they end at the mean of the reconstruction, where those of a diffusion whose
        schedule has noise at t = 0 end at x̂. Raises ValueError in continuous time.
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
        """Return the negative ELBO of what `forward` returned: distortion = -log p(x|z), rate_1 (the top's), …"""
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
        """Return the negative ELBO, β = 1 and no free bits: above -log p(x) in expectation. (B,) nats."""
        pairs, p = self(x, cond, generator)
        return self.nelbo(x, pairs, p)

    def bound(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        strata: int = 128,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Return the same as `nll`, which sums every level."""
        return self.nll(x, cond, generator)

    @torch.no_grad()
    @full_precision()
    def log_weight(self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return log p(x, z_1 … z_L) - log q(z_1 … z_L|x) of one draw down the ladder: (B,) nats, float64.

        Its mean is the ELBO, the mean of its exp is p(x). Burda 2015, 1509.00519, eq. 8.
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
        """Draw (n, *event): z drawn from the priors down the ladder, then the mean of p(x|z_1 … z_L)."""
        above = None
        for level in self.ladder:
            p = level.prior(above, cond)
            z = (_repeated(p, n) if above is None else p).rsample(generator)
            above = _below(level, above, z, cond)
        return self.decoder(above, cond).mean

    # Latents.

    def posterior(self, x: Tensor, cond: Tensor | None = None) -> tuple[Distribution, ...]:
        """Return q(z_l|above, x) of each level from the top, each given the means above.

        Raises NotOffered for levels whose posterior is fixed.
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
        """Return the mean of each level's posterior from the top, given the means above: (B, *event) each."""
        return tuple(q.mean for q in self._posteriors(x, cond))

    def decode(self, z: tuple[Tensor, ...], cond: Tensor | None = None) -> Distribution:
        """Return p(x|z_1 … z_L) of the levels' z from the top. Raises ValueError for another number of levels."""
        levels = list(self.ladder)
        if len(z) != len(levels):
            raise ValueError(f"z must be of {len(levels)} levels, from the top; got {len(z)}")
        above = None
        for level, each in zip(levels, z):
            above = _below(level, above, each, cond)
        return self.decoder(above, cond)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z_1 … z_L), each z_l at the mean of its posterior."""
        return self.decode(self.encode(x, cond), cond).mean

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks of a ladder that offers them, else the decoder: learned levels count as one with it."""
        return self.ladder.networks() if hasattr(self.ladder, "networks") else {"decoder": self.decoder}


def _below(level: Any, above: Any, z: Tensor, cond: Tensor | None) -> Any:
    """Return what a level leaves to the next one."""
    return level.below(above, z, cond) if hasattr(level, "below") else z


def _repeated(p: Distribution, n: int) -> Distribution:
    """Return n independent copies of the top's prior, where there is one for all."""
    if not isinstance(p, Normal) or len(p.mean) == n:
        return p
    return Normal(p.mean.expand(n, *p.mean.shape[1:]), p.std)


class _Noise:
    """The top of a diffusion: q(x_1|x) and N(0, σ² I)."""

    def __init__(self, schedule: Schedule, elbo: VariationalBound) -> None:
        self.schedule, self.elbo = schedule, elbo

    def posterior(self, above: None, x: Tensor, cond: Tensor | None = None) -> Normal:
        """Return q(x_1|x)."""
        return self.schedule.marginal(x, 1.0)

    def prior(self, above: None, cond: Tensor | None = None) -> Normal:
        """Return N(0, σ² I), σ = 1 or where variance explodes σ_1."""
        return self.elbo.start(self.schedule)


class _Step:
    """x_s below x_t: q(x_s|x_t, x), which is fixed, and the denoiser's p(x_s|x_t)."""

    def __init__(self, denoiser: Denoiser, s: float, t: float) -> None:
        self.denoiser, self.s, self.t = denoiser, s, t

    def posterior(self, above: Tensor, x: Tensor, cond: Tensor | None = None) -> Normal | Delta:
        """Return q(x_s|x_t, x)."""
        return self.denoiser.schedule.posterior(above, wide(x), self.s, self.t)

    def prior(self, above: Tensor, cond: Tensor | None = None) -> Normal | Delta:
        """Return p(x_s|x_t)."""
        return self.denoiser.reverse(above, self.s, self.t, cond)


class _Reconstruction(nn.Module):
    """p(x|x_first) of a diffusion, by the denoiser of its ladder, which is not registered twice."""

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

    All share the diffusion's denoiser. The lowest KL of a schedule that starts clean is the reconstruction's, as in Ho
    2020, 2006.11239, section 3.3. Raises ValueError for continuous time, which has no levels.
    """

    elbo: VariationalBound
    fixed = True

    def __init__(self, diffusion: Diffusion) -> None:
        super().__init__()
        self.denoiser, self.chain = diffusion.denoiser, diffusion.elbo.chain
        # the decoder of the model registers it
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
