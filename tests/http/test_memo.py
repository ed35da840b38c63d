"""What is decoded from memory is what would be decoded anew, answers included; what is kept has bounds."""

from __future__ import annotations

import gc
import json
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from app.http import codec
from app.http.errors import HttpError
from app.http.memo import Memo
from app.http.wanted import Wanted
from app.serving.endpoint import Endpoint
from app.serving.errors import ServingError
from app.serving.fitting import Call, fit
from engines.tensor import BY_NAME, TensorSpec
from tests.hostile.codecs import endpoint

Decoded = tuple[Call, Wanted]
Decode = Callable[[bytes, bytes | None, Endpoint], Decoded]

INPUTS = (
    TensorSpec("x", "FP32", (-1, 4), 0),
    TensorSpec("i", "INT64", (3, -1), 1, value_range=(0, 9)),
    TensorSpec("h", "FP16", (2,), None, largest=100.0),
)
OUTPUTS = (TensorSpec("y", "FP32", (-1, 4), 0), TensorSpec("s", "BYTES", (-1,), 0), TensorSpec("b", "BOOL", (-1,), 0))


def model() -> Endpoint:
    return endpoint(INPUTS, OUTPUTS)


def body_of(head: dict[str, Any], *data: bytes) -> tuple[bytes, bytes]:
    document = json.dumps(head).encode()
    return b"".join((document, *data)), b"%d" % len(document)


def random_request(rng: random.Random) -> tuple[bytes, bytes | None]:
    """Mostly sound; few enough JSON parts that many come again."""
    rows = rng.choice([1, 1, 1, 2, 40])
    sizes = {"x": (rows, 4), "i": (3, rows), "h": (2,)}
    inputs, data = [], []
    for name in rng.choice([("x", "i", "h"), ("x", "i", "h"), ("h", "x", "i"), ("x", "i"), ("x", "i", "i")]):
        kind = BY_NAME[rng.choice(["FP32"] * 9 + ["BOOL"]) if name == "x" else {"i": "INT64", "h": "FP16"}[name]]
        array = np.array([rng.choice([0, 1, 9, 9, 200] if rng.random() < 0.1 else [0, 1, 9]) for _ in range(200)])
        array = array[: np.prod(sizes[name])].reshape(sizes[name]).astype(kind.numpy)
        tensor: dict[str, Any] = {"name": name, "datatype": kind.name, "shape": list(array.shape)}
        if rng.random() < 0.1:
            tensor["data"] = array.ravel().tolist()
        else:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            data.append(array.tobytes())
        inputs.append(tensor)
    head: dict[str, Any] = {"inputs": inputs}
    if rng.random() < 0.3:
        head["parameters"] = rng.choice(
            [{"priority": 2}, {"timeout": 5, "sequence_id": "s"}, {"binary_data_output": True}, {"priority": -1}]
        )
    if rng.random() < 0.6:
        wanted = {"binary_data": True}
        outputs: list[Any] = [{"name": "y", "parameters": wanted}, {"name": "s", "parameters": wanted}, {"name": "b"}]
        classes = [{"name": "y", "parameters": {"classification": 2}}]
        head["outputs"] = rng.choice([outputs[:1], outputs[:1], outputs[:2], outputs, outputs[::-1], classes, ["?"]])
    if rng.random() < 0.2:
        head["id"] = rng.choice(["a", "b"])
    body, length = body_of(head, *data)
    damage = rng.random()
    if damage < 0.05:
        body = body[: rng.randrange(len(body))]
    elif damage < 0.1:
        body += b"\0"
    elif damage < 0.15:
        length = rng.choice([b"0", b"-1", b" 7 ", b"%d" % len(body), b"99999", length + b" "])
    return body, None if damage > 0.98 else length


def outcome(decode: Decode, body: bytes, length: bytes | None, at: Endpoint) -> Any:
    """All that becomes of a request: what its ticket carries and its answer, or what it is refused with."""
    try:
        call, wanted = decode(body, length, at)
        arrays, rows, key, _ = fit(at, call)
    except (HttpError, ServingError) as error:
        return type(error), str(error)
    made = {
        "y": np.arange(4 * rows, dtype=np.float32).reshape(rows, 4) + (sum(body) % 7),
        "s": np.array([b"?" * index for index in range(rows)], np.object_),
        "b": np.arange(rows) % 2 == 0,
    }
    outputs = {name: array for name, array in made.items() if call.outputs is None or name in call.outputs}
    try:
        answer: Any = codec.encode(outputs, wanted, at)
    except HttpError as error:
        answer = str(error)
    found = [(name, array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()]
    ticket = found, rows, key, call.outputs, call.priority, call.timeout_us, call.sequence_id
    return ticket, answer, codec.encoding_takes_long(outputs, wanted)


@pytest.mark.parametrize("seed", range(8))
def test_random_requests_come_to_the_same_with_and_without(seed: int) -> None:
    rng = random.Random(seed)
    at, memo, twice = [model(), model()], Memo(), 0
    memo.most_calls = rng.choice([3, 50, 1000])
    for _ in range(1500):
        here = rng.choice(at)
        body, length = random_request(rng)
        assert outcome(memo.decode, body, length, here) == outcome(codec.decode, body, length, here)
        twice += from_memory(memo, body, length, here)
        if rng.random() < 0.01:
            at[rng.randrange(2)] = model()
    assert twice > 50


def from_memory(memo: Memo, body: bytes, length: bytes | None, at: Endpoint) -> bool:
    try:
        return memo.decode(body, length, at)[0].fitted is not None
    except (HttpError, ServingError):
        return False


SHAPES = (
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":@}]}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":@}]}',
    b'{"id":"1","inputs":[{"data" :\n @ ,"name":"x","shape":[2,2],"datatype":"FP32"}],"parameters":{"priority":1}}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":@}],"parameters":{"binary_data_output":true}}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"INT32","data":@}],"outputs":[{"name":"y","data":[1]}]}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":@}],"outputs":[{"name":"y"}]}',
    b'{"id":"7","inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":@}],"outputs":[{"name":"b"},{"name":"y"}]}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","d\\u0061ta":[1,2,3,4]}],"other":{"data":@}}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}],"other":{"data":@}}',
    b'{"other":{"data":@},"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}',
    b'{"id":"data","inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":@}]}',
    b'{"id":"\\"data\\":","inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":@}]}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":@,"data":@}]}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":@}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[@]}]}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"BOOL","data":@}]}',
)
LISTS = (
    b"[1,2,3]", b"[1,2,3,4,5]", b"[]", b"[1,2,3,4", b"1,2,3,4]", b"[[1,2],[3,4]]", b"[[1,2,3,4]]", b"[1,2,3,4,]",
    b"[1,2,3,1e999]", b"[1,2,3,1e39]", b"[1,2,3,NaN]", b"[1,2,3,-Infinity]", b"[1e999,2,3,NaN]", b"[1,2,3,null]",
    b"[1,2,3,true]", b"[01,2,3,4]", b"[1 2,3,4]", b'["1",2,3,4]', b'[1,2,3,"]"]', b"[1,2,3,{}]", b"null", b"7", b"",
    b"[1,2,3,\xff]", b"[1,2,3,4]]", b"[1,2,3,99999999999999999999]", b"[1,2,3,4.5]", b"[1,2,3,4.0]", b"[1,\t2 ,\n3,4]",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_random_json_comes_to_the_same_with_and_without(seed: int) -> None:
    rng = random.Random(seed)
    at, memo, twice = [endpoint(outputs=OUTPUTS), endpoint([TensorSpec("x", "FP32", (-1, 2), 0)])], Memo(), 0
    for _ in range(6000):
        here = rng.choice(at)
        sound = json.dumps([rng.choice([0, -1, 2.5, 1e10]) for _ in range(4)]).encode()
        values = rng.choice(LISTS) if rng.random() < 0.3 else sound
        body = rng.choice(SHAPES).replace(b"@", values)
        assert outcome(memo.decode, body, None, here) == outcome(codec.decode, body, None, here), body
        twice += from_memory(memo, body, None, here)
    assert twice > 500


@pytest.mark.parametrize(
    "deep",
    [b"[" * 101 + b"]" * 101, b"[" * 250_000 + b"]" * 250_000, b"[" * 250_000 + b"]", b'[{"a":' * 99_999 + b"1]"],
)
def test_deep_lists_in_text_that_is_known_are_refused_as_ever(deep: bytes) -> None:
    at, memo = endpoint(), Memo()
    for _ in range(3):
        memo.decode(SHAPES[0].replace(b"@", b"[1,2,3,4]"), None, at)
    body = SHAPES[0].replace(b"@", deep)
    assert outcome(memo.decode, body, None, at) == outcome(codec.decode, body, None, at)
    assert "nesting depth" in outcome(memo.decode, body, None, at)[1]


def plain(number: int = 0, rows: int = 1, **keys: Any) -> tuple[bytes, bytes]:
    x = {"name": "x", "datatype": "FP32", "shape": [rows, 4], "parameters": {"binary_data_size": 16 * rows}}
    return body_of({"inputs": [x], **keys}, np.full(4 * rows, number, np.float32).tobytes())


def test_the_third_call_comes_from_memory_with_values_of_its_own() -> None:
    at, memo = endpoint(), Memo()
    assert [from_memory(memo, *plain(number), at) for number in range(4)] == [False, False, True, True]
    call, _ = memo.decode(*plain(7), at)
    assert call.fitted is not None
    assert call.fitted.arrays["x"].tolist() == [[7.0] * 4]


def test_models_with_equal_calls_are_told_apart() -> None:
    """Each has rows, limits and a name of its own."""
    wide = endpoint([TensorSpec("x", "FP32", (-1, 2), 0)])
    narrow, memo = endpoint(), Memo()
    for _ in range(4):
        assert fit(narrow, memo.decode(*plain(), narrow)[0]).rows == 1
        with pytest.raises(ServingError, match=r"Expected \[-1,2\], got \[1,4\]"):
            fit(wide, memo.decode(*plain(), wide)[0])


def test_a_model_that_is_loaded_anew_is_asked_anew_and_the_old_one_is_gone() -> None:
    at, memo = endpoint(), Memo()
    for _ in range(3):
        memo.decode(*plain(), at)
    gone = weakref.ref(at)
    at = endpoint([TensorSpec("x", "FP32", (-1, 4), None)])
    assert not from_memory(memo, *plain(), at)
    gc.collect()
    assert gone() is None


def test_ever_new_calls_take_bounded_memory() -> None:
    at, memo = endpoint(), Memo()
    for number in range(50_000):
        memo.decode(*plain(id=str(number)), at)
        memo.decode(SHAPES[2].replace(b"1", b"%d" % number, 1).replace(b"@", b"[1,2,3,4]"), None, at)
    assert len(memo._seen) <= Memo._most_seen
    assert memo.calls == 0, "none of them came again"
    for number in range(3 * Memo.most_calls):
        for _ in range(2):
            memo.decode(*plain(id=str(number)), at)
        assert 0 < memo.calls <= Memo.most_calls
    assert sum(map(len, memo._of.values())) == memo.calls
    for number in range(300):
        for _ in range(2):
            memo.decode(*plain(id="x" * 3000 + str(number)), at)
        assert sum(len(key) for kept in memo._of.values() for key in kept) == memo.held_bytes <= Memo.most_bytes


def test_long_json_is_not_kept() -> None:
    at, memo = endpoint(), Memo()
    for _ in range(4):
        assert not from_memory(memo, *plain(id="x" * Memo.longest_bytes), at)
    assert not memo._seen
