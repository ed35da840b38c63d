"""Large JSON is decoded beside the event loop, and in pieces, which mean what the whole means."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.http.errors import BadRequest
from app.http.infer import Exchange
from app.http.pieces import PIECE_BYTES
from app.http.tensors import from_json
from app.http.workers import INLINE_BYTES
from app.serving.errors import Cancelled
from engines.tensor import datatype
from tests.hostile.wire import Client, json_body, post, short_post
from tests.http.benches import Bench, on_the_wire, until, with_bench
from tests.support.servers import running

ROWS, COLUMNS = 300, 1000
VALUES = (np.arange(ROWS * COLUMNS) % 977 / 8 - 50).reshape(ROWS, COLUMNS)
PLANES = "/v2/models/planes/infer"


def planes(data: Any, rows: int = ROWS, columns: int = COLUMNS, **keys: Any) -> bytes:
    """A call of Y = max(X, 0) over [1, rows, columns], padded so that it counts as large."""
    tensor = {"name": "X", "datatype": "FP32", "shape": [1, rows, columns], "data": data}
    return json.dumps({"inputs": [tensor], "padding": "." * INLINE_BYTES, **keys}).encode()


@pytest.mark.parametrize("nested", [False, True])
def test_others_are_answered_while_a_large_body_is_decoded(wire_repository: Path, nested: bool) -> None:
    body = planes([VALUES.tolist()] if nested else VALUES.ravel().tolist())

    async def test(bench: Bench) -> None:
        bench.hold()
        large = bench.ask(body, path=PLANES)
        await until(lambda: bench.held == 1)
        small = await bench.ask(json_body(2.0))
        assert small.json()["outputs"][0]["data"] == [4.0] * 16
        assert not large.done()
        assert (bench.handler.room.held_bytes, bench.handler.in_flight) == (len(body), 5)
        bench.let_go()
        output = (await large).json()["outputs"][0]
        assert np.array_equal(output["data"], np.maximum(VALUES, 0).ravel())
        assert (bench.handler.room.held_bytes, bench.handler.workers.busy) == (0, 0)

    with_bench(wire_repository, test)


def test_answers_of_a_connection_keep_their_order(wire_repository: Path) -> None:
    large = json_body(3.0, padding="." * INLINE_BYTES)
    with running(wire_repository) as server, Client(server.port) as client:
        server.wait_ready("m")
        client.send(post("m", large) + short_post("m", 2.0) + post("m", large) + short_post("m", 1.0))
        values = [client.read().json()["outputs"][0]["data"][0] for _ in range(4)]
    assert values == [6.0, 4.0, 6.0, 2.0]


def test_a_client_may_leave_before_its_body_is_decoded(wire_repository: Path) -> None:
    body = json_body(3.0, padding="." * INLINE_BYTES)

    async def test(bench: Bench) -> None:
        bench.hold()
        before = bench.cancelled()
        staying, kept = on_the_wire(bench, body)
        leaving, unread = on_the_wire(bench, body)
        asgi = bench.ask(body)
        await until(lambda: bench.held == 3)
        leaving.abandon()
        asgi.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asgi
        assert bench.handler.room.held_bytes == staying.hold.size_bytes == len(body)
        bench.let_go()
        await until(lambda: kept.answers)
        await until(lambda: bench.handler.in_flight == 0)
        assert ([answer.status for answer in kept.answers], unread.answers) == ([200], [])
        assert bench.cancelled() == before + 2
        assert bench.handler.room.held_bytes == 0

    with_bench(wire_repository, test)


def test_a_client_that_leaves_ends_the_work(wire_repository: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.hold()
        cycle, _ = on_the_wire(bench, planes(VALUES.ravel().tolist()))
        exchange: Exchange | None = cycle.exchange
        assert exchange is not None
        exchange._pause()
        cycle.abandon()
        with pytest.raises(Cancelled):
            exchange._pause()

    with_bench(wire_repository, test)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (planes([1.0] * (ROWS * COLUMNS - 1)), "data has 299999"),
        (planes([1.0] * (ROWS * COLUMNS - 1) + ["1"]), "cannot be read as FP32: Expected `float`, got `str`"),
        (planes([])[:-1], "failed to parse the request JSON buffer"),
        (planes([1.0] * ROWS * COLUMNS, COLUMNS, ROWS, parameters={"timeout": -1}), "must be an unsigned integer"),
    ],
    ids=["too few", "a string", "no JSON", "a parameter"],
)
def test_what_is_wrong_is_answered(wire_repository: Path, body: bytes, said: str) -> None:
    async def test(bench: Bench) -> None:
        answer = await bench.ask(body, path=PLANES)
        assert (answer.status_code, said in answer.json()["error"]) == (400, True), answer.text
        assert bench.handler.room.held_bytes == 0
        assert bench.handler.gateway.resolve("planes").stats.failures["OTHER"] == 1

    with_bench(wire_repository, test)


def text(values: Any, depth: int) -> bytes:
    """Larger than what is decoded at once; spaces keep the number of elements small."""
    gap = " " * (INLINE_BYTES // json.dumps(values).count(",") + 1)
    return json.dumps(values, separators=("," + gap, ":")).encode()


@pytest.mark.parametrize("shape", [(70_001,), (7, 10_001), (10_001, 7), (3, 1, 5, 999), (1, 1, 70_001), (40_000, 1)])
@pytest.mark.parametrize("kind", ["FP32", "FP64", "FP16", "INT64", "UINT8", "BOOL"])
def test_pieces_mean_what_the_whole_means(shape: tuple[int, ...], kind: str) -> None:
    numbers = np.arange(np.prod(shape)) % (2 if kind == "BOOL" else 120)
    whole = numbers.astype(datatype(kind).numpy).reshape(shape)
    pauses = itertools.count()
    data = text(whole.tolist(), len(shape))
    assert len(data) > INLINE_BYTES
    read = from_json("x", data, list(shape), datatype(kind), lambda: next(pauses) and None)
    assert (read.dtype, read.shape) == (whole.dtype, whole.shape)
    assert np.array_equal(read, whole)
    assert next(pauses) > INLINE_BYTES // PIECE_BYTES // 2


RAGGED: dict[str, Any] = {
    "a longer row": [[1, 2]] * 20_000 + [[1, 2, 3]],
    "a shorter row": [[1, 2]] * 20_000 + [[1]],
    "a number among rows": [[1, 2]] * 20_000 + [3],
    "a deeper row": [[1, 2]] * 20_000 + [[[1], 2]],
    "shifted": [[1, 2], [3]] * 10_000,
    "an empty row": [[1, 2]] * 20_000 + [[]],
}


@pytest.mark.parametrize("case", RAGGED)
def test_ragged_lists_are_refused_in_pieces_too(case: str) -> None:
    values = RAGGED[case]
    with pytest.raises(BadRequest, match="cannot be read as FP32"):
        from_json("x", text(values, 2), [len(values), 2], datatype("FP32"))


@pytest.mark.parametrize("wrong", ["1e999", "null", "true", '"a"', "{}", "1e39"])
def test_a_wrong_number_is_refused_in_pieces_too(wrong: str) -> None:
    data = text([1] * 30_000, 1)[:-1] + f", {wrong}]".encode()
    with pytest.raises(BadRequest, match="cannot be read as FP32"):
        from_json("x", data, [30_001], datatype("FP32"))


def test_infinities_and_nan_are_read_in_pieces_too() -> None:
    data = text([1] * 30_000, 1)[:-1] + b", NaN, -Infinity]"
    assert np.array_equal(from_json("x", data, [30_002], datatype("FP32"))[-2:], [np.nan, -np.inf], equal_nan=True)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("inner", ["[7]", "[]", "[[7]]", "[1, 2]"])
def test_a_flat_list_holds_no_lists(inner: str, large: bool) -> None:
    gap = " " * 50 * large
    data = ("[" + f"1,{gap}" * 30_000 + inner + ",1]").encode()
    with pytest.raises(BadRequest, match=r"cannot be read as FP32: Expected `float`, got `array`"):
        from_json("x", data, [30_002], datatype("FP32"))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", ["BF16", "FP16", "FP32", "FP64"])
def test_whole_numbers_beside_nan_are_read_alike(kind: str, large: bool) -> None:
    whole = 2**14 if kind == "FP16" else 2**63
    data = ("[" + ("1," + " " * 50 * large) * 30_000 + f"NaN,{whole}]").encode()
    assert (len(data) > INLINE_BYTES) == large
    last = from_json("x", data, [30_002], datatype(kind))[-2:].astype(np.float64)
    assert np.array_equal(last, [np.nan, float(whole)], equal_nan=True)
