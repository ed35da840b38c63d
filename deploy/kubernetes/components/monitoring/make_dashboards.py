"""Writes `dashboards/*.json`: `python make_dashboards.py`, or another folder as its argument."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from boards import BOARDS  # noqa: E402 - a script: the folder it lies in is no package

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "dashboards"
    for name, board in BOARDS.items():
        (folder / f"{name}.json").write_text(json.dumps(board, indent=1) + "\n")
