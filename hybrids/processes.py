"""Decisions that every process takes alike: an error on one rank is an error on all, so that none is left waiting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .refusal import Refusal

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

__all__ = ["agree", "decide_on_main"]

# Bytes of one rank's message: a path has at most 4096. Fixed, for ranks to exchange it without asking its length, and
# without pickle, in which torch.distributed's own exchange of objects is written.
_LENGTH = 4096


def _encode(accelerator: Accelerator | PartialState, text: str) -> torch.Tensor:
    content = text.encode("utf-8", "surrogateescape")[:_LENGTH]
    return torch.tensor([*content, *bytes(_LENGTH - len(content))], dtype=torch.uint8, device=accelerator.device)


def _decode(row: torch.Tensor) -> str:
    return bytes(row.tolist()).rstrip(b"\0").decode("utf-8", "surrogateescape")


def agree(accelerator: Accelerator | PartialState, error: str | None) -> list[str]:
    """Return the errors of all ranks, the same list on each; empty if none has one. A barrier as well.

    Every rank calls it. With several processes each error begins with `rank R: `.
    """
    if accelerator.num_processes == 1:
        return [] if error is None else [error]
    from accelerate.utils import gather

    row = _encode(accelerator, "" if error is None else error or "unknown error")
    rows = gather(row).cpu().reshape(-1, _LENGTH)
    return [f"rank {rank}: {text}" for rank, text in enumerate(map(_decode, rows)) if text]


def decide_on_main(accelerator: Accelerator | PartialState, decide: Callable[[], Path | None]) -> Path | None:
    """Return a path that the main process decides on, on every rank; its refusal is every rank's.

    For what must happen once, such as `claim`: `decide_on_main(accelerator, lambda: claim(folder, resume, overwrite))`.
    """
    answer: Path | None = None
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            answer = decide()
        except Exception as error:
            failure = error
    errors = agree(accelerator, None if failure is None else str(failure))
    if failure is not None:
        raise failure
    if errors:
        raise Refusal(errors)
    if accelerator.num_processes == 1:
        return answer
    from accelerate.utils import broadcast

    text = _decode(broadcast(_encode(accelerator, "" if answer is None else str(answer))))
    return Path(text) if text else None
