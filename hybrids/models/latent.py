"""Latent models: a first stage that encodes and decodes, and any second stage that makes its latents."""

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
from .cache import draw_latents, latents, mean_and_std
from .model import offered
from .parts import drawn_by, inner_networks, picture
from .rates import shape_of
from .vae import VAE

__all__ = ["LatentModel"]


class LatentModel(nn.Module):
    """x = decode(z), z = shift + w / scale, w made by a second stage: latent diffusion, and every relative of it.

    Rombach et al. 2022, 2112.10752. The second stage sees w = (z - shift) scale, of mean 0 and variance 1 over the
    training set: `cache` measures shift and scale = 1/std once the first stage is trained, for each channel (each
    dimension of a vector) or in one, and they are buffers, saved with the weights. (Rombach's scale is of one batch,
    without shift.)

        model = LatentModel(autoencoder, Diffusion(denoiser, shape=(4, 4, 4)))
        stored = model.cache(data)                                   # after the first stage: encoded once, measured
        player = Player(model.latent_loss, moves=[model.second])     # on stored.batches(64, labels=True)

    Arguments:
        first: offers posterior(x) and decode(z), both to a Distribution, and `latent`: `Autoencoder`. It stands still.
        second: any model of w, which offers loss(w, cond) and sample(n, cond, generator): Diffusion, a GAN.
        condition: labels → what the second stage takes as cond, such as `components.text.Captioned`; None: themselves.
        num_classes: of labels that the second stage takes themselves.
        label_dropout: share of examples whose condition `latent_loss` drops, for classifier-free guidance.
        per_channel: whether shift and scale are for each channel, or one number.
    Raises ValueError for a second stage that does not take the first one's latents, naming both.
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

    # What a second stage is trained on.

    @torch.no_grad()
    def cache(self, data: Data) -> Data:
        """Return the latents of the training set as a data set, and the shift and scale that follow from it, set.

        Every process calls it, and encodes all of the set; shift and scale are those of the first process.
        Raises ValueError where a channel is the same for all examples.
        """
        with evaluating(self.first):
            stored = latents(data, self.first.posterior, self.shift.device)
        assert stored.x is not None
        mean, std = mean_and_std(stored.x, self.per_channel)
        if not (std > 1e-6).all():
            raise ValueError(f"latents must vary; channel {int(std.flatten().argmin())} is the same for all examples")
        self.shift.copy_(shared(mean.to(self.shift)))
        self.scale.copy_(shared((1 / std).to(self.scale)))
        return stored

    def latent_loss(self, batch: Batch, generator: torch.Generator | None = None, **given: Any) -> Terms:
        """Return the second stage's loss on a batch of `cache`.

        Arguments: generator, of all that is drawn; given, what else that loss takes.
        """
        return self.second.loss(*self.latent_batch(batch, generator), **drawn_by(generator), **given)

    def latent_batch(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Any]:
        """Return what the second stage is trained on: w (B, *latent), and conditions, some dropped, or None.

        Arguments: batch of `cache`, stored (B, 1 or 2, *latent), of which z is drawn here, or a mapping that has labels
        as cond. Raises ValueError for what is no batch of it, such as images.
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
        """Return what the second stage takes as cond, of labels (B,)."""
        return labels if labels is None or self.condition is None else self.condition(labels)

    def normalized(self, z: Tensor) -> Tensor:
        """Return w = (z - shift) scale."""
        # Nothing moves the buffers to the device of a player that only moves the second stage.
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
        return self.second.loss(w, self.condition_of(cond), **drawn_by(generator), **given)

    # Latents.

    @torch.no_grad()
    def posterior(self, x: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return q(z|x) of the first stage, before its latents are normalized."""
        return self.first.posterior(x)

    @torch.no_grad()
    def encode(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the mean of q(w|x): (B, *latent)."""
        return self.encoded(x).mean

    def decode(self, z: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return p(x|w) of w (B, *latent), the second stage's."""
        return self.first.decode(self.restored(z))

    def networks(self) -> dict[str, nn.Module]:
        """Return those of the second stage, whose decoder is called inner_decoder, and those of the first."""
        return {**inner_networks(self.second), **offered(self.first, "networks")()}

    @torch.no_grad()
    def encoded(self, x: Tensor) -> Distribution:
        """Return q(w|x), which the first stage's q(z|x) makes."""
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
        """Draw (n, *event): the decoder's pictures of the second stage's latents.

        Arguments: cond, labels (n,); sampler, of a second stage that has one, instead of its own.
        """
        given = {} if sampler is None else {"sampler": sampler}
        w = self.second.sample(n, cond=self.condition_of(cond), generator=generator, **given)
        return self.decoded(w, generator)

    @property
    def sampler(self) -> Sampler | None:
        """That of the second stage, if it has one."""
        return getattr(self.second, "sampler", None)

    def decoded(self, w: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the picture of w: the decoder's mean, or a draw where there is only that."""
        return picture(self.decode(w), generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the picture of the mean of q(z|x)."""
        return self.decoded(self.encode(x))

    def vae(self) -> VAE:
        """Return the same parts as a VAE whose prior is the second stage: its `nll` and `bound` are this model's.

        The change of variables from z to w is in both of its sides, and cancels. It takes no cond.
        For scoring: no gradient reaches the first stage. Raises ValueError where there is no bound: a second stage that
        cannot score, or codes, whose z has no density.
        """
        if getattr(self.first, "bottleneck", None) is not None:
            raise ValueError(f"{type(self.first.bottleneck).__name__} gives codes, not q(z|x): no bound on log p(x)")
        return VAE(_Encoder(self), _Decoder(self), self.second)


class _Encoder(nn.Module):
    """x → q(w|x)."""

    model: LatentModel

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        # not registered: the decoder holds the first stage
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
        """That of the first stage's decoder."""
        return getattr(self.model.first.decoder, "head", None)

    def forward(self, w: Tensor, cond: Tensor | None = None) -> Distribution:
        _scores_without(cond)
        return self.model.decode(w)


def _scores_without(cond: Tensor | None) -> None:
    """Refuse a condition, which neither side of the VAE takes (raises ValueError)."""
    if cond is not None:
        raise ValueError("a latent model as a VAE takes no cond; got one")


def _check_fit(first: nn.Module, second: nn.Module, latent: tuple[int, ...]) -> None:
    """Refuse a second stage for other latents than the first one's, by asking it for its loss once."""
    names = f"{type(first).__name__} makes latents {latent}, which {type(second).__name__}"
    missing = [name for name in ("loss", "sample") if not hasattr(second, name)]
    if missing:
        raise ValueError(f"{names} cannot be a second stage of: it has no {' and no '.join(missing)}")
    drawn_by_second = shape_of(second)
    if drawn_by_second is None:
        drawn_by_second = second.sample(2).shape[1:]  # type: ignore[operator]
    if tuple(drawn_by_second) != latent:
        raise ValueError(f"{names} does not make: its samples are {tuple(drawn_by_second)}")
    place = device_of(second)
    try:
        with torch.no_grad(), evaluating(second), own_random_numbers(place):
            second.loss(torch.zeros(2, *latent, device=place))  # type: ignore[operator]
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{names} does not take: {error}") from error
