"""Adversarially trained diffusion: a diffusion of few steps, each of them a conditional GAN."""

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

    The real pair is x_s ~ q(x_s|x), x_t ~ q(x_t|x_s). The fake has the same x_t and x'_s ~ q(x_s|x_t, x̂), where
    x̂ = G(x_t, z, t), z ~ N(0, I): since z makes x̂ many-valued, p(x_s|x_t) need not be Gaussian, and a few large steps
    do. Xiao 2021, 2112.07804, section 3. At the optimal D the minimax value is 2 E_t,x_t JSD(q(x_s|x_t), p(x_s|x_t)) -
    log 4. One step is a GAN on (x, noise); many, without z and with a squared error for the critic, are a DDPM that
    predicts x.

    It is two players: the generator moves `denoiser` on `loss`, the critic moves `critic` on `judge`; each draws its
    own t and x_t. Neither loss has a gradient in x. It is implicit: there is no likelihood, and so it is no prior that
    scores z, but `sample` draws from it like from one.

    Arguments:
        denoiser: G and the schedule, with the small variance; its backbone takes z (components.backbones). Its clip
            would stop gradients wherever it acts.
        critic: its discriminator takes given = x_t and, for timesteps > 1, t; cond too, where there is one. R1 acts on
            x_s only.
        shape: of one x.
        timesteps: T; 1, 2, 4 or 8 in the paper.
        latent: the dimensions of z; None: G is a function of x_t and t alone.
    Raises ValueError for timesteps or latent below 1, for a schedule that does not start clean or another variance
    than the small, and for networks that refuse their inputs, which are tried out on zeros; TypeError for a
    discriminator in the place of its critic.
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
                f"denoiser has a {type(denoiser.schedule).__name__} with noise at t = 0; the last step is G's x̂ "
                "itself: give a schedule that starts clean, such as VariancePreservingSchedule"
            )
        if denoiser.variance != "small":
            raise ValueError(
                f"denoiser must have the variance 'small', that of q(x_s|x_t, x̂); got {denoiser.variance!r}"
            )
        if denoiser.self_condition:
            raise ValueError("denoiser must not be self-conditioned: its steps hand no estimate on")
        self.denoiser, self.critic = denoiser, critic
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.timesteps, self.latent = timesteps, latent
        self._try()

    @torch.no_grad()
    def _try(self) -> None:
        """Refuse networks that do not fit, before anything is trained."""
        place = next(self.parameters(), torch.zeros(()))
        x_t, t = place.new_zeros(2, *self.shape), widest(place.new_ones(2))
        with evaluating(self):
            self._call(x_t, t)

    def _call(self, x_t: Tensor, t: Tensor) -> None:
        """Call both networks as training does (raises ValueError, naming the one that does not fit)."""
        try:
            use = f"denoiser is called for x of {self.shape} by G(x_t, t{'' if self.latent is None else ', z'})"
            self.denoiser(x_t, t, **self._latent(x_t))
            use = f"critic is called as D(x, {', '.join(self._given(x_t, t, None))}), timesteps={self.timesteps}"
            self.critic.discriminator(x_t, **self._given(x_t, t, None))
        except (TypeError, ValueError, RuntimeError) as error:
            part = self.denoiser.backbone if use.startswith("denoiser") else self.critic.discriminator
            raise ValueError(f"{use}; its {type(part).__name__} does not fit: {error}") from error

    def _latent(self, x_t: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return z ~ N(0, I) for each x_t, by name, or nothing."""
        if self.latent is None:
            return {}
        return {"z": torch.randn(len(x_t), self.latent, generator=generator, device=x_t.device, dtype=x_t.dtype)}

    def _given(self, x_t: Tensor, t: Tensor, cond: Any) -> dict[str, Any]:
        """Return the discriminator's inputs beside x_s."""
        given = {"given": x_t}
        if self.timesteps > 1:
            given["t"] = t
        return given if cond is None else {**given, "cond": cond}

    def _times(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return a level (s, t) for each example: (B,), (B,), of which s is 0 at the first."""
        i = widest(torch.randint(self.timesteps, (len(x),), device=x.device, generator=generator))
        return i / self.timesteps, (i + 1) / self.timesteps

    @torch.no_grad()
    def _pair(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x_s ~ q(x_s|x) and x_t ~ q(x_t|x_s) (B, *shape), s and t (B,)."""
        s, t = self._times(x, generator)
        x_s, _ = self.denoiser.schedule.corrupt(x, s, generator)
        return x_s, self.denoiser.schedule.transition(x_s, s, t).rsample(generator), s, t

    def _fake(self, x_t: Tensor, s: Tensor, t: Tensor, cond: Any, generator: torch.Generator | None) -> Tensor:
        """Return x'_s ~ p(x_s|x_t) (B, *shape), differentiable in G's parameters; where s = 0 it is x̂ itself."""
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
        """Raises NotOffered: there is none."""
        raise implicit(self)

    @torch.no_grad()
    def sample(self, n: int, cond: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, *shape): noise, then T draws from p(x_s|x_t), the last of which is x̂ itself."""
        return self.decode(self.noise(n, generator), cond).mean

    def noise(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Draw all the noise of n samples, each N(0, I), in its order: that of x_1, and of each step z and x_s.

        x_1 and x_s are (n, *shape), z (n, latent) where G takes it; the last step ends at x̂ and has no noise of x_s.
        """
        device = device_of(self)
        sizes = [self.shape]
        for i in reversed(range(self.timesteps)):
            sizes += [] if self.latent is None else [(self.latent,)]
            sizes += [self.shape] if i else []
        return tuple(torch.randn(n, *size, generator=generator, device=device) for size in sizes)

    def decode(self, z: tuple[Tensor, ...], cond: Any = None) -> Delta:
        """Return the sample that is made of all its noise, as `noise` draws it: differentiable in it.

        Raises ValueError for another number of parts.
        """
        if len(z) != (many := self.timesteps * (1 if self.latent is None else 2)):
            raise ValueError(f"z must be of {many} parts, as noise(n) draws them; got {len(z)}")
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
