"""What `bitserve tune` cannot do."""

from __future__ import annotations

__all__ = ["TuneFailed"]


class TuneFailed(Exception):
    """The message says what was wrong, what was expected, and what to do."""
