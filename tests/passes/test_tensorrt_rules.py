"""What TensorRT has not is refused by the names of the nodes, before its parser could take it for something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import ModelRefused
from engines.passes.half import to_half
from engines.targets.tensorrt_rules import graph_counts, refuse_for_tensorrt
from tests.passes.networks import light, recurrent
from tests.support.onnx_models import FLOAT, build


def lstm(**attributes: Any) -> onnx.ModelProto:
    model = recurrent("LSTM", "forward", layers=1, opset=21)
    layer = next(node for node in model.graph.node if node.op_type == "LSTM")
    layer.name = "memory"
    layer.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return model


def of_another_domain() -> onnx.ModelProto:
    model = build(
        [helper.make_node("Sign", ["x"], ["y"], name="own")], {"x": (FLOAT, [1, 4])}, {"y": (FLOAT, [1, 4])}, {}, 21
    )
    model.graph.node[0].domain = "acme"
    return model


REFUSED = {
    "layout": (lambda: lstm(layout=1), r"layout 0, the time first; these have the rows first: memory$"),
    "input_forget": (lambda: lstm(input_forget=1), r"keep their forget gate; these have input_forget: memory$"),
    "domain": (of_another_domain, r"operators of ONNX alone, .*: own \(acme\.Sign\)$"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_has_not_is_refused_by_name(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(ModelRefused, match=said):
        refuse_for_tensorrt(make())


def test_lengths_of_sequences_are_taken_in_fp32_and_refused_in_half() -> None:
    model = recurrent("GRU", "forward", layers=1, opset=21, with_lengths=True)
    refuse_for_tensorrt(model)
    half, _ = to_half(model)
    layer = next(node for node in half.graph.node if node.op_type == "GRU")
    if layer.input[0].endswith(".half"):
        with pytest.raises(ModelRefused, match="lengths of sequences in FP32 layers alone; these run in half"):
            refuse_for_tensorrt(half)
    else:
        refuse_for_tensorrt(half)
        layer.input[0] = f"{layer.input[0]}.half"
        half.graph.input.append(helper.make_tensor_value_info(layer.input[0], TensorProto.FLOAT16, ["T", "N", 3]))
        with pytest.raises(ModelRefused, match="lengths of sequences in FP32 layers alone; these run in half"):
            refuse_for_tensorrt(half)


def test_layers_are_counted_by_type_and_datatype() -> None:
    model = light("squeezenet")
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    assert graph_counts(model) == {"CONVOLUTION FP32": convolutions}
    assert graph_counts(to_half(model)[0]) == {"CONVOLUTION FP16": convolutions}


def test_unsigned_pairs_are_counted_as_such() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="round"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="back"),
    ]
    stored = {"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8)}
    model = build(nodes, {"x": (FLOAT, [1, 4])}, {"y": (FLOAT, [1, 4])}, stored, 21)
    assert graph_counts(model) == {"DEQUANTIZE FP32": 1, "QUANTIZE UINT8": 1}
