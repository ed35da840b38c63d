"""Keep the sum of a residual block in the accumulator of the convolution before it.

Algebra   y = Add(DQ(Q(conv)), skip)  ->  y = Add(conv, skip): one rounding less, so never less exact
Pattern   Add (or a Sum of two), one input of which is a DequantizeLinear(QuantizeLinear(Conv)) that nobody else reads
Check     where both inputs come from convolutions, one alone is freed: the sum fuses with one
Rewrite   the Add reads the convolution's output; the pair goes. (TensorRT: such a pair "forces the separation of the
          convolution operator from the element-wise addition"; OpenVINO fuses either way)
"""

from __future__ import annotations

from collections import Counter

import onnx

from engines.graphs import copy_of

__all__ = ["free_residuals"]


def _is_addition(node: onnx.NodeProto) -> bool:
    return node.op_type == "Add" or (node.op_type == "Sum" and len(node.input) == 2)


def free_residuals(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The model without Q/DQ on the convolution's side of additions."""
    copy = copy_of(model)
    graph = copy.graph
    maker = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    dropped: set[str] = set()
    for node in graph.node:
        if not _is_addition(node):
            continue
        for position, name in enumerate(node.input):
            pair = _pair_after_convolution(name, maker, readers)
            if pair:
                node.input[position] = pair[1].input[0]
                dropped.update((pair[0].output[0], pair[1].output[0]))
                break
    if not dropped:
        return model, ""
    kept = [node for node in graph.node if node.output[0] not in dropped]
    del graph.node[:]
    graph.node.extend(kept)
    return copy, ""


def _pair_after_convolution(
    name: str, maker: dict[str, onnx.NodeProto], readers: Counter[str]
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """(DequantizeLinear, QuantizeLinear), both read once, behind a convolution."""
    dequantize = maker.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or readers[name] != 1:
        return None
    quantize = maker.get(dequantize.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear" or readers[dequantize.input[0]] != 1:
        return None
    source = maker.get(quantize.input[0])
    return (dequantize, quantize) if source is not None and source.op_type in ("Conv", "ConvTranspose") else None
