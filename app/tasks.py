"""Tasks that somebody owns: all can be ended, and of those with a key the last one is known."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable
from typing import Any

__all__ = ["Tasks"]


class Tasks:
    """On one event loop."""

    def __init__(self) -> None:
        self._all: set[asyncio.Task[Any]] = set()
        self._keyed: dict[Hashable, asyncio.Task[Any]] = {}

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin something."""
        task = asyncio.get_running_loop().create_task(work)
        self._all.add(task)
        task.add_done_callback(self._all.discard)
        return task

    def start(self, key: Hashable, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin something that `get` and `cancel` know by its key until it ends, or another of this key begins."""
        task = self._keyed[key] = self.spawn(work)

        def ended(_: object) -> None:
            if self._keyed.get(key) is task:
                del self._keyed[key]

        task.add_done_callback(ended)
        return task

    def get(self, key: Hashable) -> asyncio.Task[Any] | None:
        """What runs under a key, if anything does."""
        return self._keyed.get(key)

    def cancel(self, key: Hashable) -> None:
        """End what runs under a key, if anything does."""
        task = self._keyed.pop(key, None)
        if task is not None:
            task.cancel()

    def cancel_all(self) -> None:
        """End everything. A task that is being ended already is left to it: a second time would disturb it."""
        for task in list(self._all):
            if not task.cancelling():
                task.cancel()

    async def wait(self) -> None:
        """Until all have ended, however they do."""
        await asyncio.gather(*self._all, return_exceptions=True)
