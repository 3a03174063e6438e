"""Vision networks: a transformer encoder, and any timm backbone as an encoder or as a source of features."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions import ClassEmbedding
from ..distributions import Normal
from ..layers import TransformerBlock, check_event, check_image_shape, check_images, positions
from .residual import normal

__all__ = ["TimmEncoder", "TimmFeatures", "ViTEncoder"]


class ViTEncoder(nn.Module):
    """A vision transformer: (B, C, H, W) to a Normal over (B, latent) with log std in [-10, 5].

    Patches, linearly embedded, with fixed sinusoids of their place, and a learned token, off which the latent is read.
    Dosovitskiy et al. 2020, arXiv 2010.11929, but for the places, which it learns.

    Arguments: latent, an int; patch, the side of a patch; width, divisible by 4; depth, the number of blocks; heads,
    which divide width; num_classes, for labels that add to the learned token, None being the null class.
    Raises ValueError when `shape` is another, patch does not divide its sides, for the arguments above, when x is not
    (B, *shape), or cond does not fit.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent: int,
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_image_shape(shape, "MLPEncoder")
        channels, height, long = shape
        if patch < 1 or height % patch or long % patch:
            raise ValueError(f"patch must divide the sides of shape {tuple(shape)}; got {patch}")
        if depth < 1:
            raise ValueError(f"depth must be at least 1; got {depth}")
        self.shape, self.latent, self.patch, self.num_classes = tuple(shape), latent, patch, num_classes
        self.label = ClassEmbedding(num_classes, width)
        self.first = nn.Linear(channels * patch**2, width)
        self.register_buffer("place", positions(width, height // patch, long // patch), persistent=False)
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 2 * latent)

    place: Tensor

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Normal:
        """q(z|x): x (B, C, H, W) in [-1, 1], cond (B,) long or None."""
        check_event("x", x, self.shape)
        label = self.label(cond, x)
        token = self.token.expand(len(x), -1) if label is None else self.token + label
        patches = self.first(F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2))
        h = torch.cat([token[:, None].to(patches.dtype), patches + self.place.to(patches.dtype)], dim=1)
        for block in self.blocks:
            h = block(h)
        return normal(self.last(self.norm(h[:, 0])))


class _Normalized(nn.Module):
    """A timm model that takes images in [-1, 1]: they become ((x + 1) / 2 - mean) / std of its own training data.

    For other than three channels, mean and std are the averages of the three. Built by name; where weights are wanted
    and cannot be had, one message says which, why, and what to do.
    """

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, pretrained: bool | str, channels: int, **options: Any) -> None:
        super().__init__()
        import timm

        options |= {"in_chans": channels}
        if isinstance(pretrained, str):
            options["pretrained_cfg_overlay"] = {"file": pretrained}
        if ":" not in name and not timm.is_model(name):
            near = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]
            raise ValueError(f"name must be a model of timm, such as {near or timm.list_models()[:5]}; got {name!r}")
        try:
            self.model = timm.create_model(name, pretrained=bool(pretrained), **options)
        except Exception as error:
            if not pretrained:
                raise
            where = f" in {pretrained!r}" if isinstance(pretrained, str) else ""
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise RuntimeError(
                f"no pretrained weights for {name!r}{where}: {type(error).__name__}: {reason}. "
                "Use pretrained=False for random weights, or pretrained='path/to/weights' for a file on this machine."
            ) from error
        config = timm.data.resolve_model_data_config(self.model)
        for key in ("mean", "std"):
            value = torch.tensor(config[key])
            value = value if len(value) == channels else value.mean().expand(channels)
            self.register_buffer(key, value.reshape(-1, 1, 1).clone(), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.model(((x + 1) / 2 - self.mean.to(x.dtype)) / self.std.to(x.dtype))


class TimmEncoder(nn.Module):
    """Any timm backbone, then a linear layer: (B, C, H, W) to a Normal over (B, latent) with log std in [-10, 5].

    Images are normalized from [-1, 1] to what the backbone was trained on. Many backbones have BatchNorm, whose
    statistics are each process's own, and which refuses two forwards before one backward under DistributedDataParallel;
    frozen it is harmless.

    Arguments: name, as in timm.list_models(); latent, an int; pretrained, True for timm's weights (from the network or
    its cache) or a path to a file of them; frozen, to train the last layer only: the backbone's parameters get no
    gradient and it stays in eval mode; channels C; options, what timm.create_model takes besides, such as img_size for
    a transformer. timm is imported here.
    Raises ValueError for an unknown name and for x not (B, C, H, W) or a cond; RuntimeError where there are no weights.
    """

    def __init__(
        self,
        name: str,
        latent: int,
        pretrained: bool | str = False,
        frozen: bool = False,
        channels: int = 3,
        **options: Any,
    ) -> None:
        super().__init__()
        self.latent, self.channels, self.frozen = latent, channels, frozen
        self.backbone = _Normalized(name, pretrained, channels, num_classes=0, **options)
        if frozen:
            self.backbone.requires_grad_(False).eval()
        # as wide as what comes out: num_features leaves out what some models add at the end
        self.last = nn.Linear(
            getattr(self.backbone.model, "head_hidden_size", self.backbone.model.num_features), 2 * latent
        )

    def train(self, mode: bool = True) -> "TimmEncoder":
        """The last layer only, if frozen."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor, cond: None = None) -> Normal:
        """q(z|x): x (B, C, H, W) in [-1, 1]; cond must be None."""
        check_images(x, self.channels)
        if cond is not None:
            raise ValueError("cond must be None for a TimmEncoder; got something else")
        return normal(self.last(self.backbone(x)))


class TimmFeatures(nn.Module):
    """Feature maps of a frozen timm backbone, finest first: (B, C, H, W) in [-1, 1] to [(B, c_i, h_i, w_i), ...].

    For discriminators and perceptual distances. Its parameters get no gradient and it stays in eval mode, but x does
    get one, twice if need be: fused attention, which refuses double backward, is switched off.

    Arguments: name, pretrained, channels and options as in TimmEncoder; layers, the stages out of which the maps come,
    all by default; size, to which images are brought first, bilinearly. `widths` are the c_i.
    Raises ValueError for an unknown name and for x not (B, C, H, W); RuntimeError where there are no weights.
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[int] | None = None,
        pretrained: bool | str = False,
        channels: int = 3,
        size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        if layers is not None:
            options["out_indices"] = tuple(layers)
        self.backbone = _Normalized(name, pretrained, channels, features_only=True, **options)
        self.widths = tuple(self.backbone.model.feature_info.channels())
        attentions: list[Any] = [module for module in self.backbone.modules() if hasattr(module, "fused_attn")]
        for attention in attentions:
            attention.fused_attn = False
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "TimmFeatures":
        """Nothing: it stays in eval mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps, finest first: x (B, C, H, W) in [-1, 1]."""
        check_images(x, self.channels)
        if self.size is not None:
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        maps = self.backbone(x)
        # some models have their channels last
        return [h if h.shape[1] == c else h.permute(0, 3, 1, 2) for h, c in zip(maps, self.widths)]
