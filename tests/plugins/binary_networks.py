"""Networks with binary layers as exporters write them. What goes in is whole numbers, so that sums are exact and ties
are common.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from tests.support.onnx_models import FLOAT, build

__all__ = ["FORMS", "OTHER_FORMS", "Network", "one_layer"]

node = helper.make_node
_STORED = {"zero": 0.0, "one": 1.0, "minus": -1.0, "two": 2.0, "half": 0.5, "tenth": 0.1, "minus_tenth": -0.1}
Form = Callable[[str, str], list[NodeProto]]


def _where(comparison: str, yes: str, no: str, *, mirrored: bool = False, negated: bool = False) -> Form:
    def nodes(x: str, y: str) -> list[NodeProto]:
        operands = ["zero", x] if mirrored else [x, "zero"]
        made = [node(comparison, operands, [f"{y}.c"], name=f"{y}.compare")]
        if negated:
            made.append(node("Not", [f"{y}.c"], [f"{y}.n"], name=f"{y}.not"))
        return [*made, node("Where", [f"{y}.n" if negated else f"{y}.c", yes, no], [y], name=f"{y}.where")]

    return nodes


def _cast(comparison: str, last: str) -> Form:
    def nodes(x: str, y: str) -> list[NodeProto]:
        return [
            node(comparison, [x, "zero"], [f"{y}.c"], name=f"{y}.compare"),
            node("Cast", [f"{y}.c"], [f"{y}.f"], name=f"{y}.cast", to=TensorProto.FLOAT),
            node("Mul", [f"{y}.f", "two"], [f"{y}.m"], name=f"{y}.twice"),
            node(last, [f"{y}.m", "one" if last == "Sub" else "minus"], [y], name=f"{y}.less"),
        ]

    return nodes


def _twice(shift: str) -> Form:
    def nodes(x: str, y: str) -> list[NodeProto]:
        return [
            node("Sign", [x], [f"{y}.s"], name=f"{y}.first"),
            node("Add", [f"{y}.s", shift], [f"{y}.a"], name=f"{y}.shift"),
            node("Sign", [f"{y}.a"], [y], name=f"{y}.second"),
        ]

    return nodes


def _clipped(x: str, y: str) -> list[NodeProto]:
    return [*FORMS["x >= 0"](x, f"{y}.w"), node("Clip", [f"{y}.w", "minus", "one"], [y], name=f"{y}.clip")]


def _scaled(x: str, y: str) -> list[NodeProto]:
    return [*FORMS["x >= 0"](x, f"{y}.w"), node("Mul", [f"{y}.w", "half"], [y], name=f"{y}.scale")]


def _less(x: str, y: str) -> list[NodeProto]:
    return [
        node("Less", [x, "zero"], [f"{y}.c"], name=f"{y}.compare"),
        node("Cast", [f"{y}.c"], [f"{y}.f"], name=f"{y}.cast", to=TensorProto.FLOAT),
        node("Mul", ["two", f"{y}.f"], [f"{y}.m"], name=f"{y}.twice"),
        node("Sub", ["one", f"{y}.m"], [y], name=f"{y}.less"),
    ]


def _mended(x: str, y: str) -> list[NodeProto]:
    return [
        node("Sign", [x], [f"{y}.s"], name=f"{y}.sign"),
        node("Equal", [f"{y}.s", "zero"], [f"{y}.e"], name=f"{y}.equal"),
        node("Where", [f"{y}.e", "one", f"{y}.s"], [y], name=f"{y}.where"),
    ]


def _difference(x: str, y: str) -> list[NodeProto]:
    """(x >= 0) - (x < 0)."""
    return [
        node("GreaterOrEqual", [x, "zero"], [f"{y}.c"], name=f"{y}.compare"),
        node("Less", [x, "zero"], [f"{y}.d"], name=f"{y}.other"),
        node("Cast", [f"{y}.c"], [f"{y}.f"], name=f"{y}.cast", to=TensorProto.FLOAT),
        node("Cast", [f"{y}.d"], [f"{y}.g"], name=f"{y}.cast_other", to=TensorProto.FLOAT),
        node("Sub", [f"{y}.f", f"{y}.g"], [y], name=f"{y}.less"),
    ]


def _filled(x: str, y: str) -> list[NodeProto]:
    """Branches in the shape of x, made by both operators that fill one."""
    return [
        node("Shape", [x], [f"{y}.shape"], name=f"{y}.shape.node"),
        node("ConstantOfShape", [f"{y}.shape"], [f"{y}.zeros"], name=f"{y}.zeros.node"),
        node("Expand", ["one", f"{y}.shape"], [f"{y}.ones"], name=f"{y}.ones.node"),
        node("Neg", [f"{y}.ones"], [f"{y}.minus"], name=f"{y}.neg"),
        node("GreaterOrEqual", [f"{y}.zeros", x], [f"{y}.c"], name=f"{y}.compare"),
        node("Where", [f"{y}.c", f"{y}.minus", f"{y}.ones"], [y], name=f"{y}.where"),
    ]


def _estimator(x: str, y: str) -> list[NodeProto]:
    """(sign - clip) + clip."""
    return [
        *FORMS["x >= 0"](x, f"{y}.w"),
        node("Clip", [x, "minus", "one"], [f"{y}.k"], name=f"{y}.clip"),
        node("Sub", [f"{y}.w", f"{y}.k"], [f"{y}.s"], name=f"{y}.sub"),
        node("Add", [f"{y}.k", f"{y}.s"], [y], name=f"{y}.add"),
    ]


def _channels_last(x: str, y: str) -> list[NodeProto]:
    return [
        node("Transpose", [x], [f"{y}.t"], name=f"{y}.there", perm=[0, 2, 3, 1]),
        *FORMS["sign(sign(x) + 0.1)"](f"{y}.t", f"{y}.s"),
        node("Transpose", [f"{y}.s"], [y], name=f"{y}.back", perm=[0, 3, 1, 2]),
    ]


FORMS: dict[str, Form] = {
    "x >= 0": _where("GreaterOrEqual", "one", "minus"),
    "x > 0": _where("Greater", "one", "minus"),
    "x < 0": _where("Less", "minus", "one"),
    "x <= 0": _where("LessOrEqual", "minus", "one"),
    "x < 0, the other way round": _where("Less", "one", "minus"),
    "0 <= x": _where("LessOrEqual", "one", "minus", mirrored=True),
    "not x < 0": _where("Less", "one", "minus", negated=True),
    "cast(x >= 0) * 2 - 1": _cast("GreaterOrEqual", "Sub"),
    "cast(x > 0) * 2 + -1": _cast("Greater", "Add"),
    "sign(sign(x) + 0.1)": _twice("tenth"),
    "sign(sign(x) - 0.1)": _twice("minus_tenth"),
    "clipped": _clipped,
    "scaled": _scaled,
    "1 - 2 * cast(x < 0)": _less,
    "where(sign(x) == 0, 1, sign(x))": _mended,
    "cast(x >= 0) - cast(x < 0)": _difference,
    "where(zeros_like(x) >= x, -ones_like(x), ones_like(x))": _filled,
    "(sign - clip) + clip": _estimator,
    "channels last": _channels_last,
}


def _plain_sign(x: str, y: str) -> list[NodeProto]:
    return [node("Sign", [x], [y], name=f"{y}.sign")]


def _ones(form: str) -> Form:
    def nodes(x: str, y: str) -> list[NodeProto]:
        if form == "Sign":
            return [node("Relu", [x], [f"{y}.r"], name=f"{y}.relu"), node("Sign", [f"{y}.r"], [y], name=f"{y}.sign")]
        compare = node("Greater", [x, "zero"], [f"{y}.c"], name=f"{y}.compare")
        if form == "Cast":
            return [compare, node("Cast", [f"{y}.c"], [y], name=f"{y}.cast", to=TensorProto.FLOAT)]
        return [compare, node("Where", [f"{y}.c", "two", "zero"], [y], name=f"{y}.where")]

    return nodes


OTHER_FORMS: dict[str, Form] = {
    "sign(x)": _plain_sign, "sign(relu(x))": _ones("Sign"), "cast(x > 0)": _ones("Cast"),
    "where(x > 0, 2, 0)": _ones("Where"),
}  # fmt: skip
"""Those of more values than -1 and +1, or of 0 and 1."""


class Network:
    """Grows node by node; values are NCHW."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.stored: dict[str, np.ndarray] = {name: np.array(value, np.float32) for name, value in _STORED.items()}
        self._count = 0

    def name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"

    def sign(self, x: str, form: str = "x >= 0") -> str:
        y = self.name("sign")
        self.nodes += (FORMS | OTHER_FORMS)[form](x, y)
        return y

    def conv(self, x: str, channels: int, filters: int, kernel: int = 3, *, bias: bool = True, **keys: Any) -> str:
        """With weights of -1 and +1 times one whole magnitude a filter, and whole biases: sums are exact."""
        y = self.name("conv")
        shape = (filters, channels // keys.get("group", 1), kernel, kernel)
        magnitudes = self.rng.integers(1, 4, (filters, 1, 1, 1))
        self.stored[f"{y}.w"] = (self.rng.choice([-1, 1], shape) * magnitudes).astype(np.float32)
        reads = [x, f"{y}.w"]
        if bias:
            self.stored[f"{y}.b"] = self.rng.integers(-3, 4, filters).astype(np.float32)
            reads.append(f"{y}.b")
        self.nodes.append(node("Conv", reads, [y], name=y, **keys))
        return y

    def model(self, output: str, channels: int, size: int | str = 8) -> onnx.ModelProto:
        """The last node makes `output`."""
        assert self.nodes[-1].output[0] == output
        self.nodes[-1].output[0] = "y"
        given: dict[str, tuple[int, list[int | str]]] = {"x": (FLOAT, ["N", channels, size, size])}
        return build(self.nodes, given, {"y": (FLOAT, ["N", None, None, None])}, self.stored, 21)


def one_layer(
    form: str = "x >= 0", channels: int = 40, filters: int = 24, size: int | str = 8, **keys: Any
) -> onnx.ModelProto:
    """Signs of the input, and one convolution of them."""
    made = Network()
    keys = {"pads": [1, 1, 1, 1], **keys}
    keys = {name: value for name, value in keys.items() if value is not None}
    return made.model(made.conv(made.sign("x", form), channels, filters, **keys), channels, size)
