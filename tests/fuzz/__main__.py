"""Run the areas at length, or one case again: `python -m tests.fuzz --help`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.areas import AREAS, prepared
from tests.fuzz.cases import run


def main() -> int:
    """0: all is well; 1: cases failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}; all")
    parser.add_argument("--seed", type=int, default=0, help="which cases (0)")
    parser.add_argument("--count", type=int, help="how many of each area; else its full number")
    parser.add_argument("--start", type=int, default=0, help="the first case's number (0)")
    parser.add_argument("--only", type=int, help="this case alone")
    chosen = parser.parse_args()
    if unknown := set(chosen.areas) - set(AREAS):
        parser.error(
            f"no area is called {', '.join(sorted(unknown))}; there are {', '.join(AREAS)}"
        )
    failed = 0
    for name in chosen.areas or AREAS:
        count = chosen.count or AREAS[name].full
        numbers = range(chosen.start, chosen.start + count)
        if chosen.only is not None:
            numbers = range(chosen.only, chosen.only + 1)
        with tempfile.TemporaryDirectory(prefix="resurge-fuzz-") as folder, prepared(Path(folder)):
            begin = time.process_time()
            report = run(AREAS[name](Path(folder)), chosen.seed, numbers, lambda t: print(t, "\n"))
            print(f"{report.line()} ({time.process_time() - begin:.0f} CPU s)", flush=True)
        failed += len(report.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
