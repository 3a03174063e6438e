"""The variational autoencoder, with any prior that has a likelihood."""

from typing import Any

import torch
from torch import Tensor, nn

from components.distributions import Distribution
from components.precision import widest
from components.samplers import ProbabilityFlow

from ..terms import Terms
from .model import NotOffered
from .parts import distribution_of, generator_argument, inner_networks, mean_or_draw, prior_log_weight
from .rates import StandardNormal, check_latent, distortion, rate

__all__ = ["VAE"]


class VAE(nn.Module):
    """-ELBO = E_q[-log p(x|z)] + β KL(q(z|x) ‖ p(z)). Kingma & Welling 2013, 1312.6114, eq. 3; Higgins 2017 for β.

    Arguments:
        encoder: x → q(z|x).
        decoder: z → p(x|z).
        prior: a Model of z, such as StandardNormal or a Diffusion, with which this is latent diffusion. It receives the
            same cond as encoder and decoder; StandardNormal ignores it.
        beta: weight of the rate in `loss`; 1 is the ELBO.
        free_bits: nats of each latent dimension that `loss` does not charge; StandardNormal only.
    Raises ValueError for negative weights, and for a prior without nll or sample.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, prior: Any, beta: float = 1.0, free_bits: float = 0.0
    ) -> None:
        super().__init__()
        if beta < 0 or free_bits < 0:
            raise ValueError(f"beta and free_bits must not be negative; got {beta} and {free_bits}")
        if not all(hasattr(prior, name) for name in ("nll", "sample")):
            raise ValueError(f"prior must offer nll and sample; {type(prior).__name__} is implicit: it has no nll")
        self.encoder, self.decoder = encoder, decoder
        self.prior: Any = prior
        self.beta, self.free_bits = beta, free_bits

    @property
    def grey_levels(self) -> int | None:
        """Grey levels of a likelihood that is discrete on the data's grid; None for a density."""
        return getattr(getattr(self.decoder, "head", None), "grey_levels", None)

    def forward(
        self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Distribution, Tensor, Distribution]:
        """Return q(z|x), one draw z from it, and p(x|z)."""
        q = self.posterior(x, cond)
        z = q.rsample(generator)
        return q, z, self.decode(z, cond)

    def nelbo(
        self,
        x: Tensor,
        q: Distribution,
        z: Tensor,
        p: Distribution,
        beta: float = 1.0,
        free_bits: float = 0.0,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Return the negative ELBO from the output of `forward`: distortion = -log p(x|z), and the terms of `rate`.

        cond and generator are passed to the prior. Raises TypeError for p without a density; further as `rate`.
        """
        return Terms(distortion=distortion(p, x)) + beta * rate(q, z, self.prior, free_bits, cond, generator)

    def loss(self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Terms:
        """Return what training minimizes: the negative ELBO with β and free bits."""
        q, z, p = self(x, cond, generator)
        return self.nelbo(x, q, z, p, self.beta, self.free_bits, cond, generator)

    def nll(self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Terms:
        """Return the negative ELBO, without β and free bits: an upper bound on -log p(x) in expectation, (B,) nats."""
        q, z, p = self(x, cond, generator)
        return self.nelbo(x, q, z, p, cond=cond, generator=generator)

    def bound(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        strata: int = 128,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Return `nll` with all levels of the prior summed; strata is the number of times in continuous time."""
        q, z, p = self(x, cond, generator)
        if isinstance(self.prior, StandardNormal):
            return self.nelbo(x, q, z, p)
        check_latent(z, self.prior)
        prior = self.prior.bound(z, cond, strata, **generator_argument(generator)).under("prior")
        return Terms(distortion=distortion(p, x)) + prior + Terms(posterior_entropy=(-1.0, q.entropy()))

    @torch.no_grad()
    def log_weight(self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return log p(x|z) + log p(z) - log q(z|x) of one z ~ q: (B,) nats, float64.

        Its expectation is the ELBO, that of its exp is p(x). Burda 2015, 1509.00519, eq. 8. Raises ValueError for a
        prior without `log_weight`.
        """
        q, z, p = self(x, cond, generator)
        check_latent(z, self.prior)
        return prior_log_weight(self.prior, z, cond, generator) - widest(distortion(p, x)) - widest(q.log_prob(z))

    @torch.no_grad()
    def sample(self, n: int, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, *event): the mean of p(x|z), z ~ p(z)."""
        z = self.prior.sample(n, cond, generator)
        return mean_or_draw(self.decode(z, cond), generator)

    def flow(self, **settings: Any) -> ProbabilityFlow:
        """Return the probability flow of the prior. Raises NotOffered for a prior without one."""
        if not hasattr(self.prior, "flow"):
            raise NotOffered(f"flow needs a Diffusion, or a VAE whose prior is one; got {type(self.prior).__name__}")
        return self.prior.flow(**settings)

    flow_dequantization = "latent"
    """The flow is of z ~ q(z|x), so that `log_prob` is a bound in expectation."""

    @torch.no_grad()
    def log_prob(
        self,
        x: Tensor,
        cond: Any = None,
        flow: ProbabilityFlow | None = None,
        dequantization: str = "latent",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return log p(x|z) + log p(z) - log q(z|x), z ~ q(z|x): (B,) nats, a lower bound on log p(x) in expectation.

        Arguments:
            flow: of the prior; None: the prior's default.
            dequantization: ignored.
        Raises NotOffered for a prior without log_prob.
        """
        if not hasattr(self.prior, "log_prob"):
            raise NotOffered(f"log_prob needs a prior that offers it; {type(self.prior).__name__} does not")
        q, z, p = self(x, cond, generator)
        log_prior = self.prior.log_prob(z, cond, **({} if flow is None else {"flow": flow}))
        return p.log_prob(x).double() + log_prior - q.log_prob(z).double()

    # Latents.

    def posterior(self, x: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return q(z|x)."""
        return distribution_of(self.encoder, "encoder", x, cond)

    def encode(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the mean of q(z|x): (B, *latent)."""
        return self.posterior(x, cond).mean

    def decode(self, z: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return p(x|z)."""
        return distribution_of(self.decoder, "decoder", z, cond)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z) at the mean of q(z|x)."""
        return mean_or_draw(self.decode(self.encode(x, cond), cond))

    def networks(self) -> dict[str, nn.Module]:
        """Return the decoder, and the networks of the prior, with its decoder as inner_decoder."""
        return {**inner_networks(self.prior), "decoder": self.decoder}
