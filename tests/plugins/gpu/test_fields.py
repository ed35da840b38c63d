"""Fields of plugins as TensorRT hands them over: any node of an uploaded file may ask for one, with anything in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines.plugins.gpu.fields import Given
from engines.plugins.gpu.operators import OPERATORS, GpuOperator
from engines.plugins.ops import ConvAttributes, GemmAttributes, PoolAttributes

CONVOLUTION = {**ConvAttributes(channels=64, pads=(1, 0, 2, 1)).values(), "kernel_shape": [3, 2]}
RIGHT: dict[str, dict[str, Any]] = {
    "BinaryPack": {"strict": 1},
    "BinaryConv2d": {**CONVOLUTION, "half": 1},
    "BinaryThreshold2d": CONVOLUTION,
    "BinaryGemm": {**GemmAttributes(channels=70, low=0).values(), "half": 0},
    "BinaryThreshold": GemmAttributes(channels=70).values(),
    "BinaryMaxPool": PoolAttributes(kernel_shape=(2, 3)).values(),
}
BY_NAME = {operator.name: operator for operator in OPERATORS}


def made(name: str, **changed: Any) -> GpuOperator:
    values = {**RIGHT[name], **changed}
    given = {
        key: value if isinstance(value, Given) else Given("INT32", np.array(value, np.int32))
        for key, value in values.items()
        if value is not None
    }
    return BY_NAME[name](given)


@pytest.mark.parametrize("name", RIGHT)
def test_right_fields_are_kept_as_they_are(name: str) -> None:
    found = made(name).values
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()} == RIGHT[name]


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        (name, {key: wrong}, said)
        for name, values in RIGHT.items()
        for key in values
        for wrong, said in (
            (None, f"'{key}' is missing"),
            (Given("CHAR", np.empty(0)), f"'{key}' has type CHAR; expected INT32"),
            (Given("FLOAT32", np.array([1.5])), f"'{key}' has type FLOAT32; expected INT32"),
            (Given("INT32", np.array([1] * 7)), f"'{key}' has 7 numbers; expected"),
            (Given("INT32", np.array([], np.int32)), f"'{key}' has 0 numbers; expected"),
        )
    ],
)
def test_missing_fields_types_and_lengths_are_refused(name: str, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(name, **changed)


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("BinaryPack", {"strict": 2}, "'strict' is 2; expected 0 or 1"),
        ("BinaryConv2d", {"half": -1}, "'half' is -1; expected 0 or 1"),
        ("BinaryConv2d", {"channels": 0}, "0 channels do not make 1 groups"),
        ("BinaryConv2d", {"group": 0}, "64 channels do not make 0 groups"),
        ("BinaryConv2d", {"group": 4}, "groups of 16 channels; expected a multiple of 32"),
        ("BinaryConv2d", {"strides": [0, 1]}, "strides and dilations start at 1"),
        ("BinaryThreshold2d", {"dilations": [1, 0]}, "strides and dilations start at 1"),
        ("BinaryThreshold2d", {"pads": [0, 0, -1, 0]}, "pads at 0"),
        ("BinaryThreshold2d", {"pads": [0, 0, 2**31 - 1, 0]}, "pads .* expected up to 32768"),
        ("BinaryThreshold2d", {"strides": [2**30, 1]}, "strides .* expected up to 32768"),
        ("BinaryThreshold2d", {"kernel_shape": [0, 3]}, "kernel_shape .* expected sizes from 1 on"),
        ("BinaryThreshold2d", {"pad_value": 7}, "pad_value 7, low -1; expected 0 or 1, and -1 or 0"),
        ("BinaryThreshold2d", {"low": 1}, "pad_value 0, low 1; expected"),
        ("BinaryThreshold2d", {"channels": 2**22}, "25165824 terms in a sum; expected at most 16777216"),
        ("BinaryGemm", {"channels": 2**25}, "33554432 terms in a sum"),
        ("BinaryGemm", {"channels": -1}, "-1 channels do not make 1 groups"),
        ("BinaryMaxPool", {"pads": [2, 0, 0, 0]}, "pads .* of a window of 2 x 3; expected fewer than its size"),
        ("BinaryMaxPool", {"surplus": 1}, "'surplus' is no field of it"),
    ],
)
def test_numbers_out_of_range_are_refused_with_the_range(name: str, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(name, **changed)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"'channels' is missing; 'low' has type CHAR"):
        made("BinaryThreshold", channels=None, low=Given("CHAR", np.empty(0)))
