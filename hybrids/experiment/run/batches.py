"""What a stage is fed: the run's data, or what it makes once the stages before it are trained."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...batch import Batch
from ...data import Batches, Data
from ...data.streaming import WorkerDied
from ...refusal import Refusal
from ...stage import Stage
from ..checkpoints.state import random_numbers, restore_random_numbers
from ..settings import Settings

__all__ = ["Readable", "batches_of", "seed_all"]


def batches_of(stage: Stage, index: int, data: Data, settings: Settings, accelerator: Any) -> Any:
    """A stage's own batches, or those of the run's data, or of the data that the stage makes.

    What a stage draws while it makes them is a function of the seed and the stage's index, equal on all ranks: a resume
    in the middle of the stage makes the same again, and nobody else's noise changes.
    """
    if stage.batches is None:
        return _batches(data, stage.conditional, settings, accelerator)
    if isinstance(stage.batches, Data):
        return _batches(stage.batches, stage.conditional, settings, accelerator)
    if not callable(stage.batches):
        return stage.batches
    with _noise_of_its_own(accelerator.device, settings.seed + (index + 1) * 7_919):
        made = stage.batches()
        return _batches(made, stage.conditional, settings, accelerator) if isinstance(made, Data) else made


class Readable:
    """The same batches; an image that cannot be read, or a data worker that died, is a refusal of this process."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self.batches
        except (ValueError, WorkerDied) as error:
            raise Refusal(f"stopped: {error}", here=True) from error


def _batches(data: Data, labels: bool, settings: Settings, accelerator: Any) -> Batches:
    rank, size = accelerator.process_index, accelerator.num_processes
    return data.batches(settings.batch_size, settings.seed, rank, size, accelerator.device, labels)


@contextmanager
def _noise_of_its_own(device: torch.device, seed: int) -> Iterator[None]:
    before = random_numbers(device)
    seed_all(seed)
    try:
        yield
    finally:
        restore_random_numbers(device, *before)


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's random numbers."""
    from accelerate.utils import set_seed

    set_seed(seed % 2**32)
