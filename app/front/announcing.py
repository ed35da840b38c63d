"""Tells front ends what the engine process serves, and gives every version's counters their place in shared memory."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from app.front.channel import Channel
from app.front.memory import VERSIONS, SharedMemory
from app.front.messages import Known, Version
from app.serving.endpoint import Endpoint
from app.serving.registry import ModelState, Registry
from app.serving.stats import Cells, Stats
from engines.tensor import TensorSpec

__all__ = ["Announcer", "Told"]

_SOON_S = 0.02
"""Many changes come at once, and each is told with all that is served."""
_REMEMBERED = 1024
"""Endpoints that are no longer served, which a call that is under way may still name."""


class Told(NamedTuple):
    """What front ends check calls against. `endpoint` is none of ours to keep: it holds an engine."""

    model: str
    inputs: tuple[TensorSpec, ...]
    endpoint: weakref.ref[Endpoint]


class Announcer:
    """What it tells may be late: the engine resolves every call again, and front ends pass on what they do not know."""

    def __init__(self, registry: Registry, shared: SharedMemory, front_ends: Callable[[], Iterable[Channel]]) -> None:
        self._registry, self._shared, self._front_ends = registry, shared, front_ends
        self._ids: dict[Endpoint, int] = {}
        self._told_of: dict[int, Told] = {}
        self._old: deque[int] = deque()
        self._last_id = 0
        self._places: dict[Stats, int] = {}
        self._free_places = list(range(VERSIONS - 1, -1, -1))
        self._is_due = False
        registry.changed = self._changed

    def told(self, number: int) -> Told:
        """What was told by this id; KeyError where it is long gone."""
        return self._told_of[number]

    def counted(self, stats: Stats) -> Sequence[Cells]:
        """What front ends have counted of a version."""
        place = self._places.get(stats, -1)
        return [] if place < 0 else [cells.stats(place) for cells in self._shared.cells[:-1]]

    def tell(self, channel: Channel) -> None:
        channel.send(self._known())

    def _changed(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(_SOON_S, self._tell_all)

    def _tell_all(self) -> None:
        self._is_due = False
        known = self._known()
        for channel in self._front_ends():
            channel.send(known)

    def _known(self) -> Known:
        ready = [v for v in self._registry.all() if v.state is ModelState.READY and v.endpoint is not None]
        newest = {version.model: version.number for version in ready}  # `all` is ascending
        endpoints = [v.endpoint for v in ready if v.endpoint is not None]
        self._retire(set(endpoints))
        return Known([self._version(e, is_newest=newest[e.model] == e.version) for e in endpoints if _is_flat(e)])

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
