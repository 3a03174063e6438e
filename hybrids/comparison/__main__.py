"""One job of a comparison in its own process: measure the cost of a step, a run, or real examples.

python -m hybrids.comparison (costs RECIPE | run RECIPE SEED | real) --out DIR --device DEVICE

It follows the plan in DIR, which `hybrids.comparison.train` has checked against the user's command line.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..data import load_data
from ..experiment import Refusal, refusing
from ..files import write_whole
from .measure import costs, device_named, measure_real, measure_run
from .plan import read_plan
from .recipes import Recipe
from .runs import Run


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job that the command line names; the result is written into the comparison's folder."""
    parser = argparse.ArgumentParser(description="One job of a comparison.")
    parser.add_argument("what", choices=("costs", "run", "real"))
    parser.add_argument("of", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(argv)
    with refusing():
        plan = read_plan(given.out)
        if plan is None:
            raise Refusal(f"--out {given.out}: must be the folder of a comparison; there is no plan.json in it")
        request, shape = plan["asked"], plan["data"]["shape"]
        if given.what == "run":
            name, seed = given.of
            measure_run(Run(given.out, name, int(seed)), plan["recipes"][name], request, device_named(given.device))
            return
        data = load_data(request["data"], shape[-1] if len(shape) == 3 and shape[1] == shape[2] else None)
        if given.what == "real":
            measure_real(given.out, data, request, device_named(given.device))
            return
        (name,) = given.of
        entry = plan["recipes"][name]
        cost = costs(Recipe(entry.get("given", name)), entry, request, data, given.device)
        write_whole(given.out / "pilots" / f"{name}.json", json.dumps({request["kind"]: cost}) + "\n")


if __name__ == "__main__":
    main()
