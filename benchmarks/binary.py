"""3x3 convolutions of signs on one thread: our operators, floats to floats, beside FP32, INT8 and other binary ones.

Each instruction set in a process of its own, which caps all runtimes alike; runs interleaved, the best of each counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.capped import KERNELS, best_us, caps, in_child, request

__all__ = ["run"]

SHAPES = ((56, 64), (28, 128), (14, 256), (7, 512))
"""Height and width, channels in and out."""
RUNS = 200
COMMAND = "make bench-binary"
_GOALS = {56: ">= 8x FP32, >= 2x BinaryConvolution", 28: ">= 10x FP32, >= 2x BinaryConvolution"}


def run() -> dict[str, Any]:
    """Times in us by instruction set, shape and runtime."""
    found = {cap: in_child("benchmarks.binary", cap) for cap in caps()}
    rows = [_row(cap, shape, found[cap][str(shape[0])]) for cap in found for shape in SHAPES]
    return {"rows": rows, "best_us": found}


def _row(cap: str, shape: tuple[int, int], best: dict[str, float]) -> dict[str, str]:
    size, channels = shape
    ours = best["bnn"]
    others = ", ".join(f"{best[name] / ours:.1f}x {name}" for name in best if name != "bnn")
    return {
        "what": f"3x3 convolution of signs, {size}x{size}x{channels}, floats in and out, {KERNELS[cap]}, one thread",
        "measured": f"{ours:.0f} us: {others}",
        "goal": _GOALS.get(size, _GOALS[28]) if cap == "AVX2" else "-",
        "command": COMMAND,
    }


def _measure(kernel: str) -> dict[str, dict[str, float]]:
    """In the child: the best time in us of each, by height."""
    from engines.plugins.native import Native

    Native().pin(kernel)
    return {str(size): best_us(_runners(size, channels), RUNS) for size, channels in SHAPES}


def _runners(size: int, channels: int) -> dict[str, Callable[[], Any]]:
    import onnxruntime as ort

    from engines.targets import openvino as target
    from tests.plugins.binary_networks import Network

    made = Network()
    signed = made.model(made.conv(made.sign("x"), channels, channels, pads=[1, 1, 1, 1]), channels, size)
    x = np.random.default_rng(0).standard_normal((1, channels, size, size)).astype(np.float32)
    plain = Network()
    floats = plain.model(plain.conv("x", channels, channels, pads=[1, 1, 1, 1]), channels, size)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(floats.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graphs = {
        "bnn": target.read_model(signed), "OpenVINO FP32": target.read_model(floats),
        "OpenVINO INT8": target.read_model(_int8(floats, x)), "OpenVINO BinaryConvolution": _binary(size, channels),
    }  # fmt: skip
    runners = {name: request(graph, x) for name, graph in graphs.items()}
    return {**runners, "ONNX Runtime FP32": lambda: session.run(None, {"x": x})}


def _int8(model: Any, x: np.ndarray) -> Any:
    from engines.passes.quantize import quantize
    from engines.passes.signed import sign_activations

    return sign_activations(quantize(model, [{"x": x}], 1))[0]


def _binary(size: int, channels: int) -> Any:
    """OpenVINO's own operator, and the signs that it takes."""
    import openvino as ov
    from openvino import opset1

    x = opset1.parameter([1, channels, size, size], np.float32, name="x")
    zero, minus, plus = (np.full((1, 1, 1, 1), value, np.float32) for value in (0, -1, 1))
    signs = opset1.fake_quantize(x, zero, zero, minus, plus, 2)
    bits = np.random.default_rng(0).integers(0, 2, channels * channels * 9)
    packed = ov.op.Constant(ov.Type.u1, ov.Shape([channels, channels, 3, 3]), bits.tolist())
    node = opset1.binary_convolution(signs, packed, [1, 1], [1, 1], [1, 1], [1, 1], "xnor-popcount", 0.0)
    return ov.Model([node], [x])


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
