"""Batches that get no faster by more rows: found by the build, written down, and then preferred by the server."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import openvino as ov
import pytest

from benchmarks.networks import resnet18
from engines.manifest import decode
from engines.reference import Arrays
from engines.runtime.openvino import core, stream_config
from engines.targets.openvino_batches import enough_rows, smallest_as_fast
from tests.support.onnx_models import place
from tests.support.servers import running

WIDTH = 64


@pytest.mark.parametrize(
    ("speeds", "enough"),
    [
        ((100, 100, 100, 100), 2),
        ((90, 100, 99, 98), 4),
        ((97, 100, 99, 98), 2),
        ((96.9, 100, 99, 98), 4),
        ((50, 70, 85, 100), 0),
        ((50, 70, 96, 100), 0),
        ((50, 70, 99, 100), 8),
    ],
)
def test_the_smallest_size_within_3_percent_of_the_best(speeds: tuple[float, ...], enough: int) -> None:
    assert smallest_as_fast((2, 4, 8, 16), speeds) == enough


def _compiled(repeats: int) -> ov.CompiledModel:
    """Convolutions over pictures of which one alone fills a core: more rows bring nothing."""
    x = ov.opset13.parameter(ov.PartialShape([-1, WIDTH, 56, 56]), np.float32, name="x")
    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH, 3, 3), dtype=np.float32)
    found = x
    for _ in range(repeats):
        found = ov.opset13.convolution(found, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    return core().compile_model(ov.Model([found], [x]), "CPU", stream_config(1, 1))


def _batch(rows: int) -> Arrays:
    return {"x": np.zeros((rows, WIDTH, 56, 56), np.float32)}


def test_short_runs_are_not_measured_at_all() -> None:
    asked: list[int] = []

    def batch_of(rows: int) -> Arrays:
        asked.append(rows)
        return _batch(rows)

    assert enough_rows(_compiled(1), batch_of, 1e6) == 0
    assert not asked


def test_convolutions_of_large_pictures_need_few_rows() -> None:
    """The first size of which a run takes 40 ms by what is expected is 4; noise may only lift that to 8, or to none."""
    found = [enough_rows(_compiled(6), _batch, 100.0) for _ in range(2)]
    assert set(found) <= {0, 4, 8}
    assert any(found)


def test_the_server_prefers_what_the_build_found(tmp_path: Path) -> None:
    """Whether there is such a size here is for the machine to say; the server says the same."""
    place(tmp_path, "wide", resnet18(size=56))
    with running(tmp_path) as server:
        server.wait_ready("wide")
        said = httpx.get(f"{server.url}/v2/models/wide/config").json()["dynamic_batching"]["preferred_batch_size"]
    (found,) = tmp_path.glob(".cache/**/manifest.json")
    assert said == [decode(found.read_bytes()).enough_rows or 32]
