"""Large answers become JSON beside the event loop, in pieces; and what a request may ask of the decoder is bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from app.http.tensors import check_keys, json_of
from tests.hostile.wire import WIDE, Client, json_body, post
from tests.http.benches import Bench, on_the_wire, until, with_bench
from tests.support.servers import running

WIDE_INFER = "/v2/models/wide/infer"


def wide(*values: float, **keys: Any) -> bytes:
    """A call of model wide: a few numbers in, WIDE numbers of each out."""
    tensor = {"name": "X", "datatype": "FP32", "shape": [len(values), 1], "data": list(values)}
    return json.dumps({"inputs": [tensor], **keys}).encode()


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_others_are_answered_while_a_large_answer_is_written(wire_repository: Path, coding: str) -> None:
    async def test(bench: Bench) -> None:
        bench.hold()
        large = bench.ask(wide(1.0, float("nan")), {"Accept-Encoding": coding}, WIDE_INFER)
        await until(lambda: bench.held == 1)
        small = await bench.ask(json_body(2.0))
        assert small.json()["outputs"][0]["data"] == [4.0] * 16
        assert not large.done()
        assert bench.handler.room.held_bytes > 0
        bench.let_go()
        output = (await large).json()["outputs"][0]
        assert output["shape"] == [2, WIDE]
        rows = np.array(output["data"]).reshape(2, WIDE)
        assert np.isfinite(rows[0]).all()
        assert np.isnan(rows[1]).all()
        assert bench.handler.room.held_bytes == 0
        await until(lambda: bench.handler.in_flight == 0)

    with_bench(wire_repository, test)


def test_answers_of_a_connection_keep_their_order(wire_repository: Path) -> None:
    with running(wire_repository) as server, Client(server.port) as client:
        server.wait_ready("m", "wide")
        client.send((post("wide", wide(1.0, 2.0)) + post("m", json_body(2.0))) * 2)
        sizes = [len(client.read().json()["outputs"][0]["data"]) for _ in range(4)]
    assert sizes == [2 * WIDE, 16, 2 * WIDE, 16]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_, np.object_])
def test_pieces_are_written_as_the_whole_is(dtype: Any) -> None:
    numbers = np.arange(50_001).reshape(3, -1) % 251
    if dtype is np.object_:
        array = np.array([f"é,{n}".encode() for n in numbers.ravel()], dtype).reshape(numbers.shape)
        expected: list[Any] = [item.decode() for item in array.ravel()]
    else:
        array = (numbers / 8).astype(dtype)
        expected = array.ravel().tolist()
    pauses: list[None] = []
    written = msgspec.json.encode(json_of(array, lambda: pauses.append(None)))
    assert msgspec.json.decode(written) == expected
    assert len(pauses) > 2


@pytest.mark.parametrize("at", [0, 16_384, 50_000])
def test_a_piece_with_nan_leaves_the_others_as_they_are(at: int) -> None:
    array = (np.arange(50_001) / 7).astype(np.float32)
    array[at], array[at // 2 + 7] = np.nan, -np.inf
    read = json.loads(msgspec.json.encode(json_of(array)))
    assert np.array_equal(np.array(read, np.float32), array, equal_nan=True)


MANY = 2000
ONE = {"name": "X", "datatype": "FP32", "shape": [1], "data": [1]}


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"inputs": [{**ONE, "name": str(n)} for n in range(MANY)]}, f"expected 1 inputs but got {MANY} inputs"),
        ({"inputs": [ONE], "outputs": [{"name": str(n)} for n in range(MANY)]}, f"outputs but got {MANY}"),
        ({"inputs": [ONE], "parameters": {str(n): 1 for n in range(MANY)}}, f"parameters but got {MANY}"),
        ({"inputs": [{**ONE, "parameters": {str(n): 1 for n in range(MANY)}}]}, f"parameters but got {MANY}"),
    ],
    ids=["inputs", "outputs", "parameters", "parameters of an input"],
)
def test_far_too_many_of_something_are_counted_and_not_looked_at(
    wire_repository: Path, request_: dict[str, Any], said: str
) -> None:
    async def test(bench: Bench) -> None:
        answer = await bench.ask(json.dumps(request_).encode())
        assert (answer.status_code, said in answer.json()["error"]) == (400, True), answer.text
        assert bench.handler.room.held_bytes == 0

    with_bench(wire_repository, test)


@pytest.mark.parametrize("key", ["inputs", "outputs", "parameters"])
def test_a_flood_of_keys_is_refused_unread(wire_repository: Path, key: str) -> None:
    flood: Any = {str(n): 1 for n in range(20_000)}
    if key != "parameters":
        flood = [{**ONE, "name": str(n)} for n in range(20_000)]

    async def test(bench: Bench) -> None:
        answer = await bench.ask(json.dumps({"inputs": [ONE], key: flood}).encode())
        assert (answer.status_code, "more than 16384 keys" in answer.json()["error"]) == (400, True), answer.text

    with_bench(wire_repository, test)


@pytest.mark.parametrize("text", [":", '\\":', '{"a": 1}', "\\\\"])
def test_colons_within_strings_are_no_keys(text: str) -> None:
    check_keys(json.dumps({"data": [f":{text}"] * 200_000}).encode(), lambda: None)


def test_a_client_may_leave_while_its_answer_is_written(wire_repository: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.hold()
        cycle, unread = on_the_wire(bench, wide(1.0, 2.0), model="wide")
        await until(lambda: bench.held == 1)
        cycle.abandon()
        bench.let_go()
        await until(lambda: bench.handler.in_flight == 0)
        assert unread.answers == []
        assert bench.handler.room.held_bytes == 0

    with_bench(wire_repository, test)
