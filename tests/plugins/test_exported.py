"""Binary networks as PyTorch, Brevitas, qonnx and Larq export them: every layer is found, and answers as it did.

The files, and the scripts that exported them, are in `fixtures`. Signs of whole sums are often of 0 there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.canonical import canonical
from engines.frontend.onnx import read
from engines.layers import with_outputs
from engines.passes import quantize
from engines.passes.binary_find import find_binary_layers
from engines.passes.binary_layers import with_binary_layers
from engines.plugins.bodies import with_bodies
from engines.plugins.extension import extension_path
from engines.plugins.ops import DOMAIN
from engines.reference import Reference
from tests.plugins.fixtures.inputs import images
from tests.plugins.test_binary_layers import on_bits

FIXTURES = Path(__file__).parent / "fixtures"
compiled = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
SCRIPT = ("/first/Conv", "/second/Conv")
LAYERS: dict[str, tuple[str, ...]] = {
    "brevitas_plain": ("node_Conv_267", "node_Conv_269", "node_Gemm_273"),
    "brevitas_qonnx": ("/2/Conv", "/6/Conv", "/10/MatMul"),
    "qonnx_cleaned": ("Conv_1", "Conv_2", "MatMul_0"),
    "larq_tf2onnx": (
        "sequential/quant_conv2d/QuantConv2D", "sequential/quant_conv2d_1/QuantConv2D", "sequential/quant_dense/MatMul",
    ),
    "torch_where_bn_dynamo": ("node_Conv_44", "node_Conv_46"),
    "torch_cast_pool_dynamo": ("node_Conv_43", "node_Conv_45"),
    "torch_ste_scaled_dynamo": ("node_Conv_47", "node_Conv_49"),
    "torch_leftover_pool_dynamo": ("node_Conv_60", "node_Conv_63"),
    "torch_hardtanh_prelu_dynamo": ("node_Conv_61", "node_Conv_63"),
    "torch_relu_ones_dynamo": ("node_Conv_42", "node_Conv_44"),
    "torch_less_bn_dynamo": ("node_Conv_44", "node_Conv_46"),
    **{f"torch_{name}_script": SCRIPT for name in (
        "where_bn", "cast_pool", "ste_scaled", "leftover_pool", "hardtanh_prelu", "relu_ones", "less_bn",
    )},
}  # fmt: skip
POOLED = ("BinaryPack", "BinaryThreshold2d", "BinaryMaxPool", "BinaryConv2d")
"""Bits from the first sign to the second layer's sums."""
CHAINED = ("BinaryPack", "BinaryThreshold2d", "BinaryConv2d")
TWO_PLANES = ("BinaryPack", "BinaryConv2d", "BinaryPack", "BinaryConv2d", "BinaryPack", "BinaryConv2d")
"""What PyTorch's sign answers for 0 takes a second plane, but where the second layer's data is never 0."""


def kinds_of(name: str) -> tuple[str, ...]:
    if not name.startswith("torch"):
        return (*POOLED, "BinaryPack", "BinaryGemm")
    return TWO_PLANES if "ste" in name else POOLED if "pool" in name else CHAINED


def canonical_form(name: str) -> onnx.ModelProto:
    return canonical(read(FIXTURES / f"{name}.onnx")[0])[0]


def inputs_of(model: onnx.ModelProto, name: str) -> dict[str, np.ndarray]:
    return {model.graph.input[0].name: images(channels_last=name.startswith("larq"))}


def test_every_file_is_looked_at_and_says_what_exported_it() -> None:
    assert sorted(LAYERS) == sorted(path.stem for path in FIXTURES.glob("*.onnx"))
    for name in LAYERS:
        said = {entry.key: entry.value for entry in onnx.load(FIXTURES / f"{name}.onnx").metadata_props}
        assert any(package in said["exported by"] for package in ("torch 2.", "brevitas 0.", "tf2onnx 1."))


@pytest.mark.parametrize("name", LAYERS)
def test_all_binary_layers_are_found_and_bits_stay_bits(name: str) -> None:
    model = canonical_form(name)
    found, refused = find_binary_layers(model)
    assert (tuple(layer.node.name for layer in found), refused) == (LAYERS[name], {})
    rewritten, names = with_binary_layers(model)
    assert names == LAYERS[name]
    assert tuple(node.op_type for node in rewritten.graph.node if node.domain == DOMAIN) == kinds_of(name)


@compiled
@pytest.mark.parametrize("name", LAYERS)
def test_answers_are_those_of_the_file_as_it_was_sent(name: str) -> None:
    """1,000 inputs, by kernels in OpenVINO, and by ONNX Runtime on the rewritten file."""
    sent, model = read(FIXTURES / f"{name}.onnx")[0], canonical_form(name)
    inputs, output = inputs_of(model, name), model.graph.output[0].name
    expected = Reference(sent)(inputs)[output]
    for found in (on_bits(model, inputs), Reference(with_bodies(with_binary_layers(model)[0]))(inputs)[output]):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


@compiled
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_alone_answers_the_same_on_the_same_inputs(name: str) -> None:
    """Bit for bit where its weights have magnitudes whose sums are not rounded."""
    model = canonical_form(name)
    found, _ = find_binary_layers(model)
    makers = {node.output[0]: node for node in model.graph.node}
    sources = [layer.signs.source for layer in found]
    # the shape of what a Clip reads is read, too, where signs are filled into it
    sources = [makers[source].input[0] if makers[source].op_type == "Clip" else source for source in sources]
    inputs = inputs_of(model, name)
    seen = Reference(with_outputs(model, sources))(inputs)
    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
    for layer, source in zip(found, sources, strict=True):
        output = layer.node.output[0]
        alone = extractor.extract_model([source], [output])
        given = {source: seen[source]}
        expected = Reference(alone)(given)[output]
        is_exact = (np.frexp(layer.scale)[0] == 0.5).all()
        bound = 0.0 if is_exact else layer.scale.max() * layer.weights[0].size ** 2 * float(np.finfo(np.float32).eps)
        np.testing.assert_allclose(on_bits(alone, given), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("name", LAYERS)
def test_int8_leaves_all_of_it_between_the_first_sign_and_the_last_sum(name: str) -> None:
    """What the signs are made of, and what lies between sums and signs, too."""
    model = canonical_form(name)
    inputs = inputs_of(model, name)
    rows = [
        {key: row[None] for key, row in zip(inputs, one, strict=True)} for one in zip(*inputs.values(), strict=True)
    ]
    made = quantize.quantize(model, rows[:16], 16)
    rewritten, names = with_binary_layers(made)
    assert names == LAYERS[name]
    kinds = [node.op_type for node in rewritten.graph.node]
    assert tuple(kind for kind in kinds if kind.startswith("Binary")) == kinds_of(name)
    assert kinds.count("QuantizeLinear") >= 2
    last = max(i for i, kind in enumerate(kinds) if kind.startswith("Binary"))
    assert "QuantizeLinear" not in kinds[kinds.index("BinaryPack") : last]


def test_ties_are_common() -> None:
    """Or nothing above would say how they fall: a twentieth of what the first sign reads is 0."""
    for name in LAYERS:
        model = canonical_form(name)
        source = find_binary_layers(model)[0][0].signs.source
        seen = Reference(with_outputs(model, [source]))(inputs_of(model, name))[source]
        assert (seen == 0).mean() > 0.05
