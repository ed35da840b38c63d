"""Times of 3x3 convolutions of bits on a machine, by each tactic, beside engines in FP16 and INT8.

Each is repeated in a captured graph, so that no host's time is in it, and they take turns: medians over the turns.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from benchmarks.binary import SHAPES
from engines.plugins.cuda.launches import TACTICS
from engines.plugins.cuda.layout import gpu_sums, gpu_weights
from engines.plugins.ops import ConvAttributes, pack_bits, plain_activation, words_of
from tests.gpu.executors import Graph, ready
from tests.gpu.machines import Executor, Machine
from tests.gpu.plugins import Plugins

__all__ = ["BATCHES", "COMMAND", "SHAPES", "Convolution", "Turns", "measured", "rows_of"]

BATCHES = (1, 8, 32)
COMMAND = "make gpu-test"
_INT8_SCALE = 2**-5


class Convolution(NamedTuple):
    """3x3 with pads of one: `rows` images of `size` x `size`, as many filters as channels."""

    size: int
    channels: int
    rows: int

    def __str__(self) -> str:
        return f"{self.size}x{self.size}x{self.channels}, batch {self.rows}"


class Turns(NamedTuple):
    """So many rounds, of so many runs in a row."""

    rounds: int
    runs: int


def measured(machine: Machine, convolution: Convolution, turns: Turns) -> dict[str, float]:
    """Medians in us by what was run: "bits 64x64" is bits out by that tactic, "FP16 engine" a convolution of floats."""
    with contextlib.ExitStack() as held:
        plugins = held.enter_context(Plugins(machine))
        runs = dict(held.enter_context(_kernels(plugins, convolution)))
        captured = {
            name: held.enter_context(machine.captured(_repeated(run, turns.runs))) for name, run in runs.items()
        }
        for name, executor in held.enter_context(_engines(machine, convolution)).items():
            again = _repeated(executor.enqueue, turns.runs)
            if executor.is_capturable:
                captured[name] = held.enter_context(machine.captured(again))
            else:
                captured[f"{name}, not captured"] = again
        for run in captured.values():
            run()
        times: dict[str, list[float]] = {name: [] for name in captured}
        for _ in range(turns.rounds):
            for name, run in captured.items():
                times[name].append(machine.elapsed_us(run, 1) / turns.runs)
    return {name: statistics.median(found) for name, found in times.items()}


def rows_of(found: dict[Convolution, dict[str, float]]) -> list[dict[str, str]]:
    """For README's table: the best tactic of each output, and how many times as long an engine takes."""
    rows = []
    for convolution, times in found.items():
        engines = {name: us for name, us in times.items() if " engine" in name}
        for out in ("bits", "FP16"):
            tactics = {name: us for name, us in times.items() if name.startswith(f"{out} ") and name not in engines}
            best = min(tactics, key=lambda name: tactics[name])
            others = ", ".join(f"{us / tactics[best]:.1f}x {name}" for name, us in engines.items())
            what = f"3x3 convolution of bits on a GPU, {convolution}, {out} out"
            measured_as = f"{tactics[best]:.1f} us ({best.split()[1]}): {others}"
            rows.append({"what": what, "measured": measured_as, "goal": "-", "command": COMMAND})
    return rows


def _repeated(run: Callable[[], None], times: int) -> Callable[[], None]:
    def again() -> None:
        for _ in range(times):
            run()

    return again


@contextlib.contextmanager
def _kernels(plugins: Plugins, convolution: Convolution) -> Iterator[dict[str, Callable[[], None]]]:
    """What enqueues each tactic, bits and FP16 out; the inputs are bits."""
    size, channels, rows = convolution
    rng, own = np.random.default_rng(0), ConvAttributes(channels=channels, pads=(1, 1, 1, 1))
    bits, weights = pack_bits(rng.random((rows, size, size, channels)) < 0.5), rng.random((channels, 3, 3, channels))
    packed = pack_bits(weights < 0.5)
    given = [bits, gpu_weights(packed), gpu_sums(packed, channels)]
    of = {**own.values(), "kernel_shape": (3, 3)}
    one, zero = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    limits = [np.zeros(channels, np.int32), np.zeros(words_of(channels), np.int32)]
    outs: dict[str, tuple[str, dict[str, Any], list[np.ndarray], tuple[int, ...], Any]] = {
        "bits": ("BinaryThreshold2d", of, limits, (rows, size, size, words_of(channels)), np.int32),
        "FP16": (
            "BinaryConv2d", {**of, "half": 1}, [one, zero, plain_activation()], (rows, channels, size, size),
            np.float16,
        ),
    }  # fmt: skip
    with contextlib.ExitStack() as held:
        found = {}
        for name, (operator, attributes, further, shape, datatype) in outs.items():
            for tactic in TACTICS:
                plugin = plugins.made(operator, attributes)
                bound = plugins.bound(plugin, [*given, *further], np.empty(shape, datatype), tactic.number)
                found[f"{name} {tactic.name}"] = held.enter_context(bound).enqueue
        yield found


@contextlib.contextmanager
def _engines(machine: Machine, convolution: Convolution) -> Iterator[dict[str, Executor]]:
    """FP16 in and out, and INT8 in and out."""
    size, channels, rows = convolution
    given = np.random.default_rng(0).integers(-1, 2, (rows, channels, size, size))
    with contextlib.ExitStack() as held:
        yield {
            name: held.enter_context(ready(machine, Graph(made), {"x": given.astype(datatype)}, None))
            for name, made, datatype in (
                ("FP16 engine", half_network(convolution), np.float16),
                ("INT8 engine", int8_network(convolution), np.int8),
            )
        }


def half_network(convolution: Convolution) -> ModelProto:
    """A convolution of FP16."""
    weights = {"w": _signs(convolution).astype(np.float16)}
    return _model(convolution, [_conv("x", "w", "y")], weights, TensorProto.FLOAT16)


def int8_network(convolution: Convolution) -> ModelProto:
    """A convolution of INT8, as TensorRT takes it: between numbers that were quantized, and are again."""
    stored: dict[str, np.ndarray] = {
        "w": _signs(convolution).astype(np.int8), "scale": np.array(_INT8_SCALE, np.float32),
        "scales": np.full(convolution.channels, _INT8_SCALE, np.float32), "large": np.array(1.0, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale"], ["a"], "a"),
        helper.make_node("DequantizeLinear", ["w", "scales"], ["b"], "b", axis=0),
        _conv("a", "b", "c"),
        helper.make_node("QuantizeLinear", ["c", "large"], ["y"], "q", output_dtype=TensorProto.INT8),
    ]
    return _model(convolution, nodes, stored, TensorProto.INT8)


def _signs(convolution: Convolution) -> np.ndarray:
    channels = convolution.channels
    found: np.ndarray = np.sign(np.random.default_rng(1).random((channels, channels, 3, 3)) - 0.5)
    return found


def _conv(x: str, w: str, y: str) -> NodeProto:
    return helper.make_node("Conv", [x, w], [y], "conv", pads=[1, 1, 1, 1])


def _model(convolution: Convolution, nodes: list[NodeProto], stored: dict[str, np.ndarray], kind: int) -> ModelProto:
    size, channels, rows = convolution
    shape = [rows, channels, size, size]
    given, made = (helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y"))
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "convolution", [given], [made], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
