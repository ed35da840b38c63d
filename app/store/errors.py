"""Errors of object stores."""

from __future__ import annotations

from engines.errors import EngineError

__all__ = ["AlreadyThere", "NotThere", "StoreAway", "StoreError", "StoreRefused", "VersionTaken"]


class StoreError(EngineError):
    """The store could not be asked, or did not answer as it should; the message says what was asked."""

    is_passing = False
    """Whether the same may succeed later, with nothing done about it."""


class StoreAway(StoreError):
    """The store was not reached, or had no time."""

    is_passing = True


class AlreadyThere(StoreError):
    """An object of this name was made before."""


class NotThere(StoreError):
    """There is no object of this name."""


class StoreRefused(StoreError):
    """What lies in the store is not what was published: a file of another size or hash, or a name that leads out."""


class VersionTaken(StoreError):
    """Another writer has published this version; versions are immutable."""
