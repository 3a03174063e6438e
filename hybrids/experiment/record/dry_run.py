"""What `--dry-run` prints: the players, and what a step of them and a sample cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...data import Data
from ...modes import device_of
from ...refusal import as_refusal
from ...stage import Stage
from ..settings import Settings
from .players import players_table

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["dry_run"]


def dry_run(settings: Settings, recipe: str, data: Data, stages: Sequence[Stage], accelerator: "Accelerator") -> int:
    """Print what a run would do and cost, on the main process; returns the exit code 0.

    The memory of a process and the FLOPs are of the networks as they are built, on a batch of the data: a loss is
    computed and differentiated, nothing is trained. Arguments: data, enough examples for a batch.
    """
    # hybrids.evaluation takes a while to import, and a run does not need it at its start.
    from ...evaluation.costs import batch_of

    processes, device = accelerator.num_processes, accelerator.device
    effective = settings.batch_size * processes * settings.accumulation
    lines = [
        f"{recipe} on {data.name} {data.shape}, device {device}; a dry run: nothing is trained or written",
        f"effective batch {effective} = {settings.batch_size} × {processes} process(es) × "
        f"{settings.accumulation} micro-batch(es)",
    ]
    for stage in stages:
        with as_refusal(f"stage {stage.name!r}"):
            batch = batch_of(stage, data, settings.batch_size, device)
            lines += ["", players_table(stage, stage.steps or settings.steps, batch)]
            lines += [f"  {name}: {text}" for name, text in _costs(stage, batch, settings).items()]
    lines.append("activations: what autograd saves for the backward pass, an estimate from below; the rest is exact")
    if accelerator.is_main_process:
        print("\n".join(lines), flush=True)
    return 0


def _costs(stage: Stage, batch: Any, settings: Settings) -> dict[str, str]:
    from ...evaluation.costs import flops_per_sample, flops_per_step, memory_per_step

    networks = {**dict(stage.model.named_children()), **getattr(stage.model, "networks", dict)()}
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    memory = memory_per_step(stage, batch)
    if settings.ema > 0:
        memory["moving average"] = sum(t.numel() * t.element_size() for t in stage.model.state_dict().values())
    step = flops_per_step(stage, batch) * settings.accumulation
    given: dict[str, Any] = (
        {"cond": torch.zeros(1, dtype=torch.long, device=device_of(stage.model))} if stage.conditional else {}
    )
    return {
        "networks": ", ".join(f"{k} {type(networks[k]).__name__} {size:,}" for k, size in sizes.items() if size),
        "parameters": f"{sum(p.numel() for p in stage.root().parameters()):,}",
        "memory of a process": f"{_binary(sum(memory.values()))} = "
        + " + ".join(f"{name} {_binary(size)}" for name, size in memory.items()),
        "FLOPs": f"{step:.3g} a step of a process, {flops_per_sample(stage.model, 1, **given):.3g} a sample",
    }


def _binary(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
