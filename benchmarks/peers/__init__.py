"""bitserve beside other servers on the same cores, in the same sitting: the same model, the same requests, in turn."""

from __future__ import annotations

from typing import Any

__all__ = ["run"]


def run() -> dict[str, Any]:
    """All parts in full, and the plot: an hour and a half, on two cores that nothing else uses.

    What has been measured is kept beside the peers' environments too, part by part, should a later part fail.
    """
    from benchmarks.peers.measuring import PARTS, measured, result_of
    from benchmarks.peers.plot import write_plot
    from benchmarks.peers.setup import Effort
    from benchmarks.peers.venvs import cache_folder
    from benchmarks.report import RESULTS

    cache_folder().mkdir(parents=True, exist_ok=True)
    found = measured(PARTS, Effort(), {}, cache_folder() / "measured.json")
    write_plot(RESULTS / "peers.svg", found)
    return result_of(found)
