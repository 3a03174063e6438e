"""A backbone with a latent of its own: the same (x_t, t) has many answers, one for each z."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions import Condition, TimeAndLabel
from ..layers import SLOPE, check_event

__all__ = ["MappingNetwork", "Stochastic"]


class MappingNetwork(nn.Module):
    """z / rms(z), then an MLP: (B, latent) to (B, width), of about unit variance at first.

    Karras et al. 2018, arXiv 1812.04948, section 2, with the normalization of their code.
    Arguments: depth, the number of linear layers. Raises ValueError for latent or depth below 1, or z not (B, latent).
    """

    def __init__(self, latent: int, width: int, depth: int = 3) -> None:
        super().__init__()
        if latent < 1 or depth < 1:
            raise ValueError(f"latent and depth must be at least 1; got {latent} and {depth}")
        self.latent = latent
        sides = [latent] + [width] * depth
        layers = [nn.Linear(a, b) for a, b in zip(sides, sides[1:])]
        for i, layer in enumerate(layers):
            # The signal keeps its size: a LeakyReLU comes before every layer but the first.
            nn.init.kaiming_normal_(layer.weight, a=SLOPE if i else 1.0)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, z: Tensor) -> Tensor:
        check_event("z", z, (self.latent,))
        z = F.rms_norm(z, (self.latent,), eps=1e-8)
        for i, layer in enumerate(self.layers):
            z = layer(F.leaky_relu(z, SLOPE) if i else z)
        return z


class Stochastic(nn.Module):
    """A backbone (x_t, t, cond) made into one of (x_t, t, cond, z), z (B, latent), for any backbone of this shelf.

    A MappingNetwork turns z into a style, which is added to the embedding of time and label, and so adapts every norm
    of the network. It is the generator of a denoising diffusion GAN (Xiao et al. 2021, arXiv 2112.07804, section 3),
    where many x are right for one x_t.

    Arguments: backbone, a UNet, MLP, DiT, SequenceTransformer, or another with one TimeAndLabel in it; latent; depth,
    the layers of the mapping network. Raises ValueError for another backbone, and for a z that is missing or does not
    fit.
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
        self.self_condition = bool(getattr(backbone, "self_condition", False))
        self.mapping = MappingNetwork(latent, embeddings[0].width, depth)

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Condition | None = None, z: Tensor | None = None, **given: Tensor | None
    ) -> Tensor:
        """What the backbone returns: x_t, t, cond and given as it takes them, z (B, latent)."""
        if z is None:
            raise ValueError(f"z must be (B, {self.latent}) for a Stochastic backbone; got None")
        if len(z) != len(x_t):
            raise ValueError(f"z must be ({len(x_t)}, {self.latent}), as many as x_t; got shape {tuple(z.shape)}")
        return self.backbone(x_t, (t, self.mapping(z)), cond, **given)
