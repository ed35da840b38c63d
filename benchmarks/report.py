"""Results to files, and their rows to README's table between its two markers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import fingerprint

__all__ = ["write_readme", "write_result"]

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write `results/<name>.json`. `result` has `rows`, a list of {what, measured, goal, command}, and details."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"name": name, "machine": fingerprint(), **result}, indent=1) + "\n")
    return path.relative_to(ROOT)


def write_readme(names: tuple[str, ...]) -> None:
    """Replace README's table by the rows of all results that exist, and its step by step by that benchmark's table.

    Of a result that has a file of all its rows, only those with a goal are shown.
    """
    rows = ["| measured | result | goal | command |", "|---|---|---|---|"]
    machines = set()
    for name in names:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        machine = result["machine"]
        machines.add(f"{machine['threads']} cores of {machine['cpu']}, {machine['date']}")
        shown = [r for r in result["rows"] if r["goal"] != "-"] if "all_rows" in result else result["rows"]
        rows += [f"| {r['what']} | {r['measured']} | {r['goal']} | `{r['command']}` |" for r in shown]
    _replace("benchmarks", [*rows, "", f"Measured on {'; '.join(sorted(machines))}."])
    steps = RESULTS / "steps.json"
    if steps.exists():
        result = json.loads(steps.read_text())
        machine = result["machine"]
        where = f"{machine['threads']} cores of {machine['cpu']}, {machine['date']}"
        _replace("steps", [*result["table"], "", f"Measured on {where}, by `{result['command']}`."])


def _replace(mark: str, lines: list[str]) -> None:
    """What lies between two markers of README."""
    readme = ROOT / "README.md"
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, rest = readme.read_text().split(begin, 1)
    after = rest.split(end, 1)[1]
    readme.write_text(before + "\n".join([begin, *lines, end]) + after)
