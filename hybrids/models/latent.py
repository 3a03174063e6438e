"""Latent models: a first stage that encodes and decodes, and any model of its latents as second stage."""

from typing import Any

import torch
from torch import Tensor, nn

from components.conditions import drop
from components.distributions import Delta, Distribution, Normal
from components.ranks import shared
from components.samplers import Sampler

from ..batch import Batch, unpack
from ..data.source import Data
from ..modes import device_of, evaluating, own_random_numbers
from ..terms import Terms
from .cache import draw_latents, encode_data, mean_and_std
from .model import offered
from .parts import generator_argument, inner_networks, mean_or_draw
from .rates import shape_of
from .vae import VAE

__all__ = ["LatentModel"]


class LatentModel(nn.Module):
    """x = decode(z), z = shift + w / scale, w ~ second stage: latent diffusion and related models.

    Rombach et al. 2022, 2112.10752. The second stage models w = (z - shift) scale, of mean 0 and variance 1 over the
    training set: `cache` computes shift and scale = 1/std after the training of the first stage, for each channel (each
    dimension of a vector) or over all; they are buffers, saved with the weights. (Rombach's scale is that of one batch,
    without shift.)

        model = LatentModel(autoencoder, Diffusion(denoiser, shape=(4, 4, 4)))
        stored = model.cache(data)                                   # after the first stage: encoded once, measured
        player = Player(model.latent_loss, moves=[model.second])     # on stored.batches(64, labels=True)

    Arguments:
        first: offers posterior(x) and decode(z), both to a Distribution, and `latent`: `Autoencoder`. It is frozen.
        second: any model of w that offers loss(w, cond) and sample(n, cond, generator): Diffusion, a GAN.
        condition: labels → the second stage's cond, such as `components.text.Captioned`; None: the identity.
        num_classes: of labels as cond; the null class.
        label_dropout: share of examples whose condition `latent_loss` drops, for classifier-free guidance.
        per_channel: one shift and scale for each channel; else one for all.
    Raises ValueError, naming both, for a second stage of another shape than the first stage's latents.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        first: nn.Module,
        second: nn.Module,
        condition: nn.Module | None = None,
        num_classes: int | None = None,
        label_dropout: float = 0.1,
        per_channel: bool = True,
    ) -> None:
        super().__init__()
        self.latent: tuple[int, ...] = tuple(first.latent)  # type: ignore[arg-type]
        self.first: Any = first
        self.second: Any = second
        self.condition, self.num_classes, self.label_dropout = condition, num_classes, label_dropout
        self.per_channel = per_channel
        ones = [1] * (len(self.latent) - 1)
        size = (self.latent[0], *ones) if per_channel else (1, *ones)
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        _check_fit(first, second, self.latent)

    # Training of the second stage.

    @torch.no_grad()
    def cache(self, data: Data) -> Data:
        """Encode the training set, set shift and scale from it, and return the latents as a data set.

        Every process calls it, and encodes the whole set; shift and scale are those of the first process.
        Raises ValueError where a channel is constant over all examples.
        """
        with evaluating(self.first):
            stored = encode_data(data, self.first.posterior, self.shift.device)
        assert stored.x is not None
        mean, std = mean_and_std(stored.x, self.per_channel)
        if not (std > 1e-6).all():
            raise ValueError(f"latents must vary; channel {int(std.flatten().argmin())} is constant over all examples")
        self.shift.copy_(shared(mean.to(self.shift)))
        self.scale.copy_(shared((1 / std).to(self.scale)))
        return stored

    def latent_loss(self, batch: Batch, generator: torch.Generator | None = None, **given: Any) -> Terms:
        """Return the second stage's loss on a batch of `cache`.

        Arguments:
            generator: of all random numbers.
            given: further arguments of that loss.
        """
        return self.second.loss(*self.latent_batch(batch, generator), **generator_argument(generator), **given)

    def latent_batch(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Any]:
        """Return the second stage's batch: w (B, *latent), and conditions, some dropped, or None.

        Arguments:
            batch: of `cache`: (B, 1 or 2, *latent), from which z is drawn here, or a mapping with labels as cond.
        Raises ValueError for another shape, such as images.
        """
        stored, labels = unpack(batch)
        if stored.shape[2:] != self.latent or stored.shape[1] > 2:
            raise ValueError(
                f"batch must be of `cache`, (B, 1 or 2, *latent) with latents {self.latent}; got shape "
                f"{tuple(stored.shape)}: train on model.cache(data).batches(64), or on `loss`, which encodes images"
            )
        cond = self.condition_of(labels)
        if cond is not None:
            cond = drop(cond, self.label_dropout, self.num_classes, generator)
        return self.normalized(draw_latents(stored, generator)), cond

    def condition_of(self, labels: Tensor | None) -> Any:
        """Return the second stage's cond for labels (B,)."""
        return labels if labels is None or self.condition is None else self.condition(labels)

    def normalized(self, z: Tensor) -> Tensor:
        """Return w = (z - shift) scale."""
        # The buffers may be on another device: a player that moves the second stage alone does not move them.
        return (z - self.shift.to(z.device)) * self.scale.to(z.device)

    def restored(self, w: Tensor) -> Tensor:
        """Return z = shift + w / scale."""
        return self.shift.to(w.device) + w / self.scale.to(w.device)

    # A model of x.

    def loss(
        self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None, **given: Any
    ) -> Terms:
        """Return the second stage's loss on x (B, *event), labels cond: `latent_loss` without a cache."""
        w = self.encoded(x).rsample(generator)
        return self.second.loss(w, self.condition_of(cond), **generator_argument(generator), **given)

    # Latents.

    @torch.no_grad()
    def posterior(self, x: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return q(z|x) of the first stage, without normalization."""
        return self.first.posterior(x)

    @torch.no_grad()
    def encode(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the mean of q(w|x): (B, *latent)."""
        return self.encoded(x).mean

    def decode(self, z: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return p(x|w) for w (B, *latent), the second stage's latents."""
        return self.first.decode(self.restored(z))

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks of the second stage, with its decoder as inner_decoder, and those of the first stage."""
        return {**inner_networks(self.second), **offered(self.first, "networks")()}

    @torch.no_grad()
    def encoded(self, x: Tensor) -> Distribution:
        """Return q(w|x): the first stage's q(z|x), normalized."""
        q = self.first.posterior(x)
        if isinstance(q, Normal):
            return Normal(self.normalized(q.mean), q.std * self.scale.to(q.std.device))
        return Delta(self.normalized(q.mean))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        sampler: Sampler | str | None = None,
    ) -> Tensor:
        """Draw (n, *event): `decoded` samples of the second stage.

        Arguments:
            cond: labels (n,).
            sampler: instead of the second stage's own, where it has one.
        """
        given = {} if sampler is None else {"sampler": sampler}
        w = self.second.sample(n, cond=self.condition_of(cond), generator=generator, **given)
        return self.decoded(w, generator)

    @property
    def sampler(self) -> Sampler | None:
        """The sampler of the second stage, or None."""
        return getattr(self.second, "sampler", None)

    def decoded(self, w: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the mean of p(x|w), or a draw where it has no mean: (B, *event)."""
        return mean_or_draw(self.decode(w), generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return `decoded` at the mean of q(w|x): (B, *event)."""
        return self.decoded(self.encode(x))

    def vae(self) -> VAE:
        """Return a VAE of the same modules with the second stage as prior: its `nll` and `bound` are this model's.

        The Jacobian of z → w appears in q and in the prior, and cancels. It takes no cond, and is for evaluation: the
        first stage gets no gradient. Raises ValueError for a second stage without nll, and for codes, whose z has no
        density.
        """
        if getattr(self.first, "bottleneck", None) is not None:
            raise ValueError(
                f"first must have a density q(z|x) for a bound on log p(x); its {type(self.first.bottleneck).__name__} "
                "gives codes"
            )
        return VAE(_Encoder(self), _Decoder(self), self.second)


class _Encoder(nn.Module):
    """x → q(w|x)."""

    model: LatentModel

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        # Not registered: the decoder holds the first stage.
        object.__setattr__(self, "model", model)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Distribution:
        _scores_without(cond)
        return self.model.encoded(x)


class _Decoder(nn.Module):
    """w → p(x|z); it holds the first stage and the scale, so that each weight is saved once."""

    model: LatentModel

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)
        self.first = model.first
        self.register_buffer("shift", model.shift)
        self.register_buffer("scale", model.scale)

    @property
    def head(self) -> nn.Module | None:
        """The head of the first stage's decoder."""
        return getattr(self.model.first.decoder, "head", None)

    def forward(self, w: Tensor, cond: Tensor | None = None) -> Distribution:
        _scores_without(cond)
        return self.model.decode(w)


def _scores_without(cond: Tensor | None) -> None:
    """Raise ValueError for a condition, which the VAE of a latent model does not take."""
    if cond is not None:
        raise ValueError("cond must be None for LatentModel.vae(), which is unconditional; got a condition")


def _check_fit(first: nn.Module, second: nn.Module, latent: tuple[int, ...]) -> None:
    """Raise ValueError for a second stage that does not fit the first stage's latents; its loss is called once."""
    role = f"second must be a model of {type(first).__name__}'s latents {latent}; {type(second).__name__}"
    missing = [name for name in ("loss", "sample") if not hasattr(second, name)]
    if missing:
        raise ValueError(f"{role} has no {' and no '.join(missing)}")
    sample_shape = shape_of(second)
    if sample_shape is None:
        sample_shape = second.sample(2).shape[1:]  # type: ignore[operator]
    if tuple(sample_shape) != latent:
        raise ValueError(f"{role} has samples {tuple(sample_shape)}")
    device = device_of(second)
    try:
        with torch.no_grad(), evaluating(second), own_random_numbers(device):
            second.loss(torch.zeros(2, *latent, device=device))  # type: ignore[operator]
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{role} does not take them: {error}") from error
