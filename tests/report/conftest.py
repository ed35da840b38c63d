"""A report whose every number was measured on a real engine, once for all tests."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from engines import repository
from engines.accuracy import assess
from engines.frontend import onnx as frontend
from engines.hardware import cpu_fingerprint
from engines.npz import read_samples
from engines.operators import operators_of
from engines.passes.dynamic_batch import with_batch_axes
from engines.reference import Arrays, Reference
from engines.report import Candidate, Report, change_of
from engines.targets import openvino as target
from engines.targets.openvino_profile import speeds_of, timed_layers
from engines.verify import agreement_bound

MODEL = Path(__file__).parents[2] / "model_repo/fashion_cnn"
STREAMS = 2


def images(rows: int) -> Arrays:
    return {"image": np.random.default_rng(rows).random((rows, 1, 28, 28), np.float32)}


@pytest.fixture(scope="session")
def graph() -> ov.Model:
    model, _, _ = frontend.read(MODEL / "1/model.onnx")
    return target.read_model(with_batch_axes(model, {"image": 0}))


@pytest.fixture(scope="session")
def compiled(graph: ov.Model) -> ov.CompiledModel:
    return target.compile_model(graph, STREAMS, STREAMS)


@pytest.fixture(scope="session")
def report(graph: ov.Model, compiled: ov.CompiledModel, tmp_path_factory: pytest.TempPathFactory) -> Report:
    started = time.monotonic()
    model, digest, size_bytes = frontend.read(MODEL / "1/model.onnx")
    heldout = np.load(MODEL / "heldout.npz")
    path = tmp_path_factory.mktemp("samples") / "validation.npz"
    np.savez(path, image=heldout["image"][:64] / 255, labels=heldout["labels" if "labels" in heldout else "label"][:64])
    samples = read_samples(path, frontend.tensor_specs(model)[0], with_truth=True)
    accuracy = assess(
        target.runner(compiled, ["logits"]), Reference(model), samples, None, tolerance=agreement_bound(model),
        axes={"image": 0}, output_axes={"logits": 0},
    )  # fmt: skip
    checked_s = time.monotonic() - started
    speeds = speeds_of(compiled, images, 8, budget_s=0.2)
    operators = operators_of(model)
    return Report(
        model="fashion_cnn",
        source_format="ONNX",
        opset=model.opset_import[0].version,
        nodes=len(model.graph.node),
        parameters=sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer),
        source_bytes=size_bytes,
        operators=operators,
        inputs={"image": "FP32 [rows, 1, 28, 28]"},
        outputs={"logits": "FP32 [rows, 10]"},
        passes=(change_of("free the batch axis", operators, operators),),
        accuracy=accuracy,
        candidates=(
            Candidate(
                name="fp32",
                precision="fp32",
                target="openvino",
                judged_by="OpenVINO",
                metric=accuracy.metric,
                value=accuracy.value,
                loss=accuracy.loss,
                interval=accuracy.interval,
                samples=accuracy.samples,
                decisions_changed=accuracy.decisions_changed,
                latency_us=speeds[0].latency_us,
                rows_per_s=speeds[-1].rows_per_s,
                size_bytes=size_bytes,
                passed=True,
                on_front=True,
            ),
        ),
        chosen="fp32",
        layers=timed_layers(graph, images(1), STREAMS),
        speeds=speeds,
        max_batch=8,
        batched=True,
        batching="alone and together",
        engine_bytes=len(target.export(compiled)),
        peak_memory_bytes=2**28,
        build_s=round(time.monotonic() - started, 2),
        stages_s={"check": checked_s, "measure": time.monotonic() - started - checked_s},
        spec={"precision": "fp32", "max_batch": 8},
        tools=repository.tool_versions(),
        hashes={"source": digest},
        hardware=cpu_fingerprint(STREAMS),
        created="2026-01-01T00:00:00+00:00",
    )
