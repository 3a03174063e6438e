"""Vision networks: a transformer encoder, and any timm backbone as an encoder or as a source of features."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..conditions import ClassEmbedding
from ..distributions import Normal
from ..layers import (
    Features,
    HiddenFeatures,
    TransformerBlock,
    check_event,
    check_image_shape,
    check_images,
    check_patch,
    padded,
    positions,
)
from .residual import normal

__all__ = ["TimmEncoder", "TimmFeatures", "ViTEncoder"]


class ViTEncoder(nn.Module):
    """A vision transformer: (B, C, H, W) to a Normal over (B, latent) with log std in [-10, 5].

    Patches are embedded linearly, with fixed sinusoids of their positions added, and preceded by a learned token,
    whose last features are mapped to the latent. Dosovitskiy et al. 2020, arXiv 2010.11929, who learn the position
    embedding. Where patch does not divide a side, zeros follow its end.

    `layers`, its hidden layers, are block_0, block_1, ..., each (B, 1 + ⌈H / patch⌉ ⌈W / patch⌉, width), the learned
    token first.

    Arguments:
        shape: (C, H, W) of x.
        latent: features of z.
        patch: the side of a patch, at most H and W.
        width: features of a token, divisible by 4.
        depth: the number of blocks, at least 1.
        heads: attention heads, which divide width.
        num_classes: for labels, which are added to the learned token; the null class is `num_classes`.
    Raises:
        ValueError: an argument is not as above.
    """

    position_embedding: Tensor

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
        check_patch(shape, patch)
        if depth < 1:
            raise ValueError(f"depth must be at least 1; got {depth}")
        self.shape, self.latent, self.patch, self.num_classes = tuple(shape), latent, patch, num_classes
        channels, height, long = shape
        self.label = ClassEmbedding(num_classes, width)
        self.first = nn.Linear(channels * patch**2, width)
        grid = positions(width, -(-height // patch), -(-long // patch))
        self.register_buffer("position_embedding", grid, persistent=False)
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.layers = tuple(f"block_{i}" for i in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 2 * latent)

    def forward(
        self, x: Tensor, cond: Tensor | None = None, hidden: Sequence[str] = ()
    ) -> Normal | tuple[Normal, Features]:
        """Return q(z|x); with `hidden`, (q, features by name).

        Arguments:
            x: (B, C, H, W) in [-1, 1].
            cond: labels (B,) int64, or None for the null class.
            hidden: names out of `layers`.
        Raises:
            ValueError: x is not (B, *shape), cond does not fit, or a name in `hidden` is unknown.
        """
        check_event("x", x, self.shape)
        features = HiddenFeatures(self.layers, hidden)
        label = self.label(cond, x)
        token = self.token.expand(len(x), -1) if label is None else self.token + label
        patches = self.first(rearrange(F.pixel_unshuffle(padded(x, self.patch), self.patch), "b c h w -> b (h w) c"))
        h = torch.cat([token[:, None].to(patches.dtype), patches + self.position_embedding.to(patches.dtype)], dim=1)
        for name, block in zip(self.layers, self.blocks):
            h = features.record(name, block(h))
        return features.beside(normal(self.last(self.norm(h[:, 0]))))


class TimmEncoder(nn.Module):
    """Any timm backbone, then a linear layer: (B, C, H, W) to a Normal over (B, latent) with log std in [-10, 5].

    Images are normalized from [-1, 1] to what the backbone was trained on. Many backbones have BatchNorm, whose
    statistics are each process's own, and which refuses two forwards before one backward under DistributedDataParallel;
    frozen it is harmless.

    `layers`, its hidden layers, are the modules that timm names in the backbone's feature_info, such as layer1 of a
    ResNet or blocks.0 of a vision transformer; a feature is what the module returns, maps (B, c, h, w) in some
    networks, (B, h, w, c) or tokens (B, N, c) in others.

    Arguments:
        name: as in timm.list_models(). timm is imported here.
        latent: features of z.
        pretrained: True for timm's weights (from the network or its cache), or a path to a file of them.
        frozen: train the last layer only: the backbone's parameters get no gradient and it stays in eval mode.
        channels: C of x.
        options: further arguments of timm.create_model, such as img_size for a transformer.
    Raises:
        ValueError: the name is unknown.
        RuntimeError: there are no such weights.
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
        self.layers = _named_layers(self.backbone.model)
        if frozen:
            self.backbone.requires_grad_(False).eval()
        # head_hidden_size is the width of the output; in some models num_features is another
        self.last = nn.Linear(
            getattr(self.backbone.model, "head_hidden_size", self.backbone.model.num_features), 2 * latent
        )

    def train(self, mode: bool = True) -> "TimmEncoder":
        """Set the mode; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor, cond: None = None, hidden: Sequence[str] = ()) -> Normal | tuple[Normal, Features]:
        """Return q(z|x); with `hidden`, (q, features by name).

        Arguments:
            x: (B, C, H, W) in [-1, 1].
            cond: None.
            hidden: names out of `layers`.
        Raises:
            ValueError: x is not (B, C, H, W), cond is not None, a name in `hidden` is unknown, or its module returned
                no tensor.
        """
        check_images(x, self.channels)
        if cond is not None:
            raise ValueError(f"cond must be None for a TimmEncoder; got a {type(cond).__name__}")
        features = HiddenFeatures(self.layers, hidden)
        with ExitStack() as hooks:
            for name in hidden:
                module = self.backbone.model.get_submodule(name)
                hooks.enter_context(module.register_forward_hook(_recording(features, name)))
            output = self.backbone(x)
        missing = [name for name in hidden if not isinstance(features.features.get(name), Tensor)]
        if missing:
            raise ValueError(f"hidden must name modules that return a tensor; got {', '.join(missing)}")
        return features.beside(normal(self.last(output)))


class TimmFeatures(nn.Module):
    """Feature maps of a frozen timm backbone, finest first: (B, C, H, W) in [-1, 1] to [(B, c_i, h_i, w_i), ...].

    For discriminators and perceptual distances. Its parameters get no gradient and it stays in eval mode; it is twice
    differentiable in x: fused attention, which refuses double backward, is switched off. `widths` are the c_i.

    Arguments:
        name, pretrained, channels, options: as for TimmEncoder.
        stages: indices of the stages whose maps are returned; all by default.
        size: side that images are resized to first, bilinearly; None for none.
    Raises:
        ValueError: the name is unknown.
        RuntimeError: there are no such weights.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[int] | None = None,
        pretrained: bool | str = False,
        channels: int = 3,
        size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        if stages is not None:
            options["out_indices"] = tuple(stages)
        self.backbone = _Normalized(name, pretrained, channels, features_only=True, **options)
        self.widths = tuple(self.backbone.model.feature_info.channels())
        attentions: list[Any] = [module for module in self.backbone.modules() if hasattr(module, "fused_attn")]
        for attention in attentions:
            attention.fused_attn = False
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "TimmFeatures":
        """Do nothing: it stays in eval mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, finest first, of x (B, C, H, W) in [-1, 1]; raises ValueError for another shape."""
        check_images(x, self.channels)
        if self.size is not None:
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        maps = self.backbone(x)
        # some models have their channels last
        return [h if h.shape[1] == c else rearrange(h, "b h w c -> b c h w") for h, c in zip(maps, self.widths)]


class _Normalized(nn.Module):
    """A timm model of images in [-1, 1], normalized by ((x + 1) / 2 - mean) / std of its training data.

    For other numbers of channels than three, mean and std are averaged over the three.

    Arguments and errors as for TimmEncoder.
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
            self.register_buffer(key, rearrange(value, "c -> c 1 1").clone(), persistent=False)

    def forward(self, x: Tensor) -> Any:
        """Return what the model returns, of x (B, C, H, W) in [-1, 1]."""
        return self.model(((x + 1) / 2 - self.mean.to(x.dtype)) / self.std.to(x.dtype))


def _named_layers(model: Any) -> tuple[str, ...]:
    """Return the names of a timm model's hidden layers: modules of its feature_info, or else its parts."""
    modules = dict(model.named_modules())
    infos = getattr(model, "feature_info", None) or ()
    names = tuple(info["module"] for info in infos if info.get("module") in modules)
    return names or tuple(name for name, _ in model.named_children())


def _recording(features: HiddenFeatures, name: str) -> Callable[[nn.Module, Any, Any], None]:
    """Return a forward hook that records its module's output."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        features.record(name, output)

    return hook
