"""QONNX's operators, as Brevitas and qonnx write them: the binary one is told to everybody else, the others refused.

    BipolarQuant(x, scale) = x >= 0 ? scale : -scale

It becomes a function of the model, in ONNX's own operators: ONNX Runtime, which knows none of these domains, is so the
oracle of the very file, and the pass that inlines functions leaves a comparison and a Where.
"""

from __future__ import annotations

import onnx
from onnx.parser import parse_function

from engines.errors import ModelRefused
from engines.graphs import all_nodes, opset_of
from engines.operators import find_nodes, listed

__all__ = ["DOMAINS", "with_bipolar"]

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
"""That of the released packages, and what older ones wrote."""
_BIPOLAR = "BipolarQuant"
_COMPARES = "is_plus = GreaterOrEqual (x, zero)"
_COMPARES_BEFORE_12 = "is_minus = Less (x, zero)  is_plus = Not (is_minus)"
"""The other comparison is younger. It takes NaN for +1, and not for -1."""
_BODY = """
<domain: "{domain}", opset_import: ["" : {opset}]>
BipolarQuant (x, scale) => (y)
{{
  zero = Constant <value = float {{0}}> ()
  {compare}
  minus = Neg (scale)
  y = Where (is_plus, scale, minus)
}}
"""


def with_bipolar(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, in place, with a function for BipolarQuant in each of the domains that it is written in.

    Raises ModelRefused where there are other operators of QONNX: they are named, and their nodes.
    """
    own = {(one.domain, one.name) for one in model.functions}
    nodes = [*all_nodes(model.graph), *(node for function in model.functions for node in function.node)]
    used = {(node.domain, node.op_type) for node in nodes if node.domain in DOMAINS} - own
    if any(operator != _BIPOLAR for _, operator in used):
        others = find_nodes(model, lambda node: (node.domain, node.op_type) in used and node.op_type != _BIPOLAR)
        names = listed(others) or ", ".join(sorted(operator for _, operator in used if operator != _BIPOLAR))
        raise ModelRefused(
            f"of QONNX's operators only {_BIPOLAR} is read here: {names}; export with QuantizeLinear and "
            "DequantizeLinear, or without quantization"
        )
    opset = opset_of(model) or 0
    compare = _COMPARES if opset >= 12 else _COMPARES_BEFORE_12
    model.functions.extend(
        parse_function(_BODY.format(domain=domain, opset=opset, compare=compare)) for domain, _ in sorted(used)
    )
    return model
