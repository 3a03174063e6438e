"""Image data sets of the Hugging Face hub, through the package datasets, which caches what it loads."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..refusal import needed
from .folders import image_data
from .source import Data, say, trained_on

__all__ = ["hub"]

HELD_OUT_SPLITS = ("test", "validation", "valid", "val", "dev")


class HubImages:
    """Encoded images of some splits, one after the other. A split is (its name, a datasets.Dataset)."""

    def __init__(self, splits: list[tuple[str, Any]], column: str) -> None:
        self.splits, self.column = splits, column
        self.lengths = [len(table) for _, table in splits]

    def __len__(self) -> int:
        return sum(self.lengths)

    def _place(self, index: int) -> tuple[str, Any, int]:
        for (split, table), length in zip(self.splits, self.lengths):
            if index < length:
                return split, table, index
            index -= length
        raise IndexError(index)

    def name(self, index: int) -> str:
        """Such as `train[17]`."""
        split, _, row = self._place(index)
        return f"{split}[{row}]"

    def open(self, index: int) -> BinaryIO:
        """Its bytes; of those that are kept elsewhere, the file's."""
        _, table, row = self._place(index)
        image = table[row][self.column]
        if image is None:
            return io.BytesIO()
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else open(image["path"], "rb")


def hub(
    name: str,
    resolution: int | None = None,
    channels: int | None = None,
    skip_bad_images: int = 0,
    workers: int = 2,
) -> Data:
    """Return the data set `hub:OWNER/NAME`: its first image column, its first column of class labels, if any.

    It trains on the split `train`, or the first, and holds out a test or validation split, or else every tenth image.
    Raises ValueError in one message for a data set that is not on the hub, cannot be loaded or has no images; see
    `image_data` as well.
    """
    place = name.removeprefix("hub:")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", place):
        raise ValueError(f"--data {name}: expected hub:OWNER/NAME, as in the address of the data set's page")
    if Path(place).exists():
        raise ValueError(
            f"--data {name}: {Path(place).resolve()} would be read in place of the hub's; for a folder of images give "
            "its path, ./ before it, and for the hub's start in another folder"
        )
    with needed("datasets>=4.0", f"--data {name}"):
        import datasets
    try:
        with _asked_once(place):
            splits = datasets.load_dataset(place)
    except Exception as error:  # Network, cache, parser and the hub raise errors of many packages.
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"--data {name} cannot be loaded: {why[0]}. Check its name and the network; a data set loaded before is "
            "read without one (HF_HUB_OFFLINE=1)"
        ) from error
    train = "train" if "train" in splits else next(iter(splits))
    features = splits[train].features
    column = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise ValueError(f"--data {name} has no column of images; it has {', '.join(map(str, features))}")
    label = next((key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    test = next((split for split in HELD_OUT_SPLITS if split in splits and split != train), None)
    used = [split for split in (train, test) if split is not None]
    columns = [column] if label is None else [column, label]
    tables = [(split, splits[split].select_columns(columns)) for split in used]
    labels = None if label is None else torch.cat([torch.as_tensor(table[label][:]) for _, table in tables])
    if labels is not None and (labels < 0).any():
        # The hub's sign of a label that is not told, mostly in test splits.
        labels, label = None, f"{label} (not used: some are missing)"
    encoded = [
        (split, table.select_columns([column]).cast_column(column, datasets.Image(decode=False)))
        for split, table in tables
    ]
    files = HubImages(encoded, column)
    sizes = files.lengths
    held = torch.arange(sizes[0]) % 10 == 9 if test is None else torch.arange(sum(sizes)) >= sizes[0]
    if test is None and labels is not None:
        held = trained_on(held, labels)
    say(f"--data {name}: images of column {column}, labels of {label}, splits {' and '.join(used)}")
    names = () if labels is None else tuple(features[columns[1]].names)
    return image_data(name, files, held, labels, names, resolution, channels, skip_bad_images, workers)


@contextmanager
def _asked_once(place: str) -> Iterator[None]:
    """Ask the hub for a data set once: what is missing raises at once, and without a network the cache alone is read.

    `load_dataset` would ask six times, for half a minute.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    offline = datasets.config.HF_HUB_OFFLINE
    try:
        if not offline:
            try:
                HfApi().dataset_info(place, timeout=10)
            except RepositoryNotFoundError as error:
                raise ValueError(f"there is no such data set, or none that you may read ({place})") from error
            except Exception:  # Its packages for the network raise errors of their own.
                datasets.config.HF_HUB_OFFLINE = True
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
