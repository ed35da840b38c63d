"""When a server tells that a build of others has succeeded: once it has what was built, or does not wait for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.builds.shared.arrivals import Arrivals
from app.builds.state import Asked, BuildState, Progress
from app.builds.store import now
from app.serving.registry import ModelState, Registry, Version

ASKED = Asked(id="a", model="m", key="k", file_name="", sha256="", size_bytes=0, created=now())
DONE = Progress(state=BuildState.SUCCEEDED, stage="done", percent=100, version=2, ended=now())


class Here:
    """Arrivals, and all that they look at."""

    def __init__(self) -> None:
        self.s, self.nudges, self.wanted = 0.0, 0, True
        self.registry = Registry()
        manager: Any = SimpleNamespace(choose=lambda model, numbers: numbers if self.wanted else set())
        self.arrivals = Arrivals(SimpleNamespace(), manager, self.registry, self._nudge, lambda: self.s)  # type: ignore[arg-type]

    def _nudge(self) -> None:
        self.nudges += 1

    def has(self, number: int, state: ModelState) -> None:
        self.registry.set(Version("m", number, state))

    async def told(self, progress: Progress = DONE) -> str:
        return (await self.arrivals.told(ASKED, progress)).state.value


@pytest.mark.anyio
async def test_what_was_seen_on_its_way_is_awaited() -> None:
    here = Here()
    assert await here.told(Progress(state=BuildState.RUNNING)) == "running"
    told = await here.arrivals.told(ASKED, DONE)
    assert (told.state.value, told.stage, told.percent, told.version, told.ended) == ("running", "load", 95, 2, None)
    assert here.nudges == 1, "the store is looked at, once"
    here.has(1, ModelState.READY)
    here.has(2, ModelState.LOADING)
    assert await here.told() == "running"
    here.has(2, ModelState.READY)
    assert await here.told() == "succeeded"
    assert here.nudges == 1


@pytest.mark.anyio
@pytest.mark.parametrize("number_and_state", [(2, ModelState.UNAVAILABLE), (3, ModelState.READY)])
async def test_it_is_not_awaited_where_it_failed_or_was_overtaken(number_and_state: tuple[int, ModelState]) -> None:
    here = Here()
    here.arrivals.keep(["a"], ["a"])
    assert await here.told() == "running"
    here.has(*number_and_state)
    assert await here.told() == "succeeded"


@pytest.mark.anyio
async def test_it_is_not_awaited_where_it_is_not_wanted_or_for_ever_or_after_a_start() -> None:
    here = Here()
    assert await here.told() == "succeeded", "it had ended before this server knew of it"
    here.arrivals.keep(["a"], ["a"])
    here.wanted = False
    assert await here.told() == "succeeded"
    here = Here()
    here.arrivals.keep(["a"], ["a"])
    assert await here.told() == "running"
    here.s = 61.0
    assert await here.told() == "succeeded"
    assert await here.told() == "succeeded"


@pytest.mark.anyio
async def test_what_did_not_succeed_is_told_at_once() -> None:
    here = Here()
    here.arrivals.keep(["a"], ["a"])
    assert await here.told(Progress(state=BuildState.FAILED, error="no")) == "failed"
    assert here.nudges == 0
