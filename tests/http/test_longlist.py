"""A long list of numbers is read apart from the request around it; what comes of the request is the same."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from app.http import codec
from app.http.errors import BadRequest
from app.http.longlist import take_long_list
from engines.tensor import TensorSpec
from tests.hostile.codecs import endpoint

COUNT = 20_000
NUMBERS = json.dumps(np.random.default_rng(1).standard_normal(COUNT).tolist())
X = '{"name":"x","shape":[1,%d],"datatype":"FP32","data":%s}'
PLAIN = '{"inputs":[%s]}' % (X % (COUNT, "@"))
AT = endpoint([TensorSpec("x", "FP32", (-1, -1), 0)])


def outcome(body: bytes) -> Any:
    try:
        call, wanted = codec.decode(body, None, AT)
    except BadRequest as error:
        return str(error)
    return [(n, t.datatype, t.array.shape, t.array.tobytes()) for n, t in call.inputs.items()], call[1:], wanted


BODIES = {
    "plain": (PLAIN, NUMBERS, True),
    "blanks": (PLAIN.replace('"data":', '"data" :\n '), f"[ {NUMBERS[1:-1]}\n]", True),
    "with an id and parameters": (PLAIN.replace("{", '{"id":"d","parameters":{"priority":1},', 1), NUMBERS, True),
    "an id that looks like the key": (PLAIN.replace("{", '{"id":"data",', 1), NUMBERS, False),
    "bytes of another input behind": (PLAIN[:-2] + "," + X % (COUNT, "@") + "]}", NUMBERS, False),
    "of a key that means nothing": (PLAIN.replace("@", "[1]")[:-1] + ',"more":{"data":@}}', NUMBERS, False),
    "no tensor's": ('{"inputs":[],"more":{"data":@}}', NUMBERS, True),
    "a name with a backslash": (PLAIN.replace('"x"', '"\\u0078"'), NUMBERS, False),
    "nested": (PLAIN, f"[{NUMBERS}]", False),
    "deep": (PLAIN, "[" * COUNT * 5 + "]" * COUNT * 5, False),
    "with NaN": (PLAIN, NUMBERS.replace("[", "[NaN,", 1), False),
    "strings": (PLAIN, json.dumps(["]"] * COUNT), False),
    "objects": (PLAIN, json.dumps([{}] * COUNT), False),
    "one too many": (PLAIN, NUMBERS.replace("[", "[1,", 1), True),
    "too large for its type": (PLAIN, NUMBERS.replace("[", "[1e39,", 1), True),
    "another type": (PLAIN.replace("FP32", "INT32"), NUMBERS, True),
    "the request is wrong": (PLAIN.replace('"shape"', '"form"'), NUMBERS, True),
    "the request ends early": (PLAIN[:-1], NUMBERS, True),
    "something behind": (PLAIN + "x", NUMBERS, True),
    "too many keys": (PLAIN[:-1] + "".join(f',"{i}":0' for i in range(5000)) + "}", NUMBERS, True),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_the_outcome_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch, name: str, kind: type) -> None:
    around, listed, is_taken = BODIES[name]
    body = kind(around.replace("@", listed).encode())
    assert (take_long_list(body) is not None) == is_taken
    apart = outcome(body)
    monkeypatch.setattr(codec, "take_long_list", lambda document: None)
    assert apart == outcome(body)


@pytest.mark.parametrize("listed", ["[1,2,,3]", "[1,true,2]", "[1,null]", "[01]", "[1 2]"])
def test_what_is_no_list_of_numbers_is_refused(listed: str) -> None:
    padded = listed.replace("[", "[" + "0.5," * COUNT, 1)
    body = PLAIN.replace("@", padded).encode()
    assert take_long_list(body) is not None
    assert "'data' of input 'x' cannot be read as FP32" in outcome(body)


def test_short_lists_are_left_where_they_are() -> None:
    assert take_long_list(PLAIN.replace("@", "[1,2,3]").encode()) is None
