"""What front ends and the engine process tell each other: frames of a 4-byte little-endian length and a list.

Tensors are not in it: `Place` says where in the front end's arena they are. Both ends are processes of one server, of
one version of this code, and started by one supervisor.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from app.serving.limits import Limits
from engines.tensor import TensorSpec

__all__ = [
    "Answer",
    "Ask",
    "Frames",
    "FromEngine",
    "FromFront",
    "Heard",
    "Hello",
    "Known",
    "Refusal",
    "Version",
    "Withdraw",
    "frame",
]

_LENGTH = struct.Struct("<I")
Shape = tuple[int, ...]


class Hello(msgspec.Struct, array_like=True, tag=0):
    """The first word of front end `index`."""

    index: int


class Ask(msgspec.Struct, array_like=True, tag=1):
    """A call whose inputs have been written to the block at `offset`, one after the other, each aligned to ALIGNMENT.

    `serial` is the front end's name for it, `version` the engine's name for what the inputs were checked against;
    `number` is None where the client named no version. Times are CLOCK_MONOTONIC, which all processes share.
    """

    serial: int
    version: int
    number: int | None
    offset: int
    size_bytes: int
    rows: int
    shapes: tuple[Shape, ...]
    outputs: tuple[str, ...] | None
    received_ns: int
    priority: int
    timeout_us: int
    sequence_id: int | str
    accepted: bool


class Withdraw(msgspec.Struct, array_like=True, tag=2):
    """The client of a call has gone."""

    serial: int


class Heard(msgspec.Struct, array_like=True, tag=6):
    """The `Known` of this number is known."""

    number: int


class Version(msgspec.Struct, array_like=True):
    """A version that front ends may ask for. `place` is that of its counters, -1 where there is none left."""

    id: int
    place: int
    model: str
    number: int
    is_newest: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    limits: Limits
    labels: dict[str, tuple[str, ...]]


class Known(msgspec.Struct, array_like=True, tag=3):
    """All versions that may be asked for, in the place of those told before; to be answered with its number."""

    number: int
    versions: list[Version]


class Answer(msgspec.Struct, array_like=True, tag=4):
    """The outputs of a call: index in the version's outputs and shape of each.

    They lie in the call's own block as inputs did; where that is too small, one after the other in `data`.
    """

    serial: int
    outputs: tuple[tuple[int, Shape], ...]
    data: bytes | None = None


class Refusal(msgspec.Struct, array_like=True, tag=5):
    """A call that ended without outputs: the name of a class of `app.serving.errors`, and what it says."""

    serial: int
    kind: str
    message: str


FromFront = Hello | Ask | Withdraw | Heard
FromEngine = Known | Answer | Refusal


class Frames:
    """A stream of bytes to messages, whatever pieces it comes in. Raises msgspec.DecodeError where it is no stream of
    them.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[Any]) -> None:
        self._decoder = decoder
        self._rest = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[object]:
        """The messages that are complete with this piece."""
        if self._rest:
            self._rest += data
            data = self._rest
        at = 0
        while len(data) - at >= _LENGTH.size:
            end = at + _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
            if end > len(data):
                break
            yield from self._decoder.decode(data[at + _LENGTH.size : end])
            at = end
        if data is self._rest:
            del self._rest[:at]
        else:
            self._rest += data[at:]


_encoder = msgspec.msgpack.Encoder()


def frame(messages: Iterable[FromFront | FromEngine]) -> bytes:
    """The bytes of one frame."""
    body = _encoder.encode(messages)
    return _LENGTH.pack(len(body)) + body
