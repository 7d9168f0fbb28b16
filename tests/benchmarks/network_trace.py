"""Whom the demo asks and what it writes: `run_all.sh`, from 01 to 04, under strace, with an empty
home folder. Fetches the page's runtime first, outside the trace: `run_all.sh` would, by npm.

python tests/benchmarks/network_trace.py --work /some/empty/folder

Takes a little longer than the demo; further flags are for `run_all.sh`. Ends with exit code 1 where
anything leaves the machine.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import traced

from common.console import Stopwatch, duration, fail, say, table
from common.serve import web_runtime


def main() -> int:
    """Print how many connections and files there were, and where."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--work", type=Path, required=True, help="an empty folder for all of it")
    args, more = flags.parse_known_args()
    work, clock = args.work.resolve(), Stopwatch()
    if traced.STRACE is None:
        fail("strace is missing; on Debian: apt install strace")
    if work.exists() and any(work.iterdir()):
        fail(f"{work} is not empty.")
    web_runtime.fetch()
    home, demo = work / "home", work / "demo"
    demo.mkdir(parents=True)
    environment = traced.without_settings(home)
    found = traced.run(
        ["bash", "run_all.sh", "--work", demo, *more], work / "strace.log", ROOT, env=environment
    )
    others = found.outside(demo, home / "tmp")
    rows = [
        ("time", duration(clock())),
        ("connections and packets on loopback", found.local),
        ("other addresses", ", ".join(sorted(found.asked)) or "none"),
        ("paths written below the demo's folder", len(found.written) - len(found.outside(demo))),
        ("temporary ones", len(found.outside(demo)) - len(others)),
        *(("written, too", path) for path in others),
    ]
    say("", table(rows, ("what", "value")))
    return bool(found.asked)


if __name__ == "__main__":
    raise SystemExit(main())
