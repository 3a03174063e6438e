"""A backbone with a latent z as additional input, so that (x_t, t) has many outputs, one for each z."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions import Condition, TimeAndLabel
from ..layers import SLOPE, Features, check_event

__all__ = ["MappingNetwork", "Stochastic"]


class Stochastic(nn.Module):
    """A backbone (x_t, t, cond) made into one of (x_t, t, cond, z), with a latent z (B, latent).

    A MappingNetwork turns z into a style, which is added to the embedding of time and label, and so adapts every norm
    of the network. It is the generator of a denoising diffusion GAN (Xiao et al. 2021, arXiv 2112.07804, section 3),
    where many x are right for one x_t. `layers` are the backbone's hidden layers.

    Arguments:
        backbone: a UNet, MLP, DiT, SequenceTransformer, or another network with one TimeAndLabel in it.
        latent: features of z.
        depth: the number of linear layers of the mapping network.
    Raises:
        ValueError: the backbone has not exactly one TimeAndLabel, or latent or depth is below 1.
    """

    def __init__(self, backbone: nn.Module, latent: int, depth: int = 3) -> None:
        super().__init__()
        embeddings = [module for module in backbone.modules() if isinstance(module, TimeAndLabel)]
        if len(embeddings) != 1:
            raise ValueError(
                f"backbone must hold one TimeAndLabel, which z is added to; a {type(backbone).__name__} holds "
                f"{len(embeddings)}"
            )
        self.backbone, self.latent = backbone, latent
        self.layers: tuple[str, ...] = tuple(getattr(backbone, "layers", ()))
        self.self_condition = bool(getattr(backbone, "self_condition", False))
        self.mapping = MappingNetwork(latent, embeddings[0].width, depth)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        z: Tensor | None = None,
        hidden: Sequence[str] = (),
        **given: Tensor | None,
    ) -> Tensor | tuple[Tensor, Features]:
        """Return what the backbone returns.

        Arguments:
            x_t, t, cond, given: as the backbone takes them.
            z: (B, latent).
            hidden: names out of `layers`, whose features are returned with the output.
        Raises:
            ValueError: z is missing or is not (B, latent).
        """
        if z is None:
            raise ValueError(f"z must be (B, {self.latent}) for a Stochastic backbone; got None")
        if len(z) != len(x_t):
            raise ValueError(f"z must be ({len(x_t)}, {self.latent}), as many as x_t; got shape {tuple(z.shape)}")
        features = {"hidden": hidden} if hidden else {}
        return self.backbone(x_t, (t, self.mapping(z)), cond, **given, **features)


class MappingNetwork(nn.Module):
    """z / rms(z), then an MLP: (B, latent) to (B, width), of about unit variance at first.

    Karras et al. 2018, arXiv 1812.04948, section 2, with the normalization of their code.

    Arguments:
        latent: features of z.
        width: features of the output and of the layers between.
        depth: the number of linear layers.
    Raises:
        ValueError: latent or depth is below 1.
    """

    def __init__(self, latent: int, width: int, depth: int = 3) -> None:
        super().__init__()
        if latent < 1 or depth < 1:
            raise ValueError(f"latent and depth must be at least 1; got {latent} and {depth}")
        self.latent = latent
        sides = [latent] + [width] * depth
        linears = [nn.Linear(a, b) for a, b in zip(sides, sides[1:])]
        for i, linear in enumerate(linears):
            # The signal keeps its size: a LeakyReLU comes before every layer but the first.
            nn.init.kaiming_normal_(linear.weight, a=SLOPE if i else 1.0)
            nn.init.zeros_(linear.bias)
        self.linears = nn.ModuleList(linears)

    def forward(self, z: Tensor) -> Tensor:
        """Return (B, width) of z (B, latent); raises ValueError for another shape."""
        check_event("z", z, (self.latent,))
        z = F.rms_norm(z, (self.latent,), eps=1e-8)
        for i, linear in enumerate(self.linears):
            z = linear(F.leaky_relu(z, SLOPE) if i else z)
        return z
