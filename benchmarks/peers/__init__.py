"""bitserve beside other servers on the same cores, in the same sitting: the same model, the same requests, in turn."""

from __future__ import annotations

from typing import Any

__all__ = ["finished", "run"]


def run() -> dict[str, Any]:
    """All parts in full, and the plot: an hour, on two cores that nothing else uses.

    What has been measured is kept beside the peers' environments too, part by part, should a later part fail.
    """
    from benchmarks.peers.measuring import PARTS, measured
    from benchmarks.peers.setup import Effort
    from benchmarks.peers.venvs import cache_folder

    cache_folder().mkdir(parents=True, exist_ok=True)
    return finished(measured(PARTS, Effort(), {}, cache_folder() / "measured.json"))


def finished(found: dict[str, Any]) -> dict[str, Any]:
    """The result of what was measured; writes the plot, and the file of all rows, of which README shows some."""
    from benchmarks.peers.measuring import result_of
    from benchmarks.peers.plot import write_plot
    from benchmarks.report import RESULTS

    write_plot(RESULTS / "peers.svg", found)
    result = result_of(found)
    lines = [f"| {one['what']} | {one['measured']} | {one['goal']} |" for one in result["rows"]]
    (RESULTS / "peers.md").write_text("\n".join(["| measured | result | goal |", "|---|---|---|", *lines, ""]))
    return {**result, "all_rows": "peers.md"}
