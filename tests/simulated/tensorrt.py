"""A simulated TensorRT: the Python names that the runtime uses, on the simulated GPU, with ONNX Runtime's answers.

A plan of it is an ONNX model with profiles. Sources: TensorRT's Python API, IExecutionContext (a change of the profile
forgets the shapes; shapes must lie within the profile; every address must be set before a run; an input consumed event
is recorded once the inputs have been read; one context cannot run twice at once), Developer Guide, "CUDA Graphs" (a
context runs once after a change of its shapes before it is captured), ICudaEngine and IRuntime (a plan that
is not taken gives None, and the logger hears why).
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort

from engines.errors import EngineError
from engines.runtime.driver import give_back
from engines.tensor import ShapeRange
from tests.simulated.gpu import current_gpu
from tests.simulated.ordering import Place, RuleBroken

__all__ = [
    "DataType", "ICudaEngine", "IExecutionContext", "ILogger", "IOutputAllocator", "Runtime", "TensorIOMode", "plan_of",
]  # fmt: skip

CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")  # type: ignore[misc]
DynamicShapesKernelSpecializationStrategy = enum.Enum(  # type: ignore[misc]
    "DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE"
)
__version__ = "11.4.0"
_MAGIC = b"simulated plan"
_OPEN = {"Compress", "NonMaxSuppression", "NonZero", "Unique"}
"""Operators whose outputs have sizes that depend on values."""
_QUANTIZED = {"DequantizeLinear", "QuantizeLinear"}
_MOST_KNOWN = 256
"""Shapes whose outputs' shapes are kept."""
_SCRATCH = "IExecutionContext::setDeviceMemoryV2"
Shape = tuple[int, ...]
DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT8 UINT8 INT32 INT64 BOOL")  # type: ignore[misc]
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")  # type: ignore[misc]
ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
)  # type: ignore[misc]
_OF_ONNX = {
    onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF", onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT8: "INT8", onnx.TensorProto.UINT8: "UINT8", onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64", onnx.TensorProto.BOOL: "BOOL",
}  # fmt: skip


class _Content(msgspec.Struct):
    model: bytes
    profiles: list[dict[str, ShapeRange]]
    scratch_bytes: int


def plan_of(
    model: onnx.ModelProto, profiles: Sequence[Mapping[str, ShapeRange]] = (), scratch_bytes: int = 1024
) -> bytes:
    """The bytes of a plan that runs the model. ValueError where it has types that TensorRT has not."""
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type not in _OF_ONNX:
            raise ValueError(f"TensorRT has no type for {value.name!r}")
    content = _Content(model.SerializeToString(), [dict(profile) for profile in profiles], scratch_bytes)
    return _MAGIC + msgspec.msgpack.encode(content)


class ILogger:
    """What says why something failed."""

    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class Runtime:
    """Deserializes."""

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        current_gpu()
        if not serialized_engine.startswith(_MAGIC):
            self.logger.log(ILogger.Severity.ERROR, "Magic tag does not match")
            return None
        content = msgspec.msgpack.decode(serialized_engine[len(_MAGIC) :], type=_Content)
        try:
            return ICudaEngine(onnx.load_from_string(content.model), content, self.logger)
        except EngineError as error:
            self.logger.log(ILogger.Severity.ERROR, str(error))
            return None


class ICudaEngine:
    """`gpu`: the one that it was deserialized for. Contexts of it share the weights."""

    def __init__(self, model: onnx.ModelProto, content: _Content, logger: ILogger) -> None:
        self.gpu, self.logger, self.model = current_gpu(), logger, model
        self.profiles = content.profiles or [{}]
        self.device_memory_size_v2 = content.scratch_bytes
        """Of a context's scratch memory."""
        weights = {initializer.name for initializer in model.graph.initializer}
        self.inputs = {v.name: v for v in model.graph.input if v.name not in weights}
        self.outputs = {v.name: v for v in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output}
        self._is_open = any(node.op_type in _OPEN for node in model.graph.node)
        self._shapes: dict[tuple[tuple[str, Shape], ...], dict[str, Shape]] = {}
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # it keeps one of every shape
        if any(node.op_type in _QUANTIZED for node in model.graph.node):  # some in half fail when they are rewritten
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        size_bytes = max(1, sum(len(initializer.raw_data) for initializer in model.graph.initializer))
        self._weights = self.gpu.allocate(size_bytes, by_runtime=True)
        self.gpu.wait_while_it_hangs()  # for its weights (CUDA Runtime API, API synchronization behavior: from memory
        # that is not page-locked a copy is waited for)

    def __del__(self) -> None:
        if hasattr(self, "_weights"):
            give_back(functools.partial(self.gpu.free, by_runtime=True), self._weights)

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode["INPUT" if name in self.inputs else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[_OF_ONNX[self._value(name).type.tensor_type.elem_type]]

    def get_tensor_shape(self, name: str) -> Shape:
        return _dims(self._value(name))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        shape = self.get_tensor_shape(name)
        low, best, high = self.profiles[profile_index].get(name, (shape, shape, shape))
        return [tuple(low), tuple(best), tuple(high)]

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        try:
            config = strategy if isinstance(strategy, IRuntimeConfig) else None
            is_shared = (config.strategy if config else strategy) is ExecutionContextAllocationStrategy.USER_MANAGED
            return IExecutionContext(self, config, is_shared=is_shared)
        except EngineError as error:
            self.logger.log(ILogger.Severity.ERROR, str(error))
            return None

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """ONNX Runtime's answers, in the order of the outputs."""
        found: list[np.ndarray] = self._session.run(list(self.outputs), dict(inputs))
        return found

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self._value(name).type.tensor_type.elem_type))

    def shapes_for(self, given: tuple[tuple[str, Shape], ...]) -> dict[str, Shape]:
        """Shapes of the outputs, -1 where they depend on values."""
        if given not in self._shapes:
            if len(self._shapes) >= _MOST_KNOWN:
                self._shapes.clear()
            self._shapes[given] = self._inferred(given)
        return self._shapes[given]

    def _inferred(self, given: tuple[tuple[str, Shape], ...]) -> dict[str, Shape]:
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for value in model.graph.input:
            for name, shape in given:
                if value.name == name:
                    for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
                        dim.dim_value = size
        for value in model.graph.output:  # what is written there may be too little, and is inferred anew
            value.type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        found = {value.name: _dims(value) for value in inferred.graph.output}
        if any(-1 in shape for shape in found.values()) and not self._is_open:  # TensorRT infers more than ONNX does
            zeros = {name: np.zeros(shape, self.dtype(name)) for name, shape in given}
            found = {name: array.shape for name, array in zip(self.outputs, self.run(zeros), strict=True)}
        return found

    def _value(self, name: str) -> onnx.ValueInfoProto:
        return self.inputs[name] if name in self.inputs else self.outputs[name]


class IRuntimeCache:
    """What was compiled, by shapes."""

    def __init__(self) -> None:
        self.compiled: set[bytes] = set()

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(_MAGIC):
            return False
        self.compiled = set(msgspec.msgpack.decode(blob[len(_MAGIC) :], type=list[bytes]))
        return True

    def serialize(self) -> bytes:
        return _MAGIC + msgspec.msgpack.encode(sorted(self.compiled))


class IRuntimeConfig:
    """Of TensorRT-RTX: how its contexts run."""

    cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = strategy = None

    def __init__(self) -> None:
        self.cache = IRuntimeCache()

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


class IOutputAllocator:
    """Of an output whose size is known when it has been computed."""

    def reallocate_output_async(
        self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
    ) -> int | None:
        raise NotImplementedError

    def notify_shape(self, tensor_name: str, shape: Shape) -> None:
        raise NotImplementedError


class IExecutionContext:
    """Of one stream at a time."""

    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig | None, *, is_shared: bool) -> None:
        self._engine, self._gpu, self._config, self._is_shared = engine, engine.gpu, config, is_shared
        self.active_optimization_profile = 0
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._consumed = 0
        self._ran: dict[str, Shape] = {}
        self._allocators: dict[str, IOutputAllocator] = {}
        self._itself = Place("an execution context")
        kernels = config and config.dynamic_shapes_kernel_specialization_strategy
        self._specializes = kernels in (
            DynamicShapesKernelSpecializationStrategy.EAGER, DynamicShapesKernelSpecializationStrategy.LAZY,
        )  # fmt: skip
        self._require_own_gpu()
        self._scratch = 0 if is_shared else self._gpu.allocate(engine.device_memory_size_v2, by_runtime=True)

    def __del__(self) -> None:
        if hasattr(self, "_scratch") and not self._is_shared:
            give_back(functools.partial(self._gpu.free, by_runtime=True), self._scratch)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._require_own_gpu()
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._refuse(f"there is no profile {profile_index}")
        self.active_optimization_profile = profile_index
        self._shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, self.active_optimization_profile)
        given = tuple(shape)
        if len(given) != len(low) or any(not a <= s <= b for a, s, b in zip(low, given, high, strict=True)):
            return self._refuse(f"{name} {list(given)} is not within {list(low)} and {list(high)}")
        self._shapes[name] = given
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine.inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> Shape:
        if name in self._engine.inputs:
            return self._shapes.get(name, self._engine.get_tensor_shape(name))
        return self._engine.shapes_for(tuple(sorted(self._shapes.items())))[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def set_output_allocator(self, name: str, output_allocator: IOutputAllocator) -> bool:
        self._allocators[name] = output_allocator
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        if not self._is_shared or memory % 256 or size < self._engine.device_memory_size_v2:
            raise RuleBroken(f"a context is given {size} bytes of scratch memory at {memory:#x} ({_SCRATCH})")
        self._scratch = memory

    def set_input_consumed_event(self, event: int) -> bool:
        self._consumed = event
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu, engine = self._gpu, self._engine
        self._require_own_gpu()
        if not self._scratch:
            raise RuleBroken(f"a context runs without scratch memory ({_SCRATCH})")
        missing = [n for n in (*engine.inputs, *engine.outputs) if n not in self._addresses] + self.infer_shapes()
        if missing:
            return self._refuse(f"there is no address or shape of {missing}")
        if gpu.is_captured(stream_handle) and self._ran != self._shapes:
            guide = "TensorRT Developer Guide, CUDA Graphs"
            raise RuleBroken(f"a context is captured that has not run with these shapes just before ({guide})")
        self._ran = dict(self._shapes)
        inputs = {name: (self._addresses[name], self._shapes[name], engine.dtype(name)) for name in engine.inputs}
        outputs = [self._addresses[name] for name in engine.outputs]
        read: dict[str, np.ndarray] = {}

        def take() -> None:
            for name, (address, shape, dtype) in inputs.items():
                size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                read[name] = gpu.memory_at(address, size).view(dtype).reshape(shape).copy()

        def compute() -> None:
            for address, array in zip(outputs, engine.run(read), strict=True):
                flat = np.ascontiguousarray(array)
                gpu.memory_at(address, flat.nbytes)[:] = flat.reshape(-1).view(np.uint8)

        try:
            gpu.kernel(stream_handle, "the reading of inputs", [a for a, _, _ in inputs.values()], [], take)
            gpu.runs += 1
            self._specialize()
            if gpu.fails and gpu.runs in gpu.faults.fail_runs:
                return self._refuse("a kernel could not be launched")
            if self._consumed:
                gpu.record(self._consumed, stream_handle)
            if self._allocators and not self._allocate(stream_handle, read, outputs):
                return self._refuse("an output allocator gave no memory")
            gpu.kernel(stream_handle, "a computation", [], [*outputs, self._scratch], compute, [self._itself])
        except RuleBroken:
            raise
        except Exception as error:
            return self._refuse(str(error))
        return True

    def _allocate(self, stream_handle: int, read: Mapping[str, np.ndarray], outputs: list[int]) -> bool:
        """Waits until the inputs have been read, as TensorRT waits for what sizes follow from."""
        event = self._gpu.event()
        self._gpu.record(event, stream_handle)
        self._gpu.synchronize(event)
        self._gpu.close_event(event)
        for at, (name, array) in enumerate(zip(self._engine.outputs, self._engine.run(read), strict=True)):
            allocator = self._allocators.get(name)
            if allocator is not None:
                address = allocator.reallocate_output_async(name, outputs[at], array.nbytes, 256, stream_handle)
                if not address:
                    return False
                outputs[at] = address
                allocator.notify_shape(name, array.shape)
        return True

    def _specialize(self) -> None:
        """TensorRT-RTX compiles kernels for shapes that are new to it."""
        if self._config is not None and self._specializes:
            key = repr(sorted(self._shapes.items())).encode()
            self._engine.gpu.compiled += key not in self._config.cache.compiled
            self._config.cache.compiled.add(key)

    def _require_own_gpu(self) -> None:
        if current_gpu() is not self._gpu:
            guide = "TensorRT Developer Guide, FAQ: multiple GPUs"
            raise RuleBroken(f"a context is used by a thread that has another GPU current ({guide})")

    def _refuse(self, said: str) -> bool:
        self._engine.logger.log(ILogger.Severity.ERROR, said)
        return False


def _dims(value: onnx.ValueInfoProto) -> Shape:
    """-1 for what is not known; all of it, where not even the number of dimensions is."""
    if not value.type.tensor_type.HasField("shape"):
        return (-1,)
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)
