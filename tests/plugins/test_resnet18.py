"""The binary ResNet-18 of the benchmark: all its binary layers run on bits, their batch norms folded into them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.networks import binary_resnet18
from engines.canonical import canonical
from engines.passes.binary_layers import with_binary_layers
from engines.plugins.extension import extension_path
from engines.reference import Reference
from engines.targets import openvino as target

SIZE = 64
LAYERS = 16


def test_its_binary_layers_are_found_and_no_batch_norm_is_left() -> None:
    packed, names = with_binary_layers(canonical(binary_resnet18(SIZE))[0])
    assert len(names) == LAYERS
    kinds = [node.op_type for node in packed.graph.node]
    assert kinds.count("BinaryConv2d") == kinds.count("BinaryPack") == LAYERS
    assert kinds.count("Conv") == 4, "the stem and three skips"
    assert "BatchNormalization" not in kinds


def test_its_twin_has_the_same_layers_in_floats() -> None:
    binary, twin = (canonical(binary_resnet18(SIZE, binary=binary))[0] for binary in (True, False))
    assert with_binary_layers(twin) == (twin, ())
    convolutions = [
        [(node.name, list(node.attribute)) for node in model.graph.node if node.op_type == "Conv"]
        for model in (binary, twin)
    ]
    assert convolutions[0] == convolutions[1]


@pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
def test_its_engine_answers_what_onnx_runtime_answers() -> None:
    """Sums before a sign are rounded differently, so a value next to 0 may fall on the other side."""
    model = binary_resnet18(SIZE)
    inputs = {"image": np.random.default_rng(1).standard_normal((3, 3, SIZE, SIZE)).astype(np.float32)}
    engine = target.compile_model(target.read_model(canonical(model)[0]), 1, 1)
    found, wanted = target.runner(engine, ["logits"])(inputs)["logits"], Reference(model)(inputs)["logits"]
    np.testing.assert_array_equal(found.argmax(1), wanted.argmax(1))
    found, wanted = (answers - answers.mean(0) for answers in (found, wanted))
    cosines = (found * wanted).sum(1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1))
    assert (cosines > 0.999).all()
