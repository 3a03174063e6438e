"""What Accelerate's launcher, configuration and environment ask for: honoured, or refused by name."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from .refusal import Refusal

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["check_accelerator", "check_environment", "launched"]

STRATEGIES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
"""What an accelerator sets, too, that is given such a plugin: on CPUs it is then ignored without a word."""

PRECISIONS = {
    "fp16": "its one gradient scaler is shared by all optimizers: clipping one player's gradients rescales another's",
    "fp8": "it replaces the layers of one model, and the losses of players are not made for it",
}

WORLDS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def check_environment() -> None:
    """Refuse what the environment of a launcher asks for and nobody would do.

    Raises:
        ValueError: FSDP, DeepSpeed, Megatron-LM, tensor parallelism; fp16, fp8; a dynamo backend; several processes of
            which `accelerate launch` has started one.
    """
    for variable, name in STRATEGIES.items():
        if _true(variable):
            raise ValueError(f"{name} is refused ({variable}): the game runs on one process or under DDP; launch it so")
    _check_precision(_asked("ACCELERATE_MIXED_PRECISION"))
    _check_dynamo(_asked("ACCELERATE_DYNAMO_BACKEND"))
    # Of several processes on CPUs without a list of machines Accelerate passes on the address alone.
    if _true("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ and not any(name in os.environ for name in WORLDS):
        raise ValueError(
            "the launcher was asked for several processes on CPUs and started one, as `accelerate launch` does; start "
            "N of them with: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N SCRIPT"
        )


def check_accelerator(accelerator: Accelerator) -> None:
    """Refuse an accelerator that cannot run the game, or that overrides what was launched.

    Raises:
        ValueError: as `check_environment`; a script's `mixed_precision` that differs from the launcher's.
    """
    from accelerate.utils import DistributedType

    _check_precision(accelerator.mixed_precision)
    check_environment()
    _check_dynamo(accelerator.state.dynamo_plugin.backend.value)
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(f"the game runs on one process or under DDP; got {accelerator.distributed_type}")
    precision = _asked("ACCELERATE_MIXED_PRECISION")
    if precision not in ("no", accelerator.mixed_precision):
        raise ValueError(
            f"mixed precision: the launcher asks for {precision} (ACCELERATE_MIXED_PRECISION), the script's "
            f"Accelerator has {accelerator.mixed_precision}; expected the same: leave one of them out"
        )


def launched(settings: Any) -> Any:
    """Return a run's settings, with what a launcher asks for in place of defaults.

    What is typed goes first, then `--config`, then what was launched, then the default.

    Arguments:
        settings: from `parse`, whose attribute `sources` names where each value is from; without it every value that is
            not the default counts as typed.
    Raises:
        Refusal: for a typed value that differs from what was launched, with both; and as `check_environment`.
    """
    try:
        check_environment()
        steps = int(_asked("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "0"))
    except ValueError as error:
        raise Refusal(f"launch: {error}") from error
    wanted: dict[str, tuple[str, Any]] = {}
    if (precision := _asked("ACCELERATE_MIXED_PRECISION")) != "no":
        wanted["mixed_precision"] = "ACCELERATE_MIXED_PRECISION", precision
    if steps > 0:
        wanted["accumulation"] = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps
    if _true("ACCELERATE_USE_CPU") and settings.device != "auto":
        wanted["device"] = "ACCELERATE_USE_CPU", "cpu"
    sources: dict[str, str] = getattr(settings, "sources", None) or {
        field.name: field.name for field in fields(settings) if getattr(settings, field.name) != field.default
    }
    errors = [
        f"{sources[name]} {getattr(settings, name)}: launched with {value} ({variable}); expected the same: drop one"
        for name, (variable, value) in wanted.items()
        if name in sources and getattr(settings, name) != value and not _of_file(sources[name])
    ]
    if errors:
        raise Refusal(errors)
    for name, (variable, value) in wanted.items():
        if name in sources and getattr(settings, name) != value:
            # Accelerate reads the environment, so that it must say what --config says.
            os.environ[variable] = "false" if name == "device" else str(getattr(settings, name))
    return replace(settings, **{name: value for name, (_, value) in wanted.items() if name not in sources})


def _of_file(source: str) -> bool:
    """Return whether a value is from a file, `PATH: KEY`."""
    return ": " in source


def _check_precision(precision: str) -> None:
    if reason := PRECISIONS.get(precision):
        raise ValueError(f"mixed precision {precision} is refused: {reason}; use bf16, or no")


def _check_dynamo(backend: str) -> None:
    if backend.lower() != "no":
        raise ValueError(
            f"dynamo backend {backend} is refused: Accelerate would compile a player with its loss, in which a penalty "
            "on gradients loses its own; launch without it, and compile single networks: net.compile()"
        )


def _asked(variable: str, default: str = "no") -> str:
    return (os.environ.get(variable) or default).lower()


def _true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "y", "on", "t")
