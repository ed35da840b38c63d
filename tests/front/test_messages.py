"""Frames arrive in any pieces and give the same messages; tensors in a block come out as they went in."""

from __future__ import annotations

import mmap

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.front import layout
from app.front.messages import (
    Answer,
    Ask,
    Frames,
    FromEngine,
    FromFront,
    Heard,
    Hello,
    Known,
    Refusal,
    Version,
    Withdraw,
    frame,
)
from app.serving.limits import Limits
from engines.tensor import BY_NAME, TensorSpec

ASK = Ask(7, 3, None, 4096, 512, 2, ((2, 4), (2,)), ("y",), 123_456_789_012, 1, 5000, "who", accepted=True)
OF_FRONT = [
    Hello(1),
    ASK,
    Withdraw(7),
    Heard(4),
    Ask(8, 3, 2, 0, 512, 1, ((1,),), None, 0, 0, 0, 2**64 - 1, accepted=False),
]
SPEC = TensorSpec("x", "FP32", (-1, 4), 0, 40, (-3, 9), 65504.0)
OF_ENGINE = [
    Known(4, [Version(3, 0, "m", 1, True, (SPEC,), (SPEC,), Limits(8, (4, 8), 1000), {"y": ("cat", "dog")})]),
    Answer(7, ((0, (2, 4)),)),
    Answer(8, ((0, (1,)), (1, ())), b"\0\1"),
    Refusal(9, "QueueFull", "too many"),
]


@given(st.lists(st.integers(1, 40)), st.lists(st.integers(1, 4)))
@pytest.mark.parametrize(("kinds", "messages"), [(FromFront, OF_FRONT), (FromEngine, OF_ENGINE)])
def test_any_pieces_give_the_same_messages(kinds, messages, pieces, groups) -> None:
    rest, stream = list(messages), b""
    for size in [*groups, len(messages)]:
        stream, rest = stream + frame(rest[:size]), rest[size:]
    frames = Frames(msgspec.msgpack.Decoder(list[kinds]))
    got: list[object] = []
    for size in pieces:
        got += frames.feed(stream[:size])
        stream = stream[size:]
    got += frames.feed(stream)
    assert got == messages


def test_a_frame_of_megabytes_is_put_together() -> None:
    data = bytes(range(256)) * 16384
    stream = frame([Answer(1, ((0, (len(data),)),), data), Refusal(2, "Cancelled", "")])
    frames = Frames(msgspec.msgpack.Decoder(list[FromEngine]))
    got = [message for at in range(0, len(stream), 65536) for message in frames.feed(stream[at : at + 65536])]
    assert got == [Answer(1, ((0, (len(data),)),), data), Refusal(2, "Cancelled", "")]


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "BYTES"])
def test_tensors_of_every_datatype_come_out_as_they_went_in(name: str) -> None:
    rng = np.random.default_rng(1)
    whole = rng.integers(0, 2, (6, 5, 4)).astype(BY_NAME[name].numpy)
    arrays = [whole, whole[::2, :, 1], whole.transpose(2, 0, 1), whole[0, 0, 0].reshape(()), whole[:0]]
    memory = memoryview(mmap.mmap(-1, 8192))
    layout.write(memory, 512, arrays)
    specs = [TensorSpec(str(at), name, array.shape) for at, array in enumerate(arrays)]
    views = layout.read(memory, 512, specs, [array.shape for array in arrays])
    for view, array in zip(views, arrays, strict=True):
        assert view.dtype == array.dtype
        np.testing.assert_array_equal(view, array)
    assert layout.packed_bytes(arrays) <= 8192 - 512


def test_what_lies_beyond_the_memory_is_not_read() -> None:
    memory = memoryview(mmap.mmap(-1, 4096))
    spec = TensorSpec("x", "FP32", (-1,))
    with pytest.raises((ValueError, TypeError)):
        layout.read(memory, 4000, [spec], [(100,)])
