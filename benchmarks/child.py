"""The in-process twin, `benchmarks.inprocess`, in a process of its own so that memory and CPU time are its own."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.hardware import usable_threads

__all__ = ["Child", "child_of", "search"]


class Child:
    """Measures when it is told to, and else does nothing."""

    def __init__(self, model: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.inprocess", str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )

    def measure(self, streams: int, threads: int, batch: int, seconds: float) -> dict[str, float]:
        """Rows a second and CPU seconds a row with every stream busy."""
        return self._ask({"streams": streams, "threads": threads, "batch": batch, "seconds": seconds})

    def alone(self, threads: int, batch: int, seconds: float) -> dict[str, float]:
        """The same of one stream that is waited for, and the latency of a run."""
        return self._ask({"threads": threads, "batch": batch, "seconds": seconds})

    def _ask(self, order: dict[str, float]) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, float] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@contextmanager
def child_of(model: Path) -> Iterator[Child]:
    """A child for this model file; ended at the end."""
    child = Child(model)
    try:
        yield child
    finally:
        child.close()


def search(child: Child, batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)) -> list[dict[str, float]]:
    """Batch, streams and threads of the in-process run: the best of this grid is the limit."""
    threads = usable_threads()
    found = []
    for (streams, count), batch in itertools.product({(1, threads), (threads, threads)}, batches):
        speed = max(child.measure(streams, count, batch, 2)["rows_per_s"] for _ in range(2))
        found.append({"streams": streams, "threads": count, "batch": batch, "rows_per_s": speed})
    return found
