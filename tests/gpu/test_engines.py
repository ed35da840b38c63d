"""A whole network with plugins in it decides as its file says, each time that it runs. A GPU has not run this yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.canonical import canonical
from engines.gpu_forms import before_signs
from engines.passes.binary_layers import with_binary_layers
from engines.passes.dynamic_batch import with_batch_axes
from engines.passes.half import to_half
from engines.plugins.bodies import with_bodies
from engines.reference import Reference
from engines.targets.tensorrt_binary import with_plugins
from tests.gpu import executors
from tests.gpu.device import Gpu
from tests.gpu.executors import Graph, plugins_on, ready
from tests.gpu.machines import Machine, NoMachine
from tests.packaged import DatasetMissing
from tests.support.servers import ROOT
from tests.support.tensorrt_surface import LIBRARIES, surface_of
from tests.support.tensorrt_uses import compare

SAMPLE = ROOT / "model_repo" / "fashion_binary" / "1" / "model.onnx"
HELD_OUT = ROOT / "model_repo" / "fashion_cnn" / "heldout.npz"
ON_HOST, ON_GPU = 2, 32
"""Pictures: a host takes seconds for each."""


def network(precision: str) -> Graph:
    """The sample as a build makes it. FP16 begins behind the first signs: rounding turns those of what is near 0."""
    packed = with_bodies(with_binary_layers(canonical(onnx.load(SAMPLE))[0])[0])
    whole = to_half(packed, before_signs(packed))[0] if precision == "fp16" else packed
    shape = (1, 28, 28)
    return Graph(
        with_batch_axes(with_plugins(whole), {"image": 0}), {"image": ((1, *shape), (8, *shape), (32, *shape))}
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_decides_as_its_file_says(machine: Machine, precision: str) -> None:
    """Also where a captured run is repeated on other pictures."""
    count = ON_GPU if isinstance(machine, Gpu) else ON_HOST
    held_out = np.load(HELD_OUT)["image"][: 2 * count].astype(np.float32) / 255
    first, second = ({"image": held_out[start : start + count]} for start in (0, count))
    file = Reference(onnx.load(SAMPLE))
    try:
        with (
            plugins_on(machine) as plugins,
            ready(machine, network(precision), {"image": np.zeros_like(first["image"])}, plugins) as executor,
        ):
            expected = [file(images)["logits"].argmax(1) for images in (first, second)]
            np.testing.assert_array_equal(executor.run(first)["logits"].argmax(1), expected[0])
            again = executor.replayed if executor.is_capturable or not isinstance(machine, Gpu) else executor.run
            np.testing.assert_array_equal(again(second)["logits"].argmax(1), expected[1])
            assert set(np.concatenate(expected)) != {expected[0][0]}, "one decision for all says little"
    except NoMachine as none:
        pytest.skip(str(none))
    assert plugins.refused == []
    assert machine.modules == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_runs_an_engine_is_there(library: str, tmp_path: Path) -> None:
    """By the names of the real bindings: all that can be compared where nothing runs."""
    try:
        surface = surface_of(library, tmp_path)
    except DatasetMissing as missing:
        pytest.skip(str(missing))
    found = compare(Path(executors.__file__).read_text("utf-8"), "executors.py", surface)
    assert found.problems == []
    assert {"Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3"} <= found.uses
    assert ("IExecutionContext.is_stream_capturable" in found.uses) == (library == "tensorrt-rtx")
