"""Results to files, and their rows to README's table between its two markers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import fingerprint

__all__ = ["write_readme", "write_result"]

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write `results/<name>.json`. `result` has `rows`, a list of {what, measured, goal, command}, and details."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"name": name, "machine": fingerprint(), **result}, indent=1) + "\n")
    return path.relative_to(ROOT)


def write_readme(names: tuple[str, ...]) -> None:
    """Replace README's table by the rows of all results that exist."""
    rows = ["| measured | result | goal | command |", "|---|---|---|---|"]
    machines = set()
    for name in names:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        machine = result["machine"]
        machines.add(f"{machine['threads']} cores of {machine['cpu']}, {machine['date']}")
        rows += [f"| {r['what']} | {r['measured']} | {r['goal']} | `{r['command']}` |" for r in result["rows"]]
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    table = "\n".join([BEGIN, *rows, "", f"Measured on {'; '.join(sorted(machines))}.", END])
    readme.write_text(before + table + after)
