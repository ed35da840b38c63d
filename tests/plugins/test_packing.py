"""A layer that packs what it reads answers as packing and the layer do one after the other, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import ModelRefused
from engines.plugins.bodies import with_bodies
from engines.plugins.extension import extension_path
from engines.plugins.native import Native
from engines.plugins.ops import DOMAIN, VERSION, ConvAttributes, GemmAttributes
from engines.reference import Reference
from engines.runtime.openvino import core
from engines.targets import openvino as target
from engines.targets.openvino_bundles import bundle_stored
from engines.targets.openvino_packing import pack_in_layers
from engines.targets.openvino_profile import timed_layers
from tests.plugins.binary_networks import Network
from tests.plugins.test_kernels import KERNELS, usable
from tests.plugins.test_operators import CONVOLUTIONS, epilogue, random_bits

pytestmark = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
FILTERS = 64
LAYERS = ("BinaryConv2d", "BinaryThreshold2d", "BinaryGemm", "BinaryThreshold")
Arrays = dict[str, np.ndarray]


def packed(
    kind: str, stored: Arrays, places: int, own: ConvAttributes | GemmAttributes, *, strict: int = 0
) -> onnx.ModelProto:
    """BinaryPack with another threshold for each channel, and a layer of its bits; rows and places are not known."""
    limits = np.random.default_rng(3).integers(-1, 2, own.channels).astype(np.float32)
    nodes = [
        helper.make_node("BinaryPack", ["x", "limits"], ["bits"], name="pack", domain=DOMAIN, strict=strict),
        helper.make_node(kind, ["bits", *stored], ["y"], name="layer", domain=DOMAIN, **own.values()),
    ]
    return made(nodes, own.channels, {"limits": limits, **stored}, places, {"y": kind})


def made(
    nodes: list[onnx.NodeProto], channels: int, stored: Arrays, places: int, outputs: dict[str, str]
) -> onnx.ModelProto:
    shape = ["rows", channels, "height", "width"][: 2 + places]
    bits = {"BinaryPack", "BinaryThreshold2d", "BinaryThreshold"}
    types = {name: TensorProto.INT32 if kind in bits else TensorProto.FLOAT for name, kind in outputs.items()}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, one, None) for name, one in types.items()],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def opened(model: onnx.ModelProto) -> ov.Model:
    return core().read_model(model.SerializeToString())


def kinds(graph: ov.Model) -> list[str]:
    return [op.get_type_name() for op in graph.get_ordered_ops() if "Binary" in op.get_type_name()]


def three_ways(model: onnx.ModelProto, x: np.ndarray) -> None:
    """In one call, in two, both with what is stored in one, and by the operators' functions in ONNX Runtime."""
    apart, packing, bundled, both = graphs = [opened(model) for _ in range(4)]
    assert pack_in_layers(packing) == pack_in_layers(both) == 1
    assert bundle_stored(bundled) == bundle_stored(both) == 1
    layer = kinds(apart)[1]
    assert (kinds(apart), kinds(bundled)) == (["BinaryPack", layer], ["BinaryPack", f"Bundled{layer}"])
    assert (kinds(packing), kinds(both)) == ([f"Packing{layer}"], [f"BundledPacking{layer}"])
    expected = Reference(with_bodies(model))({"x": x})["y"]
    for graph in graphs:
        found = target.runner(target.compile_model(graph, 1, 2), ["y"])({"x": x})["y"]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def wholes(*shape: int, seed: int = 0) -> np.ndarray:
    """Ties with all thresholds are common, and some values are none at all."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 3, shape).astype(np.float32)
    return np.where(rng.random(shape) < 0.02, np.float32(np.nan), values)


def weights(own: ConvAttributes) -> np.ndarray:
    return random_bits(FILTERS, 3, 2, own.channels // own.group, seed=1)


def to_bits(filters: int, reach: int) -> Arrays:
    limits = np.random.default_rng(2).integers(-reach, reach + 1, filters).astype(np.int32)
    return {"t": limits, "f": random_bits(filters, seed=3)}


@pytest.mark.parametrize("strict", [0, 1])
@pytest.mark.parametrize("keys", CONVOLUTIONS)
def test_convolutions(keys: dict[str, Any], strict: int) -> None:
    own = ConvAttributes(**{"channels": 40, **keys})
    x = wholes(3, own.channels, 8, 7)
    floats = {"w": weights(own), **epilogue(FILTERS, FILTERS)}
    three_ways(packed("BinaryConv2d", floats, 2, own, strict=strict), x)
    bits = {"w": weights(own), **to_bits(FILTERS, 30)}
    three_ways(packed("BinaryThreshold2d", bits, 2, own, strict=strict), x)


@pytest.mark.parametrize("channels", [1, 31, 33, 96, 130])
def test_channels_off_the_word_and_more_places_than_a_part(channels: int) -> None:
    """Packing takes 256 places at a time, a product 32."""
    own = ConvAttributes(channels=channels, pads=(1, 1, 1, 1))
    stored = {"w": weights(own), **epilogue(FILTERS, 1)}
    three_ways(packed("BinaryConv2d", stored, 2, own), wholes(2, channels, 19, 17))


@pytest.mark.parametrize("low", [-1, 0])
@pytest.mark.parametrize(("channels", "filters", "rows"), [(1, 1, 1), (33, 40, 5), (100, 64, 70)])
def test_products(channels: int, filters: int, rows: int, low: int) -> None:
    own = GemmAttributes(channels=channels, low=-1 if low else 0)
    x, w = wholes(rows, channels), {"w": random_bits(filters, channels, seed=1)}
    three_ways(packed("BinaryGemm", w | epilogue(filters, filters), 0, own), x)
    three_ways(packed("BinaryThreshold", w | to_bits(filters, channels), 0, own, strict=1), x)


@pytest.mark.parametrize("bundled", [0, 1])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_pinned_kernel_runs_a_layer_once_and_the_report_names_both(kernel: str, bundled: int) -> None:
    native = Native()
    usable(native, kernel)
    own, x = ConvAttributes(channels=40), wholes(2, 40, 8, 7)
    graph = opened(packed("BinaryConv2d", {"w": weights(own), **epilogue(FILTERS, 1)}, 2, own))
    pack_in_layers(graph)
    assert not bundled or bundle_stored(graph)
    run = target.runner(target.compile_model(graph, 1, 1), ["y"])
    native.pin(kernel)
    try:
        before = native.runs()
        run({"x": x})
        ran = {name: count - before[name] for name, count in native.runs().items()}
        (layer,) = timed_layers(graph, {"x": x}, 1)
    finally:
        native.pin("")
    assert ran == {name: int(name == kernel) for name in ran}
    assert (layer.op_type, layer.precision, layer.source) == ("BinaryConv2d", "binary", "y")
    assert kernel in layer.kernel.removeprefix("bnn ").split(" and ")
    assert layer.weight_bytes_saved == 4 * FILTERS * 6 * (40 - 2)
    assert layer.time_us is not None


def two_readers() -> tuple[list[onnx.NodeProto], dict[str, str]]:
    own = ConvAttributes(channels=40)
    names = ["w", "m", "b", "a"]
    layers = [helper.make_node("BinaryConv2d", ["bits", *names], [y], domain=DOMAIN, **own.values()) for y in "yz"]
    return layers, {"y": "BinaryConv2d", "z": "BinaryConv2d"}


def an_output() -> tuple[list[onnx.NodeProto], dict[str, str]]:
    return two_readers()[0][:1], {"y": "BinaryConv2d", "bits": "BinaryPack"}


@pytest.mark.parametrize("others", [two_readers, an_output])
def test_bits_that_others_read_too_are_packed_once_for_all(others: Any) -> None:
    layers, outputs = others()
    own, limits = ConvAttributes(channels=40), np.zeros(40, np.float32)
    nodes = [helper.make_node("BinaryPack", ["x", "limits"], ["bits"], domain=DOMAIN, strict=0), *layers]
    model = made(nodes, 40, {"limits": limits, "w": weights(own), **epilogue(FILTERS, 1)}, 2, outputs)
    graph, x = opened(model), wholes(2, 40, 8, 7)
    assert pack_in_layers(graph) == 0
    assert sorted(kinds(graph)) == ["BinaryConv2d"] * len(layers) + ["BinaryPack"]
    found = target.runner(target.compile_model(graph, 1, 1), [*outputs])({"x": x})
    expected = Reference(with_bodies(model))({"x": x})
    for name in outputs:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("kind", [f"Packing{layer}" for layer in LAYERS] + ["AddingBinaryConv2d", "BundledBinaryGemm"])
def test_no_file_may_have_one(kind: str) -> None:
    """It would be taken for the operators that it stands for, and no other runtime knows it."""
    stored = {"limits": np.zeros(40, np.float32), "w": random_bits(8, 40), **epilogue(8, 1)}
    node = helper.make_node(kind, ["x", *stored], ["y"], name="it", domain=DOMAIN, channels=40)
    with pytest.raises(ModelRefused, match=f"does not know these operators: bnn.{kind} .*it"):
        target.read_model(made([node], 40, stored, 0, {"y": kind}))


def network() -> onnx.ModelProto:
    """Floats to bits, and bits to floats."""
    net = Network()
    first = net.conv(net.sign("x"), 40, 64, pads=[1, 1, 1, 1])
    second = net.conv(net.sign(first), 64, 24, strides=[2, 2])
    return net.model(second, 40, "S")


def test_a_build_packs_in_its_layers_and_an_imported_engine_still_does() -> None:
    """Many requests at the same time, of other sizes each: bits of one are never those of another."""
    model = network()
    graph = target.read_model(model)
    assert kinds(graph) == ["BundledPackingBinaryThreshold2d", "BundledBinaryConv2d"]
    inputs = [np.nan_to_num(wholes(1 + i % 3, 40, 5 + 2 * i, 5 + 2 * i, seed=i)) for i in range(8)]
    expected = [Reference(model)({"x": x})["y"] for x in inputs]
    blob = target.export(target.compile_model(graph, 1, 2))
    for engine in (target.reimported(blob, 1, 2), target.reimported(blob, 2, 2)):
        requests = [target.filled_requests(engine, {"x": x}, 1)[0] for x in inputs]
        for _ in range(50):
            for request in requests:
                request.start_async()
            for request, wanted in zip(requests, expected, strict=True):
                request.wait()
                np.testing.assert_array_equal(request.get_tensor("y").data, wanted)
