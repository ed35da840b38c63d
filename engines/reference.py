"""The oracle: ONNX Runtime with graph optimizations off. Slow, and every engine is checked against it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime as ort

from engines.errors import ModelRefused
from engines.hardware import usable_threads
from engines.operators import Found, find_nodes, is_function, listed

__all__ = ["Arrays", "Reference", "Remembered", "in_halves", "unknown_operators"]

Arrays = dict[str, np.ndarray]

_KEPT_BYTES = 2**26
_NEARLY = 2.0**-4
"""Of the largest answer: FP16 has steps of 2**-10, BF16 of 2**-7, and deep networks add some of them up."""


class Remembered:
    """Asks `run` once about an input: answers are kept and given again, `kept_bytes` of them at most; refusals are not
    kept. Nobody may write into an answer.
    """

    def __init__(self, run: Callable[[Arrays], Arrays], kept_bytes: int = _KEPT_BYTES) -> None:
        self._run, self._room = run, kept_bytes
        self._kept: dict[bytes, Arrays] = {}

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """What `run` answers, and raises."""
        if not self._room and not self._kept:
            return self._run(dict(inputs))
        key = _digest(inputs)
        if key not in self._kept:
            answer = self._run(dict(inputs))
            size = sum(array.nbytes for array in answer.values())
            if size > self._room:
                return answer
            self._room -= size
            self._kept[key] = answer
        return dict(self._kept[key])


class Reference:
    """Runs the model as its file says. Raises ModelRefused where ONNX Runtime cannot read it.

    The search for samples, the agreement and the meaning of rows ask about the same inputs, so answers are remembered
    (and read-only).
    """

    def __init__(self, model: onnx.ModelProto, kept_bytes: int = _KEPT_BYTES) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = usable_threads(), 1
        # its threads would go on spinning for a while, on the cores of the engine that runs next
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            unknown = unknown_operators(model)
            said = (
                f"does not know these operators: {listed(unknown)}" if unknown else f"refuses the model: {_line(error)}"
            )
            raise ModelRefused(f"ONNX Runtime {said}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._remembered = Remembered(self._run, kept_bytes)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run one batch; any exception of ONNX Runtime passes through."""
        return self._remembered(inputs)

    def _run(self, inputs: Arrays) -> Arrays:
        found = self._session.run(self._outputs, inputs)
        answer = {name: np.array(value) for name, value in zip(self._outputs, found, strict=True)}
        for array in answer.values():
            array.flags.writeable = False
        return answer


def in_halves(wide: Callable[[Arrays], Arrays], rounded: Callable[[Arrays], Arrays]) -> Callable[[Arrays], Arrays]:
    """What an engine has to answer that computes a half-precision model in FP32 (`wide`): floats as computed there,
    whole numbers as the model itself (`rounded`, after every operator) has them.

    Raises ModelRefused where the two are not nearly the same: then the rounding is what the model is about.
    """

    def answers(inputs: Arrays) -> Arrays:
        found, own = wide(inputs), rounded(inputs)
        for name, want in own.items():
            if want.dtype.kind in "iub":
                found[name] = want
                continue
            a, b = want.astype(np.float64), found[name].astype(np.float64)
            finite = np.isfinite(a) & np.isfinite(b)
            largest = float(np.abs(a[finite]).max(initial=0.0))
            off = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
            if off > _NEARLY * largest:
                raise ModelRefused(
                    f"output {name!r} depends on the rounding of half precision, which this engine leaves out: off by "
                    f"{off:.3g} of {largest:.3g}"
                )
        return found

    return answers


def unknown_operators(model: onnx.ModelProto) -> list[Found]:
    """Every (operator, node) that ONNX Runtime has no definition or no code for, in the version that is imported.

    It names the first alone where it refuses a model, so its own tables are asked. Which types an operator takes is not
    looked at.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as tables

    imported = {_domain(entry.domain): entry.version for entry in model.opset_import}
    local = {(function.domain, function.name) for function in model.functions}
    versions: dict[tuple[str, str], list[int]] = {}
    for schema in tables.get_all_operator_schema():
        versions.setdefault((schema.domain, schema.name), []).append(schema.since_version)
    code: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for kernel in tables.get_all_opkernel_def():
        code.setdefault((kernel.domain, kernel.op_name), []).append(kernel.version_range)

    def is_unknown(node: onnx.NodeProto) -> bool:
        key = (_domain(node.domain), node.op_type)
        if (node.domain, node.op_type) in local:
            return False
        since = max((version for version in versions.get(key, ()) if version <= imported.get(key[0], 0)), default=0)
        return since == 0 or not (is_function(*key, since) or any(a <= since <= b for a, b in code.get(key, ())))

    return find_nodes(model, is_unknown)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0]


def _digest(inputs: Mapping[str, np.ndarray]) -> bytes:
    digest = hashlib.blake2b()
    for name, array in sorted(inputs.items()):
        digest.update(repr((name, array.dtype.name, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.digest()
