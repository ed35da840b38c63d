"""`python -m benchmarks.peers --out FILE [PART...]`: some parts, for as long as is asked, into a file of yours.

Parts that the file has already and that are not asked for are kept. Only with --publish are README, its plot and the
stored results made of the file, as `make bench-peers` makes them of a run in full.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.__main__ import ASKED_FOR, NAMES
from benchmarks.peers import finished
from benchmarks.peers.measuring import PARTS, measured, result_of, too_short
from benchmarks.peers.setup import Effort
from benchmarks.report import write_readme, write_result


def main() -> None:
    """Parse, measure, print the rows."""
    usual = Effort()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all unless named")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=usual.rounds)
    parser.add_argument("--seconds", type=int, default=usual.seconds)
    parser.add_argument("--requests", type=int, default=usual.requests)
    parser.add_argument("--publish", action="store_true", help="measure nothing unless parts are named")
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    before = json.loads(given.out.read_text())["parts"] if given.out.exists() else {}
    effort = Effort(given.rounds, given.seconds, given.requests)
    parts = given.parts or (() if given.publish else PARTS)
    found = measured(parts, effort, before, given.out)
    if given.publish:
        if short := too_short(found):
            parser.error(f"measured for less than README's figures are: {', '.join(short)}")
        publish(found)
    for row in result_of(found)["rows"]:
        print(f"{row['what']} | {row['measured']} | {row['goal']}")


def publish(found: dict[str, Any]) -> None:
    """Results, plot, a file of all rows, and README's table."""
    print(write_result("peers", finished(found)))
    write_readme(NAMES + ASKED_FOR)


if __name__ == "__main__":
    main()
