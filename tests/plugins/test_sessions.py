"""One compiled network in many hands: threads within a run, runs at the same time, sizes that change."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from engines.plugins.extension import extension_path
from engines.reference import Reference
from engines.targets import openvino as target
from tests.plugins.binary_networks import Network

pytestmark = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
CHANNELS = 40


def two_layers(size: int | str = "S") -> onnx.ModelProto:
    """Bits from one layer to the other, and floats at both ends."""
    made = Network()
    first = made.conv(made.sign("x"), CHANNELS, 64, pads=[1, 1, 1, 1])
    return made.model(made.conv(made.sign(first), 64, 24, strides=[2, 2]), CHANNELS, size)


def wholes(rows: int, size: int) -> np.ndarray:
    values = np.random.default_rng(size).integers(-2, 3, (rows, CHANNELS, size, size))
    return values.astype(np.float32)


def test_several_threads_share_rows_and_places() -> None:
    model, x = two_layers(17), wholes(5, 17)
    engine = target.compile_model(target.read_model(model), 1, 2)
    np.testing.assert_array_equal(engine({"x": x})["y"], Reference(model)({"x": x})["y"])


def test_runs_at_the_same_time_with_sizes_that_differ() -> None:
    """What is prepared by the first run of any is used by all."""
    model, inputs = two_layers(), [wholes(1 + i % 3, size) for i, size in enumerate((5, 8, 17, 6) * 3)]
    engine = target.compile_model(target.read_model(model), 2, 1)
    expected = [Reference(model)({"x": x})["y"] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda x: engine.create_infer_request().infer({"x": x})["y"], inputs)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
