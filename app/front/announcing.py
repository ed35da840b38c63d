"""Tells front ends what the engine process serves, and gives every version's counters their place in shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from app.front.channel import Channel
from app.front.memory import VERSIONS, SharedMemory
from app.front.messages import Known, Version
from app.serving.endpoint import Endpoint
from app.serving.registry import ModelState, Registry
from app.serving.stats import Cells, Stats
from engines.tensor import TensorSpec

__all__ = ["Announcer", "Told"]

_HEARD_S = 5.0
_REMEMBERED = 1024
"""Endpoints that are no longer served, which a call that is under way may still name."""


class Told(NamedTuple):
    """What front ends check calls against. `endpoint` is none of ours to keep: it holds an engine."""

    model: str
    inputs: tuple[TensorSpec, ...]
    endpoint: weakref.ref[Endpoint]


class Announcer:
    """What it tells may be late: the engine resolves every call again, and front ends pass on what they do not know."""

    def __init__(self, registry: Registry, shared: SharedMemory) -> None:
        self._registry, self._shared = registry, shared
        self._number = 1
        self._heard: dict[Channel, int] = {}
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._ids: dict[Endpoint, int] = {}
        self._told_of: dict[int, Told] = {}
        self._old: deque[int] = deque()
        self._last_id = time.monotonic_ns()  # never one of an engine process before this one
        self._places: dict[Stats, int] = {}
        self._free_places = list(range(VERSIONS - 1, -1, -1))
        self._is_due = False
        registry.changed = self._changed

    def told(self, number: int) -> Told | None:
        """What was told by this id; None where it is long gone."""
        return self._told_of.get(number)

    def counted(self, stats: Stats) -> Sequence[Cells]:
        """What front ends have counted of a version."""
        place = self._places.get(stats, -1)
        return [] if place < 0 else [cells.stats(place) for cells in self._shared.cells[:-1]]

    # -- telling -------------------------------------------------------------------------------------------------

    def join(self, channel: Channel) -> None:
        """A front end has come: it is told what there is."""
        self._heard[channel] = 0
        channel.send(self._known())

    def leave(self, channel: Channel) -> None:
        self._heard.pop(channel, None)
        self._look()

    def tell(self, channel: Channel) -> None:
        """Once more, to one that has asked for what is no longer there."""
        channel.send(self._known())

    def heard(self, channel: Channel, number: int) -> None:
        self._heard[channel] = max(number, self._heard.get(channel, 0))
        self._look()

    async def published(self) -> None:
        """Until every front end knows what is served now; one that does not say so in time is not waited for."""
        self._tell_all()
        heard = asyncio.get_running_loop().create_future()
        self._waiting.append((self._number, heard))
        self._look()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(heard, _HEARD_S)

    def _changed(self) -> None:
        """Many changes come at once: they are told together, when all that was told before was heard."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        least = min(self._heard.values(), default=self._number)
        for number, heard in self._waiting:
            if number <= least and not heard.done():
                heard.set_result(None)
        self._waiting = [(number, heard) for number, heard in self._waiting if not heard.done()]
        if self._is_due and least >= self._number:
            self._tell_all()

    def _tell_all(self) -> None:
        self._is_due = False
        self._number += 1
        known = self._known()
        for channel in self._heard:
            channel.send(known)

    def _known(self) -> Known:
        ready = [v for v in self._registry.all() if v.state is ModelState.READY and v.endpoint is not None]
        newest = {version.model: version.number for version in ready}  # `all` is ascending
        endpoints = [v.endpoint for v in ready if v.endpoint is not None]
        self._retire(set(endpoints))
        versions = [self._version(e, is_newest=newest[e.model] == e.version) for e in endpoints if _is_flat(e)]
        return Known(self._number, versions)

    def _version(self, endpoint: Endpoint, *, is_newest: bool) -> Version:
        if endpoint not in self._ids:
            self._last_id += 1
            self._ids[endpoint] = self._last_id
            self._told_of[self._last_id] = Told(endpoint.model, endpoint.inputs, weakref.ref(endpoint))
        options = endpoint.options
        return Version(
            self._ids[endpoint], self._place(endpoint.stats), endpoint.model, endpoint.version, is_newest,
            endpoint.inputs, endpoint.outputs, options.limits, dict(options.labels),
        )  # fmt: skip

    def _retire(self, served: set[Endpoint]) -> None:
        for endpoint in [known for known in self._ids if known not in served]:
            self._old.append(self._ids.pop(endpoint))
        while len(self._old) > _REMEMBERED:
            del self._told_of[self._old.popleft()]

    def _place(self, stats: Stats) -> int:
        """Of its counters, which begin at 0; -1 where all places are taken."""
        if stats not in self._places and not self._free_places:
            self._reclaim()
        if stats not in self._places and self._free_places:
            place = self._places[stats] = self._free_places.pop()
            for cells in self._shared.cells[:-1]:
                cells.stats(place)[:] = memoryview(bytes(8 * Stats.CELLS)).cast("q")
        return self._places.get(stats, -1)

    def _reclaim(self) -> None:
        """Take back the places of versions that are nowhere any more."""
        in_use = {endpoint.stats for endpoint in self._ids}
        for stats in [known for known in self._places if known not in in_use]:
            self._free_places.append(self._places.pop(stats))


def _is_flat(endpoint: Endpoint) -> bool:
    """Whether all its tensors can lie in shared memory: strings cannot."""
    return all(spec.datatype != "BYTES" for spec in (*endpoint.inputs, *endpoint.outputs))
