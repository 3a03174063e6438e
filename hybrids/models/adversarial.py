"""Adversarially trained diffusion: a diffusion with few steps, each of which is a conditional GAN."""

from typing import Any

import torch
from torch import Tensor, nn

from components.denoisers import Denoiser
from components.distributions import Delta, Normal
from components.precision import widest

from ..critic import Critic, check_critic
from ..modes import device_of, evaluating
from ..terms import Terms
from .model import implicit

__all__ = ["AdversarialDiffusion"]


class AdversarialDiffusion(nn.Module):
    """min_G max_D of a game on pairs, at T levels s = (i-1)/T, t = i/T: D(x_s, x_t, t) against D(x'_s, x_t, t).

    The real pair is x_s ~ q(x_s|x), x_t ~ q(x_t|x_s). The fake pair has the same x_t and x'_s ~ q(x_s|x_t, x̂),
    x̂ = G(x_t, z, t), z ~ N(0, I): through z, p(x_s|x_t) need not be Gaussian, so that a few large steps suffice. Xiao
    2021, 2112.07804, section 3. At the optimal D the minimax value is 2 E_t,x_t JSD(q(x_s|x_t), p(x_s|x_t)) - log 4.
    With one step it is a GAN on (x, noise); with many steps, without z, and with a squared error instead of the critic,
    it is a DDPM that predicts x.

    It has two players: the generator moves `denoiser` on `loss`, the critic moves `critic` on `judge`; each draws its
    own t and x_t. Neither loss has a gradient in x. The model is implicit: it has no likelihood, so it can be sampled
    as a second stage, but cannot be the prior of a VAE.

    Arguments:
        denoiser: G and the schedule, with variance "small"; its backbone takes z (components.backbones). It should not
            clip x̂: the gradient is 0 at clipped values.
        critic: its discriminator takes given = x_t and, for timesteps > 1, t; with a condition also cond. R1 is with
            respect to x_s only.
        shape: of one x.
        timesteps: T; 1, 2, 4 or 8 in the paper.
        latent: the dimension of z; None: G is a function of x_t and t alone.
    Raises ValueError for timesteps or latent below 1, for a schedule with noise at t = 0, for another variance, and for
    networks that fail on these inputs, in a trial on zeros; TypeError for a discriminator instead of a Critic.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        critic: Critic,
        shape: int | tuple[int, ...],
        timesteps: int = 4,
        latent: int | None = 64,
    ) -> None:
        super().__init__()
        check_critic(critic)
        if timesteps < 1:
            raise ValueError(f"timesteps must be at least 1; got {timesteps}")
        if latent is not None and latent < 1:
            raise ValueError(f"latent must be at least 1, or None for a generator without z; got {latent}")
        if not denoiser.schedule.noiseless(0.0):
            raise ValueError(
                f"denoiser must have a schedule without noise at t = 0, since the last step returns x̂, such as "
                f"VariancePreservingSchedule; got a {type(denoiser.schedule).__name__} with noise there"
            )
        if denoiser.variance != "small":
            raise ValueError(
                f"denoiser must have the variance 'small', that of q(x_s|x_t, x̂); got {denoiser.variance!r}"
            )
        if denoiser.self_condition:
            raise ValueError("denoiser must have self_condition=False: no estimate is passed between steps; got True")
        self.denoiser, self.critic = denoiser, critic
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.timesteps, self.latent = timesteps, latent
        self._try()

    @torch.no_grad()
    def _try(self) -> None:
        """Call the networks once on zeros, so that incompatible ones raise before training."""
        like = next(self.parameters(), torch.zeros(()))
        x_t, t = like.new_zeros(2, *self.shape), widest(like.new_ones(2))
        with evaluating(self):
            self._call(x_t, t)

    def _call(self, x_t: Tensor, t: Tensor) -> None:
        """Call both networks as in training. Raises ValueError, naming the network that fails."""
        try:
            use = f"denoiser is called for x of {self.shape} by G(x_t, t{'' if self.latent is None else ', z'})"
            self.denoiser(x_t, t, **self._latent(x_t))
            use = f"critic is called as D(x, {', '.join(self._given(x_t, t, None))}), timesteps={self.timesteps}"
            self.critic.discriminator(x_t, **self._given(x_t, t, None))
        except (TypeError, ValueError, RuntimeError) as error:
            part = self.denoiser.backbone if use.startswith("denoiser") else self.critic.discriminator
            raise ValueError(f"{use}; its {type(part).__name__} does not fit: {error}") from error

    def _latent(self, x_t: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return {"z": z}, z ~ N(0, I) for each x_t, or {} without z."""
        if self.latent is None:
            return {}
        return {"z": torch.randn(len(x_t), self.latent, generator=generator, device=x_t.device, dtype=x_t.dtype)}

    def _given(self, x_t: Tensor, t: Tensor, cond: Any) -> dict[str, Any]:
        """Return the discriminator's inputs other than x_s."""
        given = {"given": x_t}
        if self.timesteps > 1:
            given["t"] = t
        return given if cond is None else {**given, "cond": cond}

    def _times(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw a level (s, t) for each example: (B,), (B,); s = 0 at the first level."""
        i = widest(torch.randint(self.timesteps, (len(x),), device=x.device, generator=generator))
        return i / self.timesteps, (i + 1) / self.timesteps

    @torch.no_grad()
    def _pair(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw x_s ~ q(x_s|x) and x_t ~ q(x_t|x_s) (B, *shape); return them with s and t (B,)."""
        s, t = self._times(x, generator)
        x_s, _ = self.denoiser.schedule.corrupt(x, s, generator)
        return x_s, self.denoiser.schedule.transition(x_s, s, t).rsample(generator), s, t

    def _fake(self, x_t: Tensor, s: Tensor, t: Tensor, cond: Any, generator: torch.Generator | None) -> Tensor:
        """Draw x'_s ~ p(x_s|x_t) (B, *shape), differentiable in G's parameters; at s = 0 it is x̂."""
        return self.denoiser.reverse(x_t, s, t, cond, **self._latent(x_t, generator)).rsample(generator)

    def loss(self, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> Terms:
        """Return the generator's objective on x (B, *shape): the term adversarial."""
        x_s, x_t, s, t = self._pair(x, generator)
        return self.critic.fool(self._fake(x_t, s, t, cond, generator), real=x_s, **self._given(x_t, t, cond))

    def judge(
        self, x: Tensor, cond: Any = None, step: int | None = None, generator: torch.Generator | None = None
    ) -> Terms:
        """Return the critic's objective: adversarial, penalties, logits."""
        x_s, x_t, s, t = self._pair(x, generator)
        with torch.no_grad():
            fake = self._fake(x_t, s, t, cond, generator)
        return self.critic.tell(x_s, fake, step=step, **self._given(x_t, t, cond))

    def log_prob(self, x: Tensor, cond: Any = None) -> Tensor:
        """Raise NotOffered: the model is implicit."""
        raise implicit(self)

    @torch.no_grad()
    def sample(self, n: int, cond: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw n samples (n, *shape): x_1, then T draws from p(x_s|x_t), the last of which is x̂."""
        return self.decode(self.noise(n, generator), cond).mean

    def noise(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Draw all the noise of n samples from N(0, I), in order of use: of x_1, then in each step z and that of x_s.

        The noise of x_1 and x_s is (n, *shape), z is (n, latent); the last step has no noise of x_s.
        """
        device = device_of(self)
        sizes = [self.shape]
        for i in reversed(range(self.timesteps)):
            sizes += [] if self.latent is None else [(self.latent,)]
            sizes += [self.shape] if i else []
        return tuple(torch.randn(n, *size, generator=generator, device=device) for size in sizes)

    def decode(self, z: tuple[Tensor, ...], cond: Any = None) -> Delta:
        """Return the sample as a function of all its noise, which is in the format of `noise`; differentiable.

        Raises ValueError for another number of parts.
        """
        if len(z) != (count := self.timesteps * (1 if self.latent is None else 2)):
            raise ValueError(f"z must have {count} parts, as noise(n) returns; got {len(z)}")
        parts = iter(z)
        x = self.denoiser.schedule.terminal_std * next(parts)
        for i in reversed(range(self.timesteps)):
            given = {} if self.latent is None else {"z": next(parts)}
            p = self.denoiser.reverse(x, i / self.timesteps, (i + 1) / self.timesteps, cond, **given)
            x = p.mean + p.std * next(parts) if isinstance(p, Normal) else p.mean
        return Delta(x)

    def networks(self) -> dict[str, nn.Module]:
        """Return the denoiser's backbone."""
        return {"backbone": self.denoiser.backbone}
