"""bitserve beside other servers on the same cores, in the same sitting: the same model, the same requests, in turn."""

from __future__ import annotations

from typing import Any

__all__ = ["run"]


def run() -> dict[str, Any]:
    """All parts in full: an hour on two cores that nothing else uses."""
    from benchmarks.peers.run import PARTS, measured, result_of
    from benchmarks.peers.setup import Effort

    return result_of(measured(PARTS, Effort(), {}))
