"""Whole networks with binary layers in INT8 and FP8: a sample with its pictures, and one beside halves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from benchmarks.networks import binary_resnet18
from engines.canonical import canonical
from engines.passes.binary_layers import with_binary_layers
from engines.passes.binary_lowered import Kind, lowered
from engines.passes.emulated_half import emulate_half
from engines.passes.half import to_half
from engines.passes.half_slots import value_types
from engines.plugins.bodies import with_bodies
from engines.plugins.ops import DOMAIN
from engines.reference import Arrays, Reference
from engines.targets.tensorrt_rules import refuse_for_tensorrt

KINDS: tuple[Kind, ...] = get_args(Kind)
SAMPLES = Path(__file__).parents[2] / "model_repo"
LAYERS = 16
SIZE = 32


def answers(model: ModelProto, inputs: Arrays) -> np.ndarray:
    return next(iter(Reference(model)(inputs).values()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_answers_as_its_file_says(kind: Kind) -> None:
    """Written from the file, and from what its floats are packed to again: logit by logit."""
    model = onnx.load(SAMPLES / "fashion_binary" / "1" / "model.onnx")
    with np.load(SAMPLES / "fashion_cnn" / "heldout.npz", allow_pickle=False) as file:
        inputs = {"image": (file["image"].reshape(-1, 1, 28, 28) / np.float32(255)).astype(np.float32)}
    expected = answers(model, inputs)
    assert len(expected) == 256
    for packed in (model, with_binary_layers(canonical(model)[0])[0]):
        written = lowered(packed, kind)
        refuse_for_tensorrt(written.model)
        np.testing.assert_array_equal(answers(written.model, inputs), expected)
        assert len(written.stored_bytes) == 5
        stored = {tensor.name: len(tensor.raw_data) for tensor in packed.graph.initializer}
        layers = {node.name: node for node in packed.graph.node if node.domain == DOMAIN}
        bits = {name: 8 * stored[layers[name].input[1]] for name in written.stored_bytes}
        assert written.stored_bytes == bits, "a byte for a bit: the sample has whole words"


@pytest.fixture(scope="module")
def packed() -> ModelProto:
    return with_binary_layers(canonical(binary_resnet18(SIZE))[0])[0]


@pytest.fixture(scope="module")
def image() -> Arrays:
    return {"image": np.random.default_rng(0).standard_normal((4, 3, SIZE, SIZE)).astype(np.float32)}


def weighted(model: ModelProto) -> Counter[tuple[str, int]]:
    types = value_types(model)
    return Counter((n.op_type, types[n.output[0]]) for n in model.graph.node if n.op_type in ("Conv", "Gemm"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_beside_binary_layers_runs_in_half(packed: ModelProto, image: Arrays, kind: Kind) -> None:
    """Either order does: operators of other domains stay in FP32, and so do nodes that are kept."""
    written = lowered(packed, kind)
    kept, _ = to_half(written.model, written.names)
    halves = {("Conv", TensorProto.FLOAT): LAYERS, ("Conv", TensorProto.FLOAT16): 4, ("Gemm", TensorProto.FLOAT16): 1}
    assert weighted(kept) == halves
    assert weighted(lowered(to_half(packed)[0], kind).model) == halves
    refuse_for_tensorrt(kept)
    expected = answers(emulate_half(with_bodies(packed)), image)
    np.testing.assert_array_equal(answers(emulate_half(written.model, written.names), image), expected)


def test_in_half_sums_of_binary_layers_would_be_others(packed: ModelProto, image: Arrays) -> None:
    """Why their nodes are named: without that, `to_half` takes them, and rounds whole numbers beyond 2048."""
    written = lowered(packed, "INT8")
    assert weighted(to_half(written.model)[0])["Conv", TensorProto.FLOAT] == 0
    expected = answers(emulate_half(written.model, written.names), image)
    found = answers(emulate_half(written.model), image)
    assert np.abs(found - expected).max() > 0.01 * np.abs(expected).max()


def test_weights_of_a_network_take_eight_times_what_bits_take(packed: ModelProto) -> None:
    written = lowered(packed, "INT8")
    assert len(written.stored_bytes) == LAYERS
    words = {tensor.name: 4 * int(np.prod(tensor.dims)) for tensor in packed.graph.initializer}
    layers = [node for node in packed.graph.node if node.op_type == "BinaryConv2d"]
    assert sum(written.stored_bytes.values()) == 8 * sum(words[node.input[1]] for node in layers)
