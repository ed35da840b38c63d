"""Rows of README's table: figures as words, and a void run named as such."""

from __future__ import annotations

from benchmarks.peers.pairing import Rounds

__all__ = ["COMMAND", "against", "row", "share", "why_void"]

COMMAND = "make bench-peers"
_LONGEST = 240


def row(what: str, measured: str, goal: str = "-") -> dict[str, str]:
    """One row; what a server said in its own words must not break the table."""
    shown = " ".join(measured.replace("|", "/").split())
    return {"what": what, "measured": shown[:_LONGEST], "goal": goal, "command": COMMAND}


def against(found: Rounds, key: str, name: str, other: str, unit: str, digits: int = 0) -> str:
    """The ratio, and the medians that it is of; or why there is none."""
    ratio, mine, theirs = found.ratio(key, name, other), found.median(name, key), found.median(other, key)
    if ratio is None or mine is None or theirs is None:
        return why_void(found, name, other)
    return f"{ratio:.2f}x ({mine:.{digits}f} against {theirs:.{digits}f} {unit})"


def why_void(found: Rounds, *names: str) -> str:
    """Which run was void, and why."""
    reasons = [f"void: {name}, {found.void[name]}" for name in names if name in found.void]
    return "; ".join(reasons) or "not measured"


def share(found: Rounds, key: str, name: str, other: str, unit: str) -> str:
    """The ratio as a percentage."""
    ratio, mine, theirs = found.ratio(key, name, other), found.median(name, key), found.median(other, key)
    if ratio is None or mine is None or theirs is None:
        return why_void(found, name, other)
    return f"{ratio:.1%} ({mine:.1f} against {theirs:.1f} {unit})"
