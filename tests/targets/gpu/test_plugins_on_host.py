"""Plugins as TensorRT runs them, their kernels on the host: fields, shapes, pointers and launches of every operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from benchmarks.networks import binary_resnet18
from engines.canonical import canonical
from engines.errors import EngineError
from engines.passes.binary_layers import with_binary_layers
from engines.passes.half import to_half
from engines.plugins import reference
from engines.plugins.bodies import with_bodies
from engines.plugins.cuda.launches import TACTICS
from engines.plugins.cuda.layout import gpu_sums, gpu_weights
from engines.plugins.ops import ConvAttributes, GemmAttributes, PoolAttributes, pack_bits
from engines.reference import Reference
from engines.targets.tensorrt_binary import with_plugins
from tests.plugins.cuda.on_host import HostBuild
from tests.support.servers import ROOT
from tests.targets.gpu.on_host import HostPlugins, run_network

SAMPLES = ROOT / "model_repo"
RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> HostBuild:
    return HostBuild(tmp_path_factory.mktemp("host"))


@pytest.fixture(params=[80, 90], ids=["XOR", "AND"])
def plugins(build: HostBuild, request: pytest.FixtureRequest) -> Iterator[HostPlugins]:
    with HostPlugins(build, request.param) as made:
        yield made
    assert made.refused == []


def bits(*shape: int) -> np.ndarray:
    return pack_bits(RNG.random(shape) < 0.5)


def weights(filters: int, kernel: tuple[int, int], depth: int, group: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """As operators have them, and as plugins do."""
    made = bits(filters, *kernel, depth)
    return made, [gpu_weights(made, group), gpu_sums(made, depth)]


def floats(filters: int) -> list[np.ndarray]:
    return [
        array.astype(np.float32) for array in (*RNG.standard_normal((2, filters)), RNG.standard_normal((3, filters)))
    ]


def limits(filters: int) -> list[np.ndarray]:
    return [RNG.integers(-20, 20, filters).astype(np.int32), bits(filters)]


CONVOLUTIONS = [
    ({"channels": 64, "pads": (1, 1, 1, 1)}, (3, 3), 64),
    ({"channels": 40, "pads": (1, 0, 2, 1), "strides": (2, 1), "pad_value": 1, "low": 0}, (3, 2), 33),
    ({"channels": 256, "group": 2, "dilations": (1, 2), "pads": (0, 2, 0, 2), "low": 0}, (1, 3), 64),
]


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize(("keys", "kernel", "filters"), CONVOLUTIONS)
def test_convolutions_to_floats(
    plugins: HostPlugins, keys: dict[str, Any], kernel: tuple[int, int], filters: int, half: int
) -> None:
    own = ConvAttributes(**keys)
    x, (w, laid_out) = bits(2, 7, 6, own.channels), weights(filters, kernel, own.channels // own.group, own.group)
    further = floats(filters)
    expected = reference.binary_conv2d(x, w, *further, own).astype(np.float16 if half else np.float32)
    plugin = plugins.made("BinaryConv2d", {**own.values(), "kernel_shape": kernel, "half": half})
    assert plugin.get_valid_tactics() == [tactic.number for tactic in TACTICS]
    for tactic in (0, *plugin.get_valid_tactics()):
        found = plugins.run(plugin, [x, *laid_out, *further], (expected.shape, expected.dtype), tactic)
        np.testing.assert_array_equal(found, expected)
        shape = next((f"_{one.name}_" for one in TACTICS if one.number == tactic), "convolve_")
        assert shape in plugins.driver.launched[-1]


@pytest.mark.parametrize(("keys", "kernel", "filters"), CONVOLUTIONS)
def test_convolutions_to_bits(
    plugins: HostPlugins, keys: dict[str, Any], kernel: tuple[int, int], filters: int
) -> None:
    own = ConvAttributes(**keys)
    x, (w, laid_out) = bits(2, 7, 6, own.channels), weights(filters, kernel, own.channels // own.group, own.group)
    further = limits(filters)
    expected = reference.binary_threshold2d(x, w, *further, own)
    plugin = plugins.made("BinaryThreshold2d", {**own.values(), "kernel_shape": kernel})
    found = plugins.run(plugin, [x, *laid_out, *further], (expected.shape, np.int32))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("low", [-1, 0])
def test_products(plugins: HostPlugins, low: int) -> None:
    own = GemmAttributes(channels=300, low=low)  # type: ignore[arg-type]
    x, (w, laid_out), further, marks = bits(5, 300), weights(70, (1, 1), 300, 1), floats(70), limits(70)
    w = w[:, 0, 0]
    found = plugins.run(
        plugins.made("BinaryGemm", {**own.values(), "half": 0}), [x, *laid_out, *further], ((5, 70), np.float32)
    )
    np.testing.assert_array_equal(found, reference.binary_gemm(x, w, *further, own))
    found = plugins.run(plugins.made("BinaryThreshold", own.values()), [x, *laid_out, *marks], ((5, 3), np.int32))
    np.testing.assert_array_equal(found, reference.binary_threshold(x, w, *marks, own))


@pytest.mark.parametrize("datatype", [np.float32, np.float16])
@pytest.mark.parametrize("strict", [0, 1])
@pytest.mark.parametrize("shape", [(2, 40, 4, 4), (3, 70, 5, 3), (4, 100)])
def test_packing(plugins: HostPlugins, shape: tuple[int, ...], strict: int, datatype: type) -> None:
    x = RNG.integers(-3, 4, shape).astype(datatype)
    thresholds = RNG.integers(-2, 3, shape[1]).astype(np.float32)
    expected = reference.binary_pack(x, thresholds, strict=bool(strict))
    found = plugins.run(plugins.made("BinaryPack", {"strict": strict}), [x, thresholds], (expected.shape, np.int32))
    np.testing.assert_array_equal(found, expected)


def test_pooling(plugins: HostPlugins) -> None:
    own = PoolAttributes(kernel_shape=(3, 2), strides=(2, 1), pads=(1, 0, 1, 1))
    x = bits(2, 9, 8, 70)
    expected = reference.binary_max_pool(x, own)
    found = plugins.run(plugins.made("BinaryMaxPool", own.values()), [x], (expected.shape, np.int32))
    np.testing.assert_array_equal(found, expected)


def test_a_module_is_loaded_once_and_unloaded_in_the_end(build: HostBuild) -> None:
    with HostPlugins(build, 86) as plugins:
        own = PoolAttributes(kernel_shape=(2, 2))
        for size in (4, 5, 6):
            x = bits(1, size, size, 32)
            expected = reference.binary_max_pool(x, own)
            found = plugins.run(plugins.made("BinaryMaxPool", own.values()), [x], (expected.shape, np.int32))
            np.testing.assert_array_equal(found, expected)
        assert plugins.loaded == [("pool", 86)]
        assert plugins.driver.modules == ["pool"]
    assert plugins.driver.modules == []


def test_a_library_has_one_set_of_plugins_at_a_time(build: HostBuild) -> None:
    with (
        HostPlugins(build, 80),
        pytest.raises(EngineError, match="the library has a plugin 'BinaryPack' of 'bitserve' already"),
        HostPlugins(build, 80),
    ):
        pass
    with HostPlugins(build, 80):
        pass


def test_shapes_that_do_not_fit_reach_no_kernel(build: HostBuild) -> None:
    _, laid_out = weights(8, (1, 1), 64, 1)
    with HostPlugins(build, 80) as plugins:
        plugin = plugins.made("BinaryThreshold", GemmAttributes(channels=64).values())
        with pytest.raises(ValueError, match=r"bits: found \[2, 3\], expected \[2, 2\]"):
            plugins.run(plugin, [bits(5, 96), *laid_out, *limits(8)], ((5, 1), np.int32))
    assert plugins.refused == ["BinaryThreshold: bits: found [2, 3], expected [2, 2]"]
    assert plugins.driver.launched == []


def pictures(rows: int) -> np.ndarray:
    held = np.load(SAMPLES / "fashion_cnn" / "heldout.npz")["image"]
    return held[:rows].astype(np.float32) / 255


def test_the_sample_classifier_decides_as_its_file_says(plugins: HostPlugins) -> None:
    """Every value of it: bits exactly, the floats behind the last binary layer too."""
    source = onnx.load(SAMPLES / "fashion_binary" / "1" / "model.onnx")
    packed = with_bodies(with_binary_layers(canonical(source)[0])[0])
    graph = with_plugins(packed)
    image = pictures(3)
    found = run_network(graph, plugins, {"image": image})
    opened = onnx.ModelProto()
    opened.CopyFrom(packed)
    kept = [name for node in packed.graph.node if node.domain for name in node.output if name in found]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in kept)
    expected = Reference(opened)({"image": image})
    near = np.abs(found["getitem"] - expected.get("getitem", found["getitem"])).max()
    assert near < 1e-5
    for name in kept:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    np.testing.assert_array_equal(found["logits"].argmax(1), Reference(source)({"image": image})["logits"].argmax(1))


def test_binary_layers_between_layers_in_half(build: HostBuild) -> None:
    """The binary ResNet-18 at 32 x 32 in FP16: packed of halves, and rounded to halves as the bodies' floats would."""
    packed = with_bodies(with_binary_layers(canonical(binary_resnet18(32))[0])[0])
    graph = with_plugins(to_half(packed)[0])
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with HostPlugins(build, 80) as plugins:
        found = run_network(graph, plugins, {"image": image})
    assert all("fp16" in one for one in plugins.driver.launched if one.startswith("pack"))
    layers = [node for node in graph.graph.node if node.op_type == "BinaryConv2d"]
    weights_of = {node.name: node.input[1] for node in packed.graph.node if node.op_type == "BinaryConv2d"}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in packed.graph.initializer}
    assert len(layers) == 16
    for node in layers:
        own = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        known = {name: own[name] for name in ("channels", "group", "pad_value", "low")}
        sides = {name: tuple(own[name]) for name in ("strides", "dilations", "pads")}
        x, *further = (found[name] for name in (node.input[0], *node.input[3:]))
        expected = reference.binary_conv2d(x, stored[weights_of[node.name]], *further, ConvAttributes(**known, **sides))
        np.testing.assert_array_equal(found[node.output[0]], expected.astype(np.float16), err_msg=node.name)
