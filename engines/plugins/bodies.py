"""The operators of binary layers as functions of a model, in ONNX's own operators: a file that has them runs anywhere.

ONNX Runtime so becomes an exact oracle of the very file that OpenVINO and its kernels read, which take the operators by
their names and never look at these bodies. Tensors are as in `engines.plugins.ops`; inputs of BinaryPack have rank 4.
"""

from __future__ import annotations

import onnx
from onnx import FunctionProto, ModelProto
from onnx.parser import parse_function

from engines.graphs import copy_of
from engines.plugins.ops import DOMAIN, VERSION

__all__ = ["functions", "with_bodies"]

_MASKS = ", ".join(str(1 << bit) for bit in range(31)) + f", {-(1 << 31)}"
_IMPORTS = f'<domain: "{DOMAIN}", opset_import: ["" : 21]>'
_PACK = f"""
{_IMPORTS}
BinaryPack <strict> (x, thresholds) => (words)
{{
  limit_axes = Constant <value = int64[3] {{0, 2, 3}}> ()
  limits = Unsqueeze (thresholds, limit_axes)
  at_least = GreaterOrEqual (x, limits)
  below = Not (at_least)
  equal = Equal (x, limits)
  strict_number = Constant <value_int: int = @strict> ()
  is_strict = Cast <to = 9> (strict_number)
  equal_too = And (equal, is_strict)
  negative = Or (below, equal_too)
  bits = Cast <to = 6> (negative)
  places_first = Transpose <perm = [0, 2, 3, 1]> (bits)
  channels = Shape <start = 3, end = 4> (places_first)
  minus = Neg (channels)
  word = Constant <value = int64[1] {{32}}> ()
  missing = Mod (minus, word)
  none = Constant <value = int64[7] {{0, 0, 0, 0, 0, 0, 0}}> ()
  amounts = Concat <axis = 0> (none, missing)
  zero = Constant <value = int32[1] {{0}}> ()
  nothing = Squeeze (zero)
  whole = Pad (places_first, amounts, nothing)
  shape = Constant <value = int64[5] {{0, 0, 0, -1, 32}}> ()
  grouped = Reshape (whole, shape)
  masks = Constant <value = int32[32] {{{_MASKS}}}> ()
  weighted = Mul (grouped, masks)
  last = Constant <value = int64[1] {{-1}}> ()
  words = ReduceSum <keepdims = 0> (weighted, last)
}}
"""
_SIGNS = """
  {name}_wide = Unsqueeze ({words}, last)
  {name}_masked = BitwiseAnd ({name}_wide, masks)
  {name}_is_plus = Equal ({name}_masked, zero)
  {name}_signs = Where ({name}_is_plus, plus, minus)
  {name}_flat = Reshape ({name}_signs, {shape})
  {name}_own = Slice ({name}_flat, first, {count}, last)
  {name} = Transpose <perm = [0, 3, 1, 2]> ({name}_own)
"""
_DOTS = f"""
  masks = Constant <value = int32[32] {{{_MASKS}}}> ()
  zero = Constant <value = int32[1] {{0}}> ()
  plus = Constant <value = float[1] {{1}}> ()
  minus = Constant <value = float[1] {{-1}}> ()
  first = Constant <value = int64[1] {{0}}> ()
  last = Constant <value = int64[1] {{-1}}> ()
  flat_shape = Constant <value = int64[4] {{0, 0, 0, -1}}> ()
  all_scalar = Constant <value_int: int = @channels> ()
  all = Unsqueeze (all_scalar, first)
  groups = Constant <value_int: int = @group> ()
  of_group = Div (all, groups)
  {_SIGNS.format(name="x", words="bits", shape="flat_shape", count="all")}
  {_SIGNS.format(name="w", words="weights", shape="flat_shape", count="of_group")}
  four = Constant <value_ints: ints = @pads> ()
  two = Constant <value = int64[1] {{2}}> ()
  end = Constant <value = int64[1] {{4}}> ()
  before = Slice (four, first, two)
  after = Slice (four, two, end)
  none = Constant <value = int64[2] {{0, 0}}> ()
  amounts = Concat <axis = 0> (none, before, none, after)
  pad_number = Constant <value_int: int = @pad_value> ()
  border = Cast <to = 1> (pad_number)
  padded = Pad (x, amounts, border)
  dots = Conv <strides: ints = @strides, dilations: ints = @dilations, group: int = @group> (padded, w)
  filter_axes = Constant <value = int64[3] {{0, 2, 3}}> ()
"""
_CONV = f"""
{_IMPORTS}
BinaryConv2d <channels, group, strides, dilations, pads, pad_value> (bits, weights, multiplier, bias) => (y)
{{
{_DOTS}
  scale = Unsqueeze (multiplier, filter_axes)
  shift = Unsqueeze (bias, filter_axes)
  scaled = Mul (dots, scale)
  y = Add (scaled, shift)
}}
"""
_GROUPED = """
  minus_count = Neg (count)
  word = Constant <value = int64[1] {32}> ()
  missing = Mod (minus_count, word)
  seven = Constant <value = int64[7] {0, 0, 0, 0, 0, 0, 0}> ()
  fill = Concat <axis = 0> (seven, missing)
  nothing = Squeeze (zero)
  whole = Pad (places_first, fill, nothing)
  shape = Constant <value = int64[5] {0, 0, 0, -1, 32}> ()
  grouped = Reshape (whole, shape)
  weighted = Mul (grouped, masks)
  plain = ReduceSum <keepdims = 0> (weighted, last)
"""
_THRESHOLD = f"""
{_IMPORTS}
BinaryThreshold2d <channels, group, strides, dilations, pads, pad_value> (bits, weights, thresholds, flips) => (words)
{{
{_DOTS}
  limits = Unsqueeze (thresholds, filter_axes)
  limit_floats = Cast <to = 1> (limits)
  below = Less (dots, limit_floats)
  set = Cast <to = 6> (below)
  places_first = Transpose <perm = [0, 2, 3, 1]> (set)
  count = Shape <start = 3, end = 4> (places_first)
{_GROUPED}
  words = BitwiseXor (plain, flips)
}}
"""


def functions() -> tuple[FunctionProto, ...]:
    """Of all operators."""
    return parse_function(_PACK), parse_function(_CONV), parse_function(_THRESHOLD)


def with_bodies(model: ModelProto) -> ModelProto:
    """A copy of a model with `bnn` operators that says what they mean."""
    copy = copy_of(model)
    used = {node.op_type for node in copy.graph.node if node.domain == DOMAIN}
    copy.functions.extend(one for one in functions() if one.name in used)
    if not any(entry.domain == DOMAIN for entry in copy.opset_import):
        copy.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
    return copy
