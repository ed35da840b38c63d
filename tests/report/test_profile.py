"""What a compiled model says of itself, and how its speed is measured."""

from __future__ import annotations

import openvino as ov

from engines.reference import Arrays
from engines.report import Report, change_of, decode_report, encode_report
from engines.targets.openvino import filled_requests
from engines.targets.openvino_profile import layers_of, speeds_of, timed_layers
from tests.report.conftest import STREAMS, images


def test_layers_run_in_order_with_their_kernels_and_sources(graph: ov.Model, compiled: ov.CompiledModel) -> None:
    layers = layers_of(compiled, graph)
    convolutions = [layer for layer in layers if layer.op_type == "Convolution"]
    assert len(convolutions) == 6
    assert all(layer.kernel and layer.precision == "fp32" and layer.time_us is None for layer in convolutions)
    assert "stem_relu" in convolutions[0].source  # fused into it
    assert next(layer for layer in layers if layer.op_type == "FullyConnected") is layers[-1]
    assert not {"Const", "Input", "Output", "Parameter", "Result"} & {layer.op_type for layer in layers}


def test_timed_layers_are_the_same_layers_with_times(graph: ov.Model, compiled: ov.CompiledModel) -> None:
    filled_requests(compiled, images(4), STREAMS)  # each stream chooses kernels for reorders in its first run
    timed = timed_layers(graph, images(4), STREAMS)
    assert [layer.kernel for layer in timed] == [layer.kernel for layer in layers_of(compiled, graph)]
    assert sum(layer.time_us or 0 for layer in timed if layer.op_type == "Convolution") > 0


def test_speed_is_measured_at_one_row_and_at_the_largest_batch(compiled: ov.CompiledModel) -> None:
    asked: list[int] = []

    def batch_of(rows: int) -> Arrays:
        asked.append(rows)
        return images(rows)

    single, eight = speeds_of(compiled, batch_of, 8, budget_s=60)  # ends at its largest count of runs, long before
    assert asked == [1, 8]
    assert (single.rows, eight.rows, single.streams) == (1, 8, STREAMS)
    assert min(single.latency_us, eight.latency_us, single.rows_per_s, eight.rows_per_s) > 0


def test_a_batch_that_takes_too_long_is_made_smaller(compiled: ov.CompiledModel) -> None:
    speeds = speeds_of(compiled, images, 5000, budget_s=0.05)
    assert speeds[0].rows == 1
    assert speeds[-1].rows < 5000
    assert speeds[-1].rows & (speeds[-1].rows - 1) == 0


def test_a_model_that_is_not_batched_has_one_speed(compiled: ov.CompiledModel) -> None:
    assert [speed.rows for speed in speeds_of(compiled, images, 1, budget_s=0.05)] == [1]


def test_a_report_comes_back_from_json(report: Report) -> None:
    assert decode_report(encode_report(report)) == report
    assert report.accuracy.over_bound == 0
    assert report.accuracy.value > 0.8


def test_a_change_counts_what_went_and_what_came() -> None:
    change = change_of("fold", {"Conv": 2, "BatchNormalization": 2}, {"Conv": 2, "Mul": 1}, "one was left")
    assert (change.nodes_before, change.nodes_after) == (4, 3)
    assert (change.removed, change.added, change.note) == ({"BatchNormalization": 2}, {"Mul": 1}, "one was left")
