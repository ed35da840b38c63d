"""The operators of binary layers as functions of a model, in ONNX's own operators: a file that has them runs anywhere.

ONNX Runtime so becomes an exact oracle of the very file that OpenVINO and its kernels read, which take the operators by
their names and never look at these bodies. Tensors and attributes are as in `engines.plugins.ops`, of one row or more.
"""

from __future__ import annotations

import onnx
from onnx import FunctionProto, ModelProto
from onnx.parser import parse_function

from engines.graphs import all_nodes, copy_of
from engines.plugins.ops import DOMAIN, VERSION

__all__ = ["define", "functions", "with_bodies"]

_MASKS = ", ".join(str(1 << bit) for bit in range(31)) + f", {-(1 << 31)}"
_CONSTANTS = f"""
  masks = Constant <value = int32[32] {{{_MASKS}}}> ()
  zero = Constant <value = int32[1] {{0}}> ()
  plus = Constant <value = float[1] {{1}}> ()
  minus = Constant <value = float[1] {{-1}}> ()
  first = Constant <value = int64[1] {{0}}> ()
  last = Constant <value = int64[1] {{-1}}> ()
"""
_PACKED = """
  set = Cast <to = 6> (negative)
  rows = Shape <start = 0, end = 1> (set)
  places = Shape <start = 2> (set)
  flat_shape = Constant <value = int64[3] {0, 0, -1}> ()
  flat = Reshape (set, flat_shape)
  places_first = Transpose <perm = [0, 2, 1]> (flat)
  count = Shape <start = 2, end = 3> (places_first)
  minus_count = Neg (count)
  word = Constant <value = int64[1] {32}> ()
  missing = Mod (minus_count, word)
  five = Constant <value = int64[5] {0, 0, 0, 0, 0}> ()
  fill = Concat <axis = 0> (five, missing)
  nothing = Squeeze (zero)
  whole = Pad (places_first, fill, nothing)
  grouped_shape = Constant <value = int64[4] {0, 0, -1, 32}> ()
  grouped = Reshape (whole, grouped_shape)
  weighted = Mul (grouped, masks)
  summed = ReduceSum <keepdims = 0> (weighted, last)
  width = Shape <start = 2, end = 3> (summed)
  words_shape = Concat <axis = 0> (rows, places, width)
  packed = Reshape (summed, words_shape)
"""
"""Of `negative`, BOOL [rows, channels, places...]."""


def _unpacked(name: str, words: str, low: str, rank: int, count: str = "") -> str:
    """`name`: FLOAT [..., channels], `count` of them or all that words hold."""
    shape = ", ".join(["0"] * (rank - 1) + ["-1"])
    flat = name if not count else f"{name}_flat"
    return f"""
  {name}_wide = Unsqueeze ({words}, last)
  {name}_masked = BitwiseAnd ({name}_wide, masks)
  {name}_is_plus = Equal ({name}_masked, zero)
  {name}_values = Where ({name}_is_plus, plus, {low})
  {name}_shape = Constant <value = int64[{rank}] {{{shape}}}> ()
  {flat} = Reshape ({name}_values, {name}_shape)
""" + (f"  {name} = Slice ({flat}, first, {count}, last)\n" if count else "")


_INPUTS = """
  low_number = Constant <value_int: int = @low> ()
  low = Cast <to = 1> (low_number)
  all_scalar = Constant <value_int: int = @channels> ()
  all = Unsqueeze (all_scalar, first)
"""
_CONVOLVED = f"""
  {_CONSTANTS}
  {_INPUTS}
  groups = Constant <value_int: int = @group> ()
  of_group = Div (all, groups)
  {_unpacked("x", "bits", "low", 4, "all")}
  {_unpacked("w", "weights", "minus", 4, "of_group")}
  x_first = Transpose <perm = [0, 3, 1, 2]> (x)
  w_first = Transpose <perm = [0, 3, 1, 2]> (w)
  four = Constant <value_ints: ints = @pads> ()
  two = Constant <value = int64[1] {{2}}> ()
  end = Constant <value = int64[1] {{4}}> ()
  before = Slice (four, first, two)
  after = Slice (four, two, end)
  none = Constant <value = int64[2] {{0, 0}}> ()
  amounts = Concat <axis = 0> (none, before, none, after)
  pad_number = Constant <value_int: int = @pad_value> ()
  border = Cast <to = 1> (pad_number)
  padded = Pad (x_first, amounts, border)
  dots = Conv <strides: ints = @strides, dilations: ints = @dilations, group: int = @group> (padded, w_first)
  filter_axes = Constant <value = int64[3] {{0, 2, 3}}> ()
"""
_MULTIPLIED = f"""
  {_CONSTANTS}
  {_INPUTS}
  {_unpacked("x", "bits", "low", 2, "all")}
  {_unpacked("w", "weights", "minus", 2, "all")}
  turned = Transpose <perm = [1, 0]> (w)
  dots = MatMul (x, turned)
  filter_axes = Constant <value = int64[1] {{0}}> ()
"""
_ROWS = "".join(
    f"""
  {name}_number = Constant <value_int = {row}> ()
  {name}_row = Gather (activation, {name}_number)
  {name} = Unsqueeze ({name}_row, filter_axes)
"""
    for row, name in enumerate(("shift", "slope", "offset"))
)
_FLOATS = f"""
  scale = Unsqueeze (multiplier, filter_axes)
  add = Unsqueeze (bias, filter_axes)
  scaled = Mul (dots, scale)
  v = Add (scaled, add)
  {_ROWS}
  moved = Sub (v, shift)
  bent = Mul (moved, slope)
  is_above = Greater (v, shift)
  chosen = Where (is_above, moved, bent)
  y = Add (chosen, offset)
"""
_BITS = f"""
  limits = Unsqueeze (thresholds, filter_axes)
  limit_floats = Cast <to = 1> (limits)
  negative = Less (dots, limit_floats)
  {_PACKED}
  words = BitwiseXor (packed, flips)
"""
_IMPORTS = f'<domain: "{DOMAIN}", opset_import: ["" : 21]>'
_WINDOW = "strides, dilations, pads"
_CONVOLVING = f"channels, group, {_WINDOW}, pad_value, low"
_TEXTS = (
    f"""
BinaryPack <strict> (x, thresholds) => (packed)
{{
  {_CONSTANTS}
  shape = Constant <value = int64[3] {{0, 0, -1}}> ()
  flat_x = Reshape (x, shape)
  limit_axes = Constant <value = int64[2] {{0, 2}}> ()
  limits = Unsqueeze (thresholds, limit_axes)
  at_least = GreaterOrEqual (flat_x, limits)
  below = Not (at_least)
  equal = Equal (flat_x, limits)
  strict_number = Constant <value_int: int = @strict> ()
  is_strict = Cast <to = 9> (strict_number)
  equal_too = And (equal, is_strict)
  negative_flat = Or (below, equal_too)
  x_shape = Shape (x)
  negative = Reshape (negative_flat, x_shape)
  {_PACKED}
}}""",
    f"BinaryConv2d <{_CONVOLVING}> (bits, weights, multiplier, bias, activation) => (y) {{ {_CONVOLVED} {_FLOATS} }}",
    f"BinaryThreshold2d <{_CONVOLVING}> (bits, weights, thresholds, flips) => (words) {{ {_CONVOLVED} {_BITS} }}",
    f"BinaryGemm <channels, low> (bits, weights, multiplier, bias, activation) => (y) {{ {_MULTIPLIED} {_FLOATS} }}",
    f"BinaryThreshold <channels, low> (bits, weights, thresholds, flips) => (words) {{ {_MULTIPLIED} {_BITS} }}",
    f"""
BinaryMaxPool <kernel_shape, {_WINDOW}> (bits) => (packed)
{{
  {_CONSTANTS}
  {_unpacked("x", "bits", "minus", 4)}
  x_first = Transpose <perm = [0, 3, 1, 2]> (x)
  pooled = MaxPool <kernel_shape: ints = @kernel_shape, strides: ints = @strides, dilations: ints = @dilations,
                    pads: ints = @pads> (x_first)
  nothing_yet = Constant <value_float = 0.0> ()
  negative = Less (pooled, nothing_yet)
  {_PACKED}
}}""",
)


def functions() -> tuple[FunctionProto, ...]:
    """Of all operators."""
    return tuple(parse_function(_IMPORTS + text) for text in _TEXTS)


def with_bodies(model: ModelProto) -> ModelProto:
    """A copy of a model with `bnn` operators that says what they mean."""
    return define(copy_of(model))


def define(model: ModelProto) -> ModelProto:
    """The model, in place, with a function for each `bnn` operator that it has none for."""
    own = {one.name for one in model.functions if one.domain == DOMAIN}
    used = {node.op_type for node in all_nodes(model.graph) if node.domain == DOMAIN} - own
    if not used:
        return model
    model.functions.extend(one for one in functions() if one.name in used)
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
    return model
