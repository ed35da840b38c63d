"""Builds of models with binary layers, and what their reports say of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from engines.passes import quantize
from engines.plugins.extension import extension_path
from engines.plugins.native import Native
from engines.plugins.ops import words_of
from engines.runtime import openvino as runtime
from engines.spec import Spec
from tests.plugins.binary_networks import Network
from tests.plugins.test_binary_layers import LAYERS, classifier, names_of
from tests.support.builds import built

ROOT = Path(__file__).parents[2]
compiled = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")


@compiled
def test_a_build_runs_them_natively_and_its_report_says_by_what(tmp_path: Path) -> None:
    model = classifier()
    manifest, report = built(tmp_path, model)
    binary = [layer for layer in report.layers if layer.op_type in LAYERS]
    assert [(layer.op_type, layer.source) for layer in binary] == list(zip(LAYERS, ("conv2", "conv4"), strict=True))
    assert {(layer.precision, layer.kernel.split()[0]) for layer in binary} == {("binary", "bnn")}
    assert not {"portable", "not"} & {layer.kernel.split()[1] for layer in binary}
    floats = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    bits = 4 * (96 * 9 * words_of(64) + 128 * 9 * words_of(96))
    assert manifest.engine.size_bytes < floats - 25 * bits, "a weight takes one bit of the engine, and took 32"
    assert manifest.proof.batchable


@compiled
def test_a_report_says_why_floats_stay(tmp_path: Path) -> None:
    """The first layer's sums are added to the second's."""
    made = Network()
    first = made.conv(made.sign("x"), 40, 40, pads=[1, 1, 1, 1])
    second = made.conv(made.sign(first), 40, 40, pads=[1, 1, 1, 1])
    made.nodes.append(helper.make_node("Add", [first, second], ["sum"], name="residual"))
    manifest, _ = built(tmp_path, made.model("sum", 40))
    assert "conv2: others read its sums, too" in manifest.notes


@compiled
def test_int8_leaves_them_as_they_are(tmp_path: Path) -> None:
    calibration = {"x": np.random.default_rng(5).standard_normal((32, 3, 8, 8)).astype(np.float32)}
    model = classifier()
    samples = [{"x": row[None]} for row in calibration["x"]]
    made = quantize.quantize(model, samples, len(samples))
    assert names_of(made) == ["conv2", "conv4"]
    assert any(node.op_type == "QuantizeLinear" for node in made.graph.node), "the others are INT8"
    _, report = built(tmp_path, model, Spec(accuracy_budget=0.5), calibration=calibration)
    assert [layer.source for layer in report.layers if layer.op_type in LAYERS] == ["conv2", "conv4"]


def test_without_native_kernels_they_run_as_convolutions_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.core()
    monkeypatch.setattr(runtime, "_has_binary_operators", False)
    manifest, report = built(tmp_path, classifier())
    assert not [layer for layer in report.layers if layer.op_type in LAYERS]
    assert "2 binary layers run as convolutions of floats: their native kernels are not compiled" in manifest.notes


_PINNED = """
import sys
from engines.plugins.native import Native
from engines.targets import openvino as target
from engines.targets.openvino_profile import timed_layers
from tests.plugins.test_binary_layers import LAYERS, classifier
import numpy as np

Native().pin(sys.argv[1])
graph = target.read_model(classifier())
layers = timed_layers(graph, {"x": np.ones((1, 3, 8, 8), np.float32)}, 1)
print(",".join(layer.kernel for layer in layers if layer.op_type in LAYERS))
"""


@compiled
def test_the_kernel_that_is_told_is_the_one_that_ran() -> None:
    """Read from counters of the library, which begin with the process: each pin has one of its own."""
    for kernel in Native().usable():
        done = subprocess.run(
            [sys.executable, "-c", _PINNED, kernel], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert done.stdout.strip() == ",".join([f"bnn {kernel}"] * len(LAYERS))
