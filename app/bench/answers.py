"""Whether an answer has every output in the size that its shape says: one is read in full, others by likeness to it.

An answer in bytes is right if it begins with the same JSON and is as long; one in JSON if it begins alike up to its
first number, has as many values and ends alike (its numbers are counted then, not read). What is not like the last one
that was looked at in full is looked at in full itself, so a right answer of another shape is no wrong one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from app.bench.target import Tensor
from engines.tensor import BY_NAME

__all__ = ["Answers", "wrong_with"]

_DATA, _END = b'"data":[', b"]}]}"


class _Parameters(msgspec.Struct):
    binary_data_size: int | None = None


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: _Parameters = msgspec.field(default_factory=_Parameters)
    data: list[Any] | None = None


class _Answer(msgspec.Struct):
    outputs: list[_Output]


class Answers:
    """The check of one run: its requests have `rows` rows, and the model these outputs."""

    def __init__(self, outputs: Sequence[Tensor], rows: int) -> None:
        self._outputs, self._rows = outputs, rows
        self._holds_texts = any(tensor.datatype == "BYTES" for tensor in outputs)
        self._begin, self._length, self._commas = b"\0", -1, -1

    def __call__(self, index: int, body: bytes) -> str:
        """What is wrong, in words; empty where nothing is."""
        if body.startswith(self._begin):
            if self._length == len(body):
                return ""
            if self._commas >= 0 and body.endswith(_END) and body.count(b",") == self._commas:
                return ""
        wrong = wrong_with(body, self._outputs, self._rows)
        if not wrong:
            self._remember(body)
        return wrong

    def _remember(self, body: bytes) -> None:
        head_length = _head_length(body)
        if head_length < len(body):
            self._begin, self._length, self._commas = body[:head_length], len(body), -1
        elif body.endswith(_END) and not self._holds_texts:  # commas stand in texts as well
            self._begin, self._length = body[: body.find(_DATA) + len(_DATA)], -1
            self._commas = body.count(b",")


def wrong_with(body: bytes, outputs: Sequence[Tensor], rows: int) -> str:
    """The same, of the whole answer and each of its outputs."""
    head_length = _head_length(body)
    try:
        answer = msgspec.json.decode(body[:head_length], type=_Answer)
    except msgspec.MsgspecError as error:
        return f"the answer is no inference answer: {error}"
    names, expected = [output.name for output in answer.outputs], [tensor.name for tensor in outputs]
    if sorted(names) != sorted(expected):
        return f"the answer has the outputs {', '.join(names) or 'none'}; the model has {', '.join(expected)}"
    by_name, binary_bytes = {tensor.name: tensor for tensor in outputs}, 0
    for output in answer.outputs:
        wrong = _wrong_output(output, by_name[output.name], rows)
        if wrong:
            return f"output {output.name!r} {wrong}"
        binary_bytes += output.parameters.binary_data_size or 0
    if binary_bytes != len(body) - head_length:
        return f"{len(body) - head_length} bytes follow the JSON, its sizes add up to {binary_bytes}"
    return ""


def _wrong_output(output: _Output, tensor: Tensor, rows: int) -> str:
    if output.datatype != tensor.datatype:
        return f"is {output.datatype}; expected {tensor.datatype}"
    shape = tensor.shape_of(rows)
    fits = len(shape) == len(output.shape) and all(s in (-1, n) for s, n in zip(shape, output.shape, strict=True))
    if not fits:
        return f"has the shape {output.shape}; expected {list(shape)}"
    values = math.prod(output.shape)
    if output.data is not None:
        count = _values(output.data)
        return "" if count == values else f"has {count} values; its shape says {values}"
    found, item_bytes = output.parameters.binary_data_size, BY_NAME[output.datatype].item_bytes
    if found is None:
        return "has no data"
    return (
        "" if not item_bytes or found == values * item_bytes else f"has {found} bytes; its shape says {values} values"
    )


def _values(data: list[Any]) -> int:
    """Of a list, flat or nested."""
    return sum(_values(item) if isinstance(item, list) else 1 for item in data)


def _head_length(body: bytes) -> int:
    """Where the JSON ends, that of an answer in bytes; all of it where there is none. The header says so too, but
    headers would have to be kept of every answer.
    """
    try:
        return json.JSONDecoder().raw_decode(body.decode("latin-1"))[1]  # one character a byte
    except (ValueError, RecursionError):
        return len(body)
