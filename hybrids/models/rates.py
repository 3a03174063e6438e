"""The two terms of an ELBO: the distortion -log p(x|z), and the rate of a latent under any prior."""

from typing import Any

import torch
from torch import Tensor, nn

from components.bottlenecks import Quantized
from components.distributions import Delta, Distribution, Normal, kl_per_dimension, per_example
from components.precision import full_precision
from components.ranks import mean_over_ranks

from ..terms import Terms
from .parts import generator_argument

__all__ = ["StandardNormal", "check_latent", "distortion", "rate", "shape_of"]


class StandardNormal(nn.Module):
    """N(0, I) over (B, *shape), the fixed prior.

    Arguments:
        shape: of one z.
    """

    zero: Tensor

    def __init__(self, shape: tuple[int, ...] | int) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        # A buffer, so that samples are drawn on the model's device.
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    @property
    def distribution(self) -> Normal:
        """N(0, I) over (1, *shape)."""
        return Normal(self.zero.expand(1, *self.shape), self.zero + 1)

    def loss(self, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> Terms:
        """Return the same as `nll`."""
        return self.nll(x, cond)

    def nll(self, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> Terms:
        """Return -log N(x; 0, I): (B,) nats, exact."""
        return Terms(nll=-self.distribution.log_prob(x))

    def bound(self, x: Tensor, cond: Any = None, strata: int = 128, generator: torch.Generator | None = None) -> Terms:
        """Return the same as `nll`."""
        return self.nll(x, cond)

    def log_weight(self, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Return log N(x; 0, I): (B,) nats, exact."""
        return self.distribution.log_prob(x)

    def log_prob(self, x: Tensor, cond: Any = None) -> Tensor:
        """Return the same as `log_weight`."""
        return self.distribution.log_prob(x)

    def networks(self) -> dict[str, nn.Module]:
        """Return {}: sampling calls no network."""
        return {}

    def sample(self, n: int, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, *shape)."""
        return torch.randn(n, *self.shape, generator=generator, device=self.zero.device, dtype=self.zero.dtype)


def shape_of(model: Any) -> tuple[int, ...] | None:
    """Return the shape of a model's samples, or None where it has no attribute `shape`."""
    shape = getattr(model, "shape", None)
    return None if shape is None else tuple(shape)


def check_latent(z: Tensor, prior: Any) -> None:
    """Raise ValueError for a prior of another shape than z, which would be broadcast."""
    shape = shape_of(prior)
    if shape is not None and shape != z.shape[1:]:
        raise ValueError(f"prior must be over z of shape {tuple(z.shape[1:])}; {type(prior).__name__} is over {shape}")


def distortion(p: Distribution, x: Tensor) -> Tensor:
    """Return -log p(x|z): (B,) nats. Raises TypeError for a Delta, which has no density."""
    if isinstance(p, Delta):
        raise TypeError(
            "decoder must return a likelihood; got Delta, a point, which has none: give it a head such as NormalHead "
            "instead of DeltaHead"
        )
    return -p.log_prob(x)


@full_precision()
def rate(
    q: Distribution | Quantized,
    z: Tensor,
    prior: Any,
    free_bits: float = 0.0,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Terms:
    """Return E_q[log q(z|x) - log p(z)] = KL(q(z|x) ‖ p(z)), in nats.

    For a Normal q and StandardNormal it is in closed form, term `rate`; with free bits Σ_j max(free_bits, E_batch KL_j)
    over the batch of all ranks (Kingma 2016, 1606.04934, section C.8). For any other prior it is prior.nll(z) - H[q],
    terms `prior.*` and `posterior_entropy`, with gradients in q (through z) and in the prior. For codes it is the
    bottleneck's losses and `codes/perplexity` (weight 0); a prior of codes is fitted afterwards, and has no term here.

    Arguments:
        q: q(z|x), or the codes of a bottleneck.
        z: a reparameterized draw from q (B, *latent).
        prior: a Model of z.
        free_bits: in nats per dimension.
        cond, generator: passed to a prior other than StandardNormal.
    Raises ValueError for free bits without a closed form, and for a prior of another shape than z.
    """
    if isinstance(q, Quantized):
        if free_bits > 0:
            raise ValueError(f"free_bits needs a KL in closed form; got codes of a bottleneck and {free_bits}")
        return Terms({**q.losses, "codes/perplexity": (0.0, q.perplexity)})
    check_latent(z, prior)
    if isinstance(q, Normal) and isinstance(prior, StandardNormal):
        each = kl_per_dimension(q, prior.distribution)
        if free_bits > 0:
            enough = mean_over_ranks(each.mean(0)) > free_bits
            # The mean over the batch is max(free_bits, mean KL_j), and so is its gradient.
            each = torch.where(enough, each, free_bits)
        return Terms(rate=per_example(each))
    if free_bits > 0:
        raise ValueError(f"free_bits needs a KL in closed form: StandardNormal as prior; got {type(prior).__name__}")
    nll = prior.nll(z, cond, **generator_argument(generator))
    return nll.under("prior") + Terms(posterior_entropy=(-1.0, q.entropy()))
