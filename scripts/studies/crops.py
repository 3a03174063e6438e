"""Write a folder of test images: scikit-learn's two photographs, cut into crops of mixed sizes and modes.

    python scripts/studies/crops.py FOLDER [--number 500] [--seed 0]

FOLDER/china and FOLDER/flower hold RGB, grayscale, palette, transparent and 16-bit PNGs, and JPEGs in RGB and CMYK, of
40 to 160 pixels a side: every kind that `--data FOLDER` reads.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

KINDS = ("RGB", "L", "P", "RGBA", "I;16", "JPEG", "CMYK")


def convert(crop: Image.Image, kind: str) -> tuple[Image.Image, str]:
    """Return the crop as an image of a kind, and the suffix of its file."""
    if kind == "I;16":
        return Image.fromarray(np.asarray(crop.convert("L")).astype(np.uint16) * 257), "png"
    if kind == "RGBA":
        crop = crop.copy()
        crop.putalpha(Image.radial_gradient("L").resize(crop.size).point(lambda v: 255 - v // 4))
        return crop, "png"
    if kind in ("JPEG", "CMYK"):
        return crop.convert("RGB" if kind == "JPEG" else "CMYK"), "jpg"
    return crop.convert(kind), "png"


def main() -> None:
    parser = argparse.ArgumentParser(description="Cut scikit-learn's two photographs into a folder of crops.")
    parser.add_argument("folder", type=Path, help="folder to write; must not exist")
    parser.add_argument("--number", type=int, default=500, help="number of crops (500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of positions and sizes (0)")
    arguments = parser.parse_args()
    if arguments.number < 1:
        parser.error(f"--number must be at least 1; got {arguments.number}")
    if arguments.folder.exists():
        parser.error(f"folder {arguments.folder} exists; give a new one")
    rng = np.random.default_rng(arguments.seed)
    photographs = load_sample_images()
    for i in range(arguments.number):
        which = i % 2
        photograph = Image.fromarray(photographs.images[which])
        width, height = (int(side) for side in rng.integers(40, 161, 2))
        left = int(rng.integers(photograph.width - width + 1))
        top = int(rng.integers(photograph.height - height + 1))
        crop, ending = convert(photograph.crop((left, top, left + width, top + height)), KINDS[i // 2 % len(KINDS)])
        folder = arguments.folder / Path(photographs.filenames[which]).stem
        folder.mkdir(parents=True, exist_ok=True)
        crop.save(folder / f"{i:04d}.{ending}")
    print(f"{arguments.number} crops: {arguments.folder}")


if __name__ == "__main__":
    main()
