"""One image file as uint8 pixels: what is read, what is converted and how, what is refused.

Upright as EXIF says; the middle square, resized by an antialiased bicubic filter; transparency over white; the high
byte of 16 bits; the first frame of several.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from ..refusal import needed

__all__ = ["EXTENSIONS", "MAX_PIXELS", "BadImage", "Header", "TooLarge", "decode", "header"]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 89_478_485
"""Larger images are refused. Where Pillow begins to warn of decompression bombs: 256 MB of RGB."""

# Not EPS and others: opening those starts programs.
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM")
_GREY = ("1", "L", "LA", "La")


class BadImage(ValueError):
    """A file that cannot be read as an image; the message says why."""


class TooLarge(ValueError):
    """An image of so many pixels that it may be a decompression bomb."""


@dataclass(frozen=True)
class Header:
    """What an image's header tells: its size when upright, whether it has colours, and what sets it apart.

    kind: `with alpha`, `16-bit`, `palette`, `CMYK`, `grayscale`, `RGB` or Pillow's name of another mode.
    """

    height: int
    width: int
    grey: bool
    kind: str


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Any]:
    """The Pillow image of a file, not yet decoded; every way in which that fails becomes a BadImage or a TooLarge."""
    with needed("pillow", "reading images"):
        from PIL import Image, UnidentifiedImageError
    try:
        if file.seek(0, 2) == 0:
            raise BadImage("it is empty (0 bytes)")
        file.seek(0)
        with Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise TooLarge(f"it has {image.width} × {image.height} pixels; expected at most {MAX_PIXELS}")
            yield image
    except (BadImage, TooLarge):
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(f"{error}; expected at most {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise BadImage("it is no image that can be read") from error
    except Exception as error:  # Damaged files make Pillow's plugins raise nearly anything.
        raise BadImage(f"it cannot be decoded: {error}") from error


def header(file: BinaryIO) -> Header:
    """Read no more of a file than its header. Raises BadImage or TooLarge."""
    with _opened(file) as image:
        width, height = image.size if _orientation(image) < 5 else image.size[::-1]
        return Header(height, width, image.mode in _GREY or image.mode.startswith("I"), _kind(image))


def decode(file: BinaryIO, resolution: int, channels: int) -> np.ndarray:
    """An image as (C, R, R) uint8, C 1 or 3. Raises BadImage or TooLarge."""
    from PIL import Image

    with _opened(file) as image:
        if image.format == "PNG":
            # Only this compares PNG's checksums: without, damage may come out as pixels.
            image.verify()
    with _opened(file) as image:
        turned = _orientation(image)
        image.load()
        flat = _flat(image, "L" if channels == 1 else "RGB")
        if turned > 1:
            # EXIF's orientations 2 to 8.
            T = Image.Transpose
            flat = flat.transpose(
                (T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE,
                 T.ROTATE_90)[turned - 2]
            )  # fmt: skip
        width, height = flat.size
        if (width, height) != (resolution, resolution):
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            flat = flat.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box)
        pixels = np.asarray(flat)
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _has_alpha(image: Any) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _kind(image: Any) -> str:
    if image.mode.startswith("I") or ";16" in str(image.tile):
        return "16-bit"
    if _has_alpha(image):
        return "with alpha"
    return {"P": "palette", "L": "grayscale", "1": "grayscale"}.get(image.mode, image.mode)


def _orientation(image: Any) -> int:
    """EXIF's: 1 to 8; 1 is upright."""
    if image.format == "TIFF" or image.format == "PNG" and "exif" not in image.info:
        # Pillow turns the former itself; of the latter it would decode the pixels, to look behind them.
        return 1
    try:
        turned = int(image.getexif().get(0x0112, 1))
    except Exception:  # Broken EXIF beside sound pixels.
        return 1
    return turned if 1 <= turned <= 8 else 1


def _flat(image: Any, mode: str) -> Any:
    """Without transparency, 8 bits, in the mode L or RGB."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM"):
        # The high byte is what Pillow keeps of 16-bit colours; its own conversion of grey would clamp.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadImage(f"its pixels are {'32-bit integers' if image.mode == 'I' else 'floats'}; expected 8 or 16 bits")
    elif _has_alpha(image):
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    if mode == "L" and image.mode not in ("1", "L"):
        # Not every mode converts to grey directly.
        image = image.convert("RGB")
    return image.convert(mode)
