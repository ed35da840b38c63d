"""What HTTP asks of builds: those of one server (`jobs`), and those of many (`shared`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Protocol

from app.builds.state import Asked, Event, Progress
from app.serving.stats import Histogram

__all__ = ["BuildService"]


class BuildService(Protocol):
    """On the event loop. For a build that is not there, KeyError."""

    @property
    def ended_ns(self) -> Mapping[str, Histogram]:
        """How long builds took, by how they ended; each is counted by one server."""
        ...

    @property
    def waiting(self) -> int: ...

    @property
    def running(self) -> int: ...

    def start(self) -> None: ...

    def begin_stop(self) -> None: ...

    async def stop(self) -> None: ...

    def require_turn(self) -> None:
        """Raise Elsewhere where another server has the builds."""
        ...

    def admit(self) -> AbstractContextManager[None]:
        """Keep a place for an upload while it arrives. Raises QueueFull or Stopping."""
        ...

    async def require_disk(self, size_bytes: int) -> None:
        """Raise QueueFull where so many more bytes do not fit."""
        ...

    async def find_same(self, model: str, key: str) -> str | None:
        """The build of the same upload that waits or runs, or whose version serves."""
        ...

    def new_id(self) -> str: ...

    def receive(self, build: str) -> AbstractAsyncContextManager[Path]:
        """A folder to receive an upload into; without `add` nothing is left of it."""
        ...

    async def add(self, asked: Asked, staging: Path) -> None:
        """Accept what was received. Raises QueueFull or OSError where it cannot be stored."""
        ...

    async def all(self) -> list[tuple[Asked, Progress]]: ...

    async def one(self, build: str) -> tuple[Asked, Progress]: ...

    async def events(self, build: str) -> list[Event]: ...

    async def cancel(self, build: str) -> bool:
        """End a build that waits or runs; False where it is too late."""
        ...

    def follow(self, build: str, after: int = 0) -> AsyncIterator[tuple[int, Event]]:
        """Events from number `after` on, those to come included."""
        ...
