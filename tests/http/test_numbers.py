"""Short lists of numbers: what is read and written fast is what is read and written slowly."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from app.http import numbers, tensors
from app.http.errors import BadRequest
from app.http.wanted import Wanted
from app.http.wire import InferResponse, ResponseOutput
from engines.tensor import BY_NAME, DataType

READ = [kind for kind in BY_NAME.values() if kind.name not in ("BYTES", "BOOL", "BF16")]
EDGES = [0, -0.0, 1, -1, 2.0, 127, 128, -129, 255, 256, 65504, 65519.99, 65520, 3.4028235e38, 3.4028236e38, 5e-324,
         2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 1e-45, 7e-46, 1.7976931348623157e308,
         2049.0000001]  # fmt: skip
values = st.lists(
    st.one_of(
        st.sampled_from(EDGES), st.floats(allow_nan=False, allow_infinity=False), st.floats(width=16),
        st.integers(-300, 300),
    ),
    max_size=6,
)  # fmt: skip


def slowly(text: bytes, count: int, kind: str) -> np.ndarray | None:
    try:
        return tensors.from_json("x", text, [count], BY_NAME[kind])
    except BadRequest:
        return None


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
@given(listed=values, count=st.integers(0, 6), blank=st.sampled_from(["", " ", "\n\t"]))
def test_a_list_is_read_to_the_bit_as_the_slow_reader_reads_it(
    kind, listed: list[float], count: int, blank: str
) -> None:  # type: ignore[no-untyped-def]
    text = f"{blank}{json.dumps(listed)}{blank}".encode()
    for size in (count, len(listed)):
        fast, slow = numbers.FlatList([size], kind).read(text), slowly(text, size, kind.name)
        if fast is None:  # the slow reader says why, or knows what JSON does not
            assert slow is None or b"NaN" in text or b"Infinity" in text
        else:
            assert slow is not None
            assert (fast.dtype, fast.shape, fast.tobytes()) == (slow.dtype, slow.shape, slow.tobytes())


@pytest.mark.parametrize(
    "text", [b"", b"[", b"[1,2", b"[1,2]]", b"[[1,2]]", b"[" * 100_000, b"[1,null]", b'["1",2]', b"{}", b"[1,2],"]
)
def test_what_is_no_flat_list_of_listedis_left_to_the_slow_reader(text: bytes) -> None:
    assert numbers.FlatList([1, 2], BY_NAME["FP32"]).read(text) is None


def test_a_list_that_was_read_has_the_shape_that_was_asked_for() -> None:
    read = numbers.FlatList([1, 2, 3], BY_NAME["INT16"]).read(b"[1,2,3,4,5,-6]")
    assert read is not None
    assert read.tolist() == [[[1, 2, 3], [4, 5, -6]]]


@pytest.mark.parametrize("dtype", [kind.numpy for kind in [*READ, BY_NAME["BOOL"]]], ids=str)
@given(data=st.data())
def test_an_array_is_written_as_the_slow_writer_writes_it(dtype: np.dtype, data: st.DataObject) -> None:
    array = data.draw(st_numpy.arrays(dtype, st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0)))
    fast = numbers.written(array)
    assert fast in (None, msgspec.json.encode(tensors.json_of(array)))
    if fast is None:
        with np.errstate(over="ignore", invalid="ignore"):
            assert not math.isfinite(float(array.astype(np.float64).sum()))


@pytest.mark.parametrize(
    "array", [np.zeros(5000, np.float32), np.array([b"a"], object), np.zeros(3, BY_NAME["BF16"].numpy)]
)
def test_what_is_long_or_not_listedis_left_to_the_slow_writer(array: np.ndarray) -> None:
    assert numbers.written(array) is None


def test_an_answer_from_a_frame_is_the_answer_that_was_encoded_whatever_its_names_are() -> None:
    names = ['"data":}', "y", '\\"data":', ""]
    first, then = (
        {name: np.full((1, 2), 10 * turn + at, np.float32) for at, name in enumerate(names)} for turn in (1, 2)
    )

    def encoded(outputs: dict[str, np.ndarray]) -> InferResponse:
        described = [ResponseOutput(name, [1, 2], "FP32", None, tensors.json_of(a)) for name, a in outputs.items()]
        return InferResponse(id='"data":}', model_name='"data":}', model_version="1", outputs=described)

    wanted = Wanted('"data":}', False, {}, {}).repeated()
    assert wanted.answer(first) is None
    wanted.keep(first, encoded(first))
    for outputs in (first, then):
        assert wanted.answer(outputs) == (msgspec.json.encode(encoded(outputs)), None)
    infinite = {**first, "y": np.array([[1, np.inf]], np.float32)}
    assert wanted.answer(infinite) is None


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
@given(listed=values)
def test_a_list_of_any_length_is_read_as_one_of_known_length(kind: DataType, listed: list[float]) -> None:
    text = json.dumps(listed).encode()
    fast, known = numbers.flat(text, kind), numbers.FlatList([len(listed)], kind).read(text)
    assert (fast is None) == (known is None)
    if fast is not None and known is not None:
        assert (fast.dtype, fast.tobytes()) == (known.dtype, known.tobytes())
