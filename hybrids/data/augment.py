"""Random flips and crops of a batch of images, where it lies."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augment"]


@dataclass(frozen=True)
class Augment:
    """Flips and shifts each image of a batch (B, C, H, W) at random.

    The process's own random numbers on the batch's device decide, so a resumed run goes on as if never stopped.

    Arguments:
        horizontal_flip: mirror every other image, on average.
        crop_padding: pad by so many reflected pixels on each side, then crop to the size there was, anywhere.
    """

    horizontal_flip: bool = False
    crop_padding: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        if self.horizontal_flip:
            flip = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
            x = torch.where(flip, x.flip(-1), x)
        if self.crop_padding:
            x = self._crop(x)
        return x

    def _crop(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        p = self.crop_padding
        down, right = torch.randint(2 * p + 1, (2, b, 1), device=x.device)
        rows = (down + torch.arange(h, device=x.device))[:, None, :, None]
        columns = (right + torch.arange(w, device=x.device))[:, None, None, :]
        batch = torch.arange(b, device=x.device)[:, None, None, None]
        channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
        return F.pad(x, (p, p, p, p), mode="reflect")[batch, channels, rows, columns]
