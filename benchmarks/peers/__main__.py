"""`python -m benchmarks.peers --out FILE [PART...]`: some parts, for as long as is asked, into a file of yours.

Parts that the file has already and that are not asked for are kept. Neither README nor its results are touched.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.peers.run import PARTS, measured, result_of
from benchmarks.peers.setup import Effort


def main() -> None:
    """Parse, measure, print the rows."""
    usual = Effort()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all unless named")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=usual.rounds)
    parser.add_argument("--seconds", type=int, default=usual.seconds)
    parser.add_argument("--requests", type=int, default=usual.requests)
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    before = json.loads(given.out.read_text())["parts"] if given.out.exists() else {}
    effort = Effort(given.rounds, given.seconds, given.requests)
    found = measured(given.parts or PARTS, effort, before, given.out)
    for row in result_of(found)["rows"]:
        print(f"{row['what']} | {row['measured']} | {row['goal']}")


if __name__ == "__main__":
    main()
