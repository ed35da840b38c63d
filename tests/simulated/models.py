"""Small models, their manifests and their simulated plans."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.manifest import BatchProof, EngineFile, Manifest, PlanFile, Source
from engines.passes.guards import with_guards
from engines.tensor import ShapeRange, TensorSpec
from tests.simulated.tensorrt import plan_of

__all__ = ["Planned", "planned", "scaled_sums"]


class Planned:
    """A model, what the server knows of it, and its plan. `answer` computes what it should say."""

    def __init__(
        self, model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
        profiles: Sequence[Mapping[str, ShapeRange]], sample_shapes: Mapping[str, tuple[int, ...]],
        scratch_bytes: int = 1024,
    ) -> None:  # fmt: skip
        self.model = model
        graph, guards = with_guards(model, on_gpu=True)
        self.data = plan_of(graph, profiles, scratch_bytes)
        digest = hashlib.sha256(self.data).hexdigest()
        self.plan = PlanFile(
            target="tensorrt", file="tensorrt.plan", sha256=digest, size_bytes=len(self.data), precision="fp32",
            version="11.4.0", sms=(86,), profiles=tuple(dict(profile) for profile in profiles),
            guards=guards,
        )  # fmt: skip
        nothing = EngineFile("engine.blob", "", 0)
        batched = any(spec.batch_axis is not None for spec in inputs)
        self.manifest = Manifest(
            key="k", source=Source("model.onnx", "", 0), engine=nothing, target="openvino", precision="fp32",
            inputs=tuple(inputs), outputs=tuple(outputs), proof=BatchProof(batched, "" if batched else "made so"),
            streams=1, threads=1, stream_timings=(), tools={}, hardware="", created="", build_s=0.0,
            sample_shapes=dict(sample_shapes), plans=(self.plan,), guards=guards,
        )  # fmt: skip


def scaled_sums(
    rows: Sequence[tuple[int, int, int]] = ((1, 8, 8),), width: int = 4, scratch_bytes: int = 1024
) -> Planned:
    """y [rows, 2] = x [rows, width] W + b: every row has an answer of its own. A profile for each range of `rows`."""
    rng = np.random.default_rng(7)
    weights = numpy_helper.from_array(rng.standard_normal((width, 2), dtype=np.float32), "W")
    bias = numpy_helper.from_array(np.array([0.5, -2.0], np.float32), "b")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "W", "b"], ["y"])],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weights, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    profiles: list[dict[str, ShapeRange]] = [
        {"x": ((low, width), (best, width), (high, width))} for low, best, high in rows
    ]
    x, y = TensorSpec("x", "FP32", (-1, width), 0), TensorSpec("y", "FP32", (-1, 2), 0)
    return Planned(model, [x], [y], profiles, {"x": (1, width)}, scratch_bytes=scratch_bytes)


def planned(made: Planned, x: np.ndarray) -> np.ndarray:
    """What `scaled_sums` answers, by NumPy."""
    weights, bias = (numpy_helper.to_array(i) for i in made.model.graph.initializer)
    answer: np.ndarray = x @ weights + bias
    return answer
