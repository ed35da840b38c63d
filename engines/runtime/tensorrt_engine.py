"""A plan, deserialized for one GPU: its tensors are held against the manifest, its weights shared by all contexts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from engines.errors import EngineError, OutOfMemory, PlanInvalid
from engines.manifest import GUARD_OUTPUT, Manifest, PlanFile
from engines.runtime.driver import Driver
from engines.runtime.kept_kernels import KeptKernels
from engines.runtime.tensorrt_contexts import Contexts, contexts_of
from engines.tensor import DYNAMIC, ShapeRange, TensorSpec, datatype

__all__ = ["Tensor", "TensorRtEngine"]

_DATATYPES = {
    "FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT8": "INT8", "UINT8": "UINT8", "INT32": "INT32",
    "INT64": "INT64", "BOOL": "BOOL",
}  # fmt: skip


class Tensor(NamedTuple):
    """An input or output: its name, its type, and the axis that rows lie along, None where they do not."""

    name: str
    dtype: np.dtype
    batch_axis: int | None

    def bytes_of(self, shape: Sequence[int]) -> int:
        return int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize


class TensorRtEngine:
    """`trt` is the module of TensorRT or TensorRT-RTX; the calling thread has the context of the GPU current.

    `data` is what `read_plan` has checked: a plan is native code. Raises PlanInvalid where it is not taken, or is not
    the engine that the manifest describes; OutOfMemory; DeviceLost.
    """

    def __init__(
        self, trt: Any, driver: Driver, data: bytes, plan: PlanFile, manifest: Manifest,
        kept: KeptKernels | None = None, *, graphs: bool = True,
    ) -> None:  # fmt: skip
        self.trt, self.profiles = trt, plan.profiles
        said: list[str] = []
        self._logger = _logger_of(trt, said)
        self._runtime = trt.Runtime(self._logger)
        self.engine = self._runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise _refusal(plan, driver, said)
        guards = [TensorSpec(GUARD_OUTPUT, "FP32", (len(plan.guards),))] if plan.guards else []
        self.inputs = self._tensors(manifest.inputs, trt.TensorIOMode.INPUT, plan.target)
        self.outputs = self._tensors((*manifest.outputs, *guards), trt.TensorIOMode.OUTPUT, plan.target)
        self._require_profiles()
        is_fixed = all(DYNAMIC not in spec.row_shape for spec in manifest.inputs)
        self.contexts: Contexts = contexts_of(plan.target, trt, self.engine, kept, graphs=graphs, is_fixed=is_fixed)

    def close(self) -> None:
        """Free it, once no context of it is left. It may be called again."""
        with contextlib.suppress(Exception):  # TensorRT's own, of a GPU that is lost
            self.contexts.keep()
        self.__dict__.pop("contexts", None)
        self.engine = self._runtime = None

    def most_shapes(self, numbers: Sequence[int]) -> list[tuple[int, dict[str, tuple[int, ...]]]]:
        """For each of these profiles, the largest shape of each input."""
        return [(at, {tensor.name: self._largest(tensor.name, at) for tensor in self.inputs}) for at in numbers]

    def _largest(self, name: str, profile: int) -> tuple[int, ...]:
        shape = tuple(self.engine.get_tensor_shape(name))
        return tuple(self.engine.get_tensor_profile_shape(name, profile)[2]) if DYNAMIC in shape else shape

    def _tensors(self, specs: Sequence[TensorSpec], mode: Any, target: str) -> list[Tensor]:
        engine = self.engine
        names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
        of_mode = [name for name in names if engine.get_tensor_mode(name) == mode]
        if sorted(of_mode) != sorted(spec.name for spec in specs):
            raise PlanInvalid(f"the {target} plan has {of_mode}; its manifest says {[spec.name for spec in specs]}")
        for spec in specs:
            if engine.is_shape_inference_io(spec.name):
                raise PlanInvalid(f"sizes of the {target} plan are computed from the values of {spec.name!r}")
            found = _DATATYPES.get(engine.get_tensor_dtype(spec.name).name, "")
            rank = len(engine.get_tensor_shape(spec.name))
            if found != spec.datatype or rank != len(spec.shape):
                raise PlanInvalid(
                    f"the {target} plan's {spec.name!r} is {found or 'of another type'} with {rank} dimensions; its "
                    f"manifest says {spec.datatype} {list(spec.shape)}"
                )
        return [Tensor(spec.name, datatype(spec.datatype).numpy, spec.batch_axis) for spec in specs]

    def _require_profiles(self) -> None:
        """Raise PlanInvalid where the plan's own profiles are not the manifest's, by which batches are chosen."""
        own = [self._profile(at) for at in range(self.engine.num_optimization_profiles)]
        told = [dict(profile) for profile in self.profiles]
        if told and own != told:
            raise PlanInvalid(f"the plan has profiles {own}; its manifest says {told}")

    def _profile(self, at: int) -> dict[str, ShapeRange]:
        found: dict[str, ShapeRange] = {}
        for tensor in self.inputs:
            if DYNAMIC in tuple(self.engine.get_tensor_shape(tensor.name)):
                low, best, high = (tuple(shape) for shape in self.engine.get_tensor_profile_shape(tensor.name, at))
                found[tensor.name] = low, best, high
        return found


def _refusal(plan: PlanFile, driver: Driver, said: Sequence[str]) -> EngineError:
    """TensorRT gives nothing, whatever the reason: a plan that is right is not one to build again."""
    memory, reason = driver.memory(), "; ".join(said[:3])  # raises DeviceLost itself
    if "memory" in reason.lower() or memory.free < plan.size_bytes:
        return OutOfMemory(
            f"the {plan.target} plan has {plan.size_bytes} bytes, {memory.free} of {memory.total} are free: {reason}"
        )
    return PlanInvalid(f"{plan.target} does not take its plan: {reason or 'it gave no reason'}")


def _logger_of(trt: Any, said: list[str]) -> Any:
    """Keeps what is said of errors."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                said.append(text.strip()[:300])

    return Logger()
