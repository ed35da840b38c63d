"""The samples in every precision that a GPU runs, each with what it means for ONNX Runtime and by how much answers may
differ from that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np
import onnx

from engines.canonical import canonical
from engines.frontend.onnx import tensor_specs
from engines.gpu_forms import before_signs
from engines.manifest import BatchProof, EngineFile, Manifest, Source
from engines.passes.binary_layers import with_binary_layers
from engines.passes.dynamic_batch import with_batch_axes
from engines.passes.emulated_half import emulate_half
from engines.passes.half import to_half
from engines.passes.quantize import Quantizer
from engines.passes.residual import free_residuals
from engines.passes.signed import sign_activations
from engines.plugins.bodies import with_bodies
from engines.plugins.ops import DOMAIN
from engines.reference import Arrays, Reference
from engines.tensor import DYNAMIC, ShapeRange, TensorSpec
from tests.support.servers import ROOT

__all__ = ["GOLDEN", "MOST_ROWS", "Golden", "golden"]

MOST_ROWS = 8
_CALIBRATION = 4
_MARGIN = 4
"""Two computations that each round once for every operator both err like the one that is emulated. Of as many errors,
the largest of one is seldom twice that of another; and they are apart by both together."""
_FRAMES = 24
"""Of sequences, whose length is variable."""


class Golden(NamedTuple):
    """`graph` goes to the builder; `meaning` is run by ONNX Runtime. `within` are the most that answers may be apart,
    by output: derived from roundings (`_within`).
    """

    name: str
    graph: onnx.ModelProto
    meaning: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    within: Mapping[str, float]
    has_binary_layers: bool

    @property
    def profiles(self) -> tuple[dict[str, ShapeRange], ...]:
        """One, for 1 to MOST_ROWS rows, and other variable sizes from half of the usual one to four times that."""
        ranges: dict[str, ShapeRange] = {}
        for spec in self.inputs:
            usual = _shape(spec, MOST_ROWS)
            half = tuple(max(1, n // 2) if size == DYNAMIC else n for n, size in zip(usual, spec.shape, strict=True))
            four = tuple(4 * n if size == DYNAMIC else n for n, size in zip(usual, spec.shape, strict=True))
            ranges[spec.name] = (_rows(half, 1), _rows(usual, MOST_ROWS), _rows(four, MOST_ROWS))
        return (ranges,)

    @property
    def manifest(self) -> Manifest:
        """As a build would write it, without any plan."""
        return Manifest(
            key=self.name, source=Source("model.onnx", "", 0), engine=EngineFile("engine.blob", "", 0),
            target="openvino", precision="fp32", inputs=self.inputs, outputs=self.outputs, proof=BatchProof(True, ""),
            streams=1, threads=1, stream_timings=(), tools={}, hardware="", created="", build_s=0.0,
            sample_shapes={spec.name: _shape(spec, 1) for spec in self.inputs},
        )  # fmt: skip

    def rows(self, count: int, seed: int = 0) -> Arrays:
        """Like those that the tolerances were derived from."""
        return _random_rows(self.inputs, count, seed)

    def expected(self, inputs: Arrays) -> Arrays:
        return Reference(self.meaning)(inputs)


def _shape(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    usual = tuple(_FRAMES if size == DYNAMIC else size for size in spec.shape)
    return _rows(usual, rows)


def _rows(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    return (rows, *shape[1:])


def _random_rows(inputs: tuple[TensorSpec, ...], count: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {spec.name: rng.standard_normal(_shape(spec, count), dtype=np.float32) for spec in inputs}


def _within(whole: onnx.ModelProto, rounded: onnx.ModelProto, unit: float, rows: Arrays) -> dict[str, float]:
    """The largest change that rounding everything to half makes, scaled to the `unit` of what is computed, which is 1
    for half; and the largest that a change of the inputs makes which is as large as an error of a sum in FP32.

    To first order errors are proportional to the unit of the roundings (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.3). Where they turn a sign or a quantized value they are not: then the second is the larger.
    """
    file = Reference(whole)
    exact, halved, nudged = file(rows), Reference(rounded)(rows), file(_nudged(rows))
    return {
        name: _MARGIN * max(unit * _apart(halved[name], exact[name]), _apart(nudged[name], exact[name]))
        for name in exact
    }


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def _nudged(rows: Arrays) -> Arrays:
    rng = np.random.default_rng(2)
    return {
        name: (array * (1 + 2.0**-22 * rng.choice([-1.0, 1.0], array.shape))).astype(np.float32)
        for name, array in rows.items()
    }


def _longest_sum(model: onnx.ModelProto) -> int:
    """Products that are added up for one value, of the largest weights."""
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    sizes = [int(np.prod(stored[name][1:])) for node in model.graph.node for name in node.input if stored.get(name)]
    return max([1, *sizes])


def _fp32(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto, float]:
    """FP32 has 13 bits more than half; sums are made in another order, and of n terms the error is of sqrt(n) roundings
    (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019).
    """
    return model, model, 2.0**-13 * math.sqrt(_longest_sum(model))


def _fp16(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto, float]:
    kept = before_signs(model)
    return to_half(model, kept)[0], emulate_half(model, kept), 1.0


def _golden(name: str, precision: str) -> Golden:
    sent = canonical(onnx.load(ROOT / "model_repo" / name / "1" / "model.onnx"))[0]
    inputs, outputs = (
        tuple(msgspec.structs.replace(spec, batch_axis=0) for spec in specs) for specs in tensor_specs(sent)
    )
    rows = _random_rows(inputs, 64, 1)
    if precision == "int8":
        quantizer = Quantizer(sent, [rows] * _CALIBRATION, _CALIBRATION, ["minmax"])
        sent = free_residuals(sign_activations(quantizer.quantized("minmax", overflow_fix=False))[0])[0]
    packed, _ = with_binary_layers(sent)
    model = with_bodies(packed) if packed is not sent else sent
    made, meaning, unit = (_fp32 if precision == "fp32" else _fp16)(model)
    rounded = emulate_half(model, before_signs(model))
    return Golden(
        f"{name}, {precision}", with_batch_axes(made, {spec.name: 0 for spec in inputs}), meaning, inputs, outputs,
        _within(model, rounded, unit, rows), any(node.domain == DOMAIN for node in model.graph.node),
    )  # fmt: skip


GOLDEN: dict[str, Callable[[], Golden]] = {
    f"{name}-{precision}": functools.partial(_golden, name, precision)
    for name in ("fashion_binary", "fashion_cnn", "fashion_float", "japanese_vowels", "letter_mlp")
    for precision in ("fp32", "fp16", "int8")
}


@functools.cache
def golden(name: str) -> Golden:
    """Made once."""
    return GOLDEN[name]()
