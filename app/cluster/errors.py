"""Errors of a cluster's API."""

from __future__ import annotations

from engines.errors import EngineError

__all__ = ["ClusterError", "ClusterRefused", "NoSuchObject"]


class ClusterError(EngineError):
    """The API could not be asked, has no time, or gives no right to; a later try may succeed."""


class ClusterRefused(ClusterError):
    """The API does not take what it is asked, and will not the next time either."""


class NoSuchObject(ClusterError):
    """There is no object of this name."""
