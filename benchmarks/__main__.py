"""`python -m benchmarks [NAME...]`: run the benchmarks, write results and README's table.

Without a name all but those that install other servers.
"""

from __future__ import annotations

import importlib
import sys

from benchmarks.report import write_readme, write_result

NAMES = (
    "resnet18",
    "small_models",
    "guards",
    "builds",
    "precision",
    "plans",
    "binary",
    "binary_resnet18",
    "steps",
    "completion",
)
ASKED_FOR = ("peers",)


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in NAMES + ASKED_FOR]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES + ASKED_FOR)}", file=sys.stderr)
        return 2
    for name in names or NAMES:
        result = importlib.import_module(f"benchmarks.{name}").run()
        print(f"{name}: {write_result(name, result)}")
    write_readme(NAMES + ASKED_FOR)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
