"""`python -m benchmarks [NAME...]`: run the benchmarks (all without a name), write results and README's table."""

from __future__ import annotations

import importlib
import sys

from benchmarks.report import write_readme, write_result

NAMES = ("resnet18", "small_models", "guards", "builds", "precision", "plans", "binary", "binary_resnet18")


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in names or NAMES:
        result = importlib.import_module(f"benchmarks.{name}").run()
        print(f"{name}: {write_result(name, result)}")
    write_readme(NAMES)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
