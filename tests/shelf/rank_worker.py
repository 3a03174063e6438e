"""What two ranks do with every part, in one launch: two steps, each rank on its half of the batch and its own noise."""

import hashlib
import json
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parent))

from parts import PARTS  # noqa: E402

from hybrids import Player, train  # noqa: E402

OUT = Path(sys.argv[1])


def fresh() -> Accelerator:
    """An accelerator as new, on the process group that is there."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(False)
    GradientState._reset_state()
    return Accelerator(cpu=True)


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """A hash of every bit."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().numpy().tobytes())
    return found.hexdigest()


def parameters(players: list[Player]) -> str:
    return digest(p for player in players for p in player.parameters_moved())


def buffers(players: list[Player]) -> str:
    """Of all buffers but BatchNorm's, which are each process's own (TimmEncoder says so)."""
    return digest(value for player in players for name, value in player.named_buffers() if "running_" not in name)


def two_steps(name: str, rank: int) -> dict:
    """Hashes before and after, and the losses of this rank."""
    torch.manual_seed(0)
    players, batch = PARTS[name]()
    before = parameters(players)
    torch.manual_seed(1 + rank)
    half = len(batch["x"]) // 2
    own = {key: value[rank * half : (rank + 1) * half] for key, value in batch.items()}
    losses = [logs[f"loss/{player.name}"].item() for _, logs in train(players, [own], fresh(), 2) for player in players]
    return {"before": before, "after": parameters(players), "buffers": buffers(players), "losses": losses}


def main() -> None:
    torch.set_num_threads(1)
    accelerator = fresh()
    rank, results = accelerator.process_index, {}
    for name in PARTS:
        try:
            results[name] = two_steps(name, rank)
        except Exception:
            results[name] = {"error": traceback.format_exc()}
        # What failed on one rank must not leave the other in the middle of the next part.
        dist.barrier()
    (OUT / f"{rank}.json").write_text(json.dumps(results))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
