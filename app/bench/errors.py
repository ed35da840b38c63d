"""What `bitserve bench` cannot do."""

from __future__ import annotations

__all__ = ["BenchFailed"]


class BenchFailed(Exception):
    """The message says what was wrong, what was expected, and what to do."""
