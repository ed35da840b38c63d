"""What the command and its process for the load tell each other, over a pair of sockets: length, then msgpack."""

from __future__ import annotations

import struct

import msgspec

from app.bench.seen import Increment
from app.bench.target import Tensor

__all__ = ["LENGTH", "Ended", "Load", "Order", "Said", "Setup", "Stop", "Told", "decode_order", "decode_said", "encode"]

LENGTH = struct.Struct("<Q")


class Setup(msgspec.Struct, tag=True):
    """The first message: where requests go, and what they are."""

    host: str
    port: int
    requests: list[bytes]
    rows: int
    outputs: list[Tensor]
    timeout_s: float


class Load(msgspec.Struct, tag=True):
    """One run. Closed loop for `seconds` or `requests` where `dues` is None, else open: int64 nanoseconds, in bytes.

    A run with as many connections as the one before goes on with its connections.
    """

    connections: int
    seconds: float | None
    requests: int | None
    dues: bytes | None = None


class Stop(msgspec.Struct, tag=True):
    """No more requests in the run under way."""


class Told(msgspec.Struct, tag=True):
    """Ten times a second, and before the end."""

    increment: Increment


class Ended(msgspec.Struct, tag=True):
    """Of a run: the window's seconds, this process' CPU seconds, requests sent, connections that were open at its end.

    `gone`: the server took no connection any more. `failure`: the load itself could not go on, and why.
    """

    seconds: float
    cpu_s: float
    sent: int
    connections: int
    gone: bool
    failure: str = ""


Order = Setup | Load | Stop
Said = Told | Ended
_encoder = msgspec.msgpack.Encoder()
_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_said: msgspec.msgpack.Decoder[Said] = msgspec.msgpack.Decoder(Said)


def encode(message: Order | Said) -> bytes:
    """With its length before it."""
    data = _encoder.encode(message)
    return LENGTH.pack(len(data)) + data


def decode_order(data: bytes) -> Order:
    return _orders.decode(data)


def decode_said(data: bytes) -> Said:
    return _said.decode(data)
