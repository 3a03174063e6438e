"""Check the checkpoints of a run: what each holds, whether it is whole, and what of a damaged one is still usable.

    python scripts/verify.py RUN | RUN/checkpoints/step-N

Exit codes: 0, all are whole; 1, some are damaged; 2, there are none. It reads no code of the run.
"""

import argparse
import sys
from collections.abc import Sequence

from hybrids.experiment.checkpoints.report import report
from hybrids.refusal import refusing


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report of a run; exit with 1 where it is damaged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder, or one of its checkpoints")
    with refusing():
        text, whole = report(parser.parse_args(argv).run)
        print(text)
    if not whole:
        sys.exit(1)


if __name__ == "__main__":
    main()
