"""A server whose compiler is a script: python -m tests.faults.flooded_server SCRIPT serve ..."""

from __future__ import annotations

import functools
import sys

from app import plans
from app.builds.executor import run_build
from app.cli import main

if __name__ == "__main__":
    plans.run_build = functools.partial(run_build, command=[sys.executable, "-c", sys.argv.pop(1)])
    main()
