"""One piece of a comparison in a process of its own: what steps cost, or the measurement of a run or of real examples.

python -m hybrids.comparison.worker (costs RECIPE | run RECIPE SEED | real) --out DIR --device DEVICE
"""

import argparse
import json
from pathlib import Path

import torch

from ..data import load_data
from ..experiment import load_recipe, refusing
from ..files import write_whole
from .budgets import flops_of_stages, seconds_of_stages
from .measuring import measure_real, measure_run
from .plan import kept_plan, settings_of_plan
from .runs import Run

PILOT = 0.05, 2.0, 10.0
"""The share of a budget of seconds that a pilot of a stage takes, and the least and most seconds of it."""


def device_of(name: str) -> torch.device:
    """The device that `--device` means."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)


def main() -> None:
    """The piece of work that the command line names; what comes out is written into the comparison's folder."""
    parser = argparse.ArgumentParser(description="One piece of a comparison.")
    parser.add_argument("what", choices=("costs", "run", "real"))
    parser.add_argument("of", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    plan = kept_plan(given.out)
    assert plan is not None
    asked, card = plan["asked"], plan["data"]
    resolution = card["shape"][-1] if len(card["shape"]) == 3 else None
    with refusing():
        if given.what == "real":
            measure_real(given.out, load_data(asked["data"], resolution), asked, device_of(given.device))
            return
        recipe = given.of[0]
        entry = plan["recipes"][recipe]
        if given.what == "run":
            measure_run(Run(given.out, recipe, int(given.of[1])), entry, asked, device_of(given.device))
            return
        data, build = load_data(asked["data"], resolution), load_recipe(recipe).build
        settings = settings_of_plan(recipe, entry, given.device)
        if asked["kind"] == "flops":
            found = flops_of_stages(settings, build, data)
        else:
            share, least, most = PILOT
            seconds = min(max(share * asked["value"] / len(entry["stages"]), least), most)
            found = seconds_of_stages(settings, build, data, seconds)
        (given.out / "pilots").mkdir(parents=True, exist_ok=True)
        write_whole(given.out / "pilots" / f"{recipe}.json", json.dumps({asked["kind"]: found}) + "\n")


if __name__ == "__main__":
    main()
