"""What the engine process tells of its versions."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from app.front.announcing import Announcer
from app.front.channel import Channel
from app.front.memory import SharedMemory
from app.front.messages import Known
from app.serving.registry import ModelState, Registry, Version
from tests.hostile.codecs import endpoint


class Told:
    """A front end's connection, of which only what is said is kept."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def send(self, message: Any) -> None:
        self.said.append(message)


async def ids_told(shared: SharedMemory) -> set[int]:
    """By an engine process that loads a model, and loads it anew twice."""
    registry, told = Registry(), Told()
    announcer = Announcer(registry, shared)
    for _ in range(3):
        registry.set(Version("m", 1, ModelState.READY, "", endpoint()))
        announcer.join(cast(Channel, told))
    known = [message for message in told.said if isinstance(message, Known)]
    return {version.id for message in known for version in message.versions}


def test_no_engine_process_names_a_version_as_one_before_it_did() -> None:
    shared = SharedMemory(1, 2**20)
    before, after = asyncio.run(ids_told(shared)), asyncio.run(ids_told(shared))
    assert (len(before), len(after)) == (3, 3)
    assert not before & after, "an answer for a call of the former process would be taken for another"
