"""Fail where a source file has more than 400 lines: split it by idea, not by size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT_LINES = 400
ENDINGS = {".py", ".cpp", ".hpp", ".cu", ".c", ".h"}


def main() -> int:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    lengths = {
        name: len(Path(name).read_text("utf-8").splitlines())
        for name in listed
        if Path(name).suffix in ENDINGS and Path(name).exists()
    }
    long = {name: count for name, count in lengths.items() if count > LIMIT_LINES}
    for name, count in sorted(long.items()):
        print(f"{name}: {count} lines, at most {LIMIT_LINES} are allowed")
    return 1 if long else 0


if __name__ == "__main__":
    sys.exit(main())
