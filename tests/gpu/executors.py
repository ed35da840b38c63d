"""Whole graphs on a machine: engines of TensorRT or TensorRT-RTX on a GPU, and ONNX's own reference on the host, with
kernels of the host for the plugins. No engine has run on a GPU yet.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx

from engines.errors import EngineError
from engines.targets.tensorrt_options import PlanOptions
from engines.targets.tensorrt_process import build_apart
from engines.targets.tensorrt_seam import library_of
from engines.tensor import ShapeRange
from tests.gpu.device import Gpu
from tests.gpu.machines import Executor, Machine, NoMachine
from tests.gpu.plugins import Plugins, run_network
from tests.targets.gpu.on_host import Host

__all__ = ["EngineExecutor", "Graph", "HostExecutor", "of_gpu", "options_for", "plugins_on", "ready"]

_RTX_SMS = (80, 86, 89)
_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32}


class Graph(NamedTuple):
    """What is run: a model, and the sizes that each of its inputs may have, where they may have several."""

    model: onnx.ModelProto
    ranges: Mapping[str, ShapeRange] = MappingProxyType({})


def options_for(graph: Graph, sm: int, *, has_plugins: bool) -> PlanOptions:
    """How its plan is built."""
    profiles = (dict(graph.ranges),) if graph.ranges else ()
    return PlanOptions(profiles=profiles, sms=(sm,), has_plugins=has_plugins)


class _Rtx:
    name: ClassVar[str] = "tensorrt-rtx"

    def is_capturable(self, context: Any, stream: int) -> bool:
        found: bool = context.is_stream_capturable(stream)
        return found


class _TensorRT:
    name: ClassVar[str] = "tensorrt"

    def is_capturable(self, context: Any, stream: int) -> bool:
        """It does not tell; what cannot be captured fails."""
        return True


def of_gpu(sm: int) -> _Rtx | _TensorRT:
    """TensorRT where it is installed, which is faster and knows all GPUs. Raises NoMachine where none is."""
    if importlib.util.find_spec("tensorrt") is not None:
        return _TensorRT()
    if sm not in _RTX_SMS:
        raise NoMachine(f"TensorRT-RTX builds nothing for sm_{sm}; pip install 'bitserve[gpu]' brings TensorRT")
    return _Rtx()


@contextlib.contextmanager
def plugins_on(machine: Machine) -> Iterator[Plugins]:
    """Known to the library that `ready` takes."""
    if isinstance(machine, Gpu):
        library = library_of(of_gpu(machine.driver.sm()).name).trt
        with Plugins(machine, library=library) as plugins:
            yield plugins
        return
    with Plugins(machine) as plugins:
        yield plugins


@contextlib.contextmanager
def ready(
    machine: Machine, graph: Graph, example: Mapping[str, np.ndarray], plugins: Plugins | None
) -> Iterator[Executor]:
    """For inputs like these, which lie in its inputs to begin with. `plugins` are those that the graph asks for."""
    if isinstance(machine, Host):
        yield HostExecutor(graph.model, example, plugins)
        return
    assert isinstance(machine, Gpu)
    with contextlib.closing(EngineExecutor(machine, graph, example, has_plugins=plugins is not None)) as made:
        yield made


class HostExecutor:
    """`tests.gpu.machines.Executor` of the host, which captures nothing of what is no plugin."""

    is_capturable = False

    def __init__(self, model: onnx.ModelProto, example: Mapping[str, np.ndarray], plugins: Plugins | None) -> None:
        self._model, self._plugins, self._most, self._given = model, plugins, example, dict(example)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._given = dict(inputs)
        values = run_network(self._model, self._plugins, inputs)
        return {value.name: values[value.name] for value in self._model.graph.output}

    def resize(self, rows: int) -> None:
        self._given = {name: array[:rows] for name, array in self._most.items()}

    def enqueue(self) -> None:
        self.run(self._given)

    def replayed(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Behind a run on others, whose places in memory are used again."""
        self.run({name: np.zeros_like(array) for name, array in inputs.items()})
        return self.run(inputs)


class EngineExecutor:
    """`tests.gpu.machines.Executor` of a plan, built in a process of its own and loaded here."""

    def __init__(self, gpu: Gpu, graph: Graph, example: Mapping[str, np.ndarray], *, has_plugins: bool) -> None:
        self._gpu, self._held = gpu, contextlib.ExitStack()
        library = of_gpu(gpu.driver.sm())
        data, _ = build_apart(library.name, graph.model, options_for(graph, gpu.driver.sm(), has_plugins=has_plugins))
        trt: Any = library_of(library.name).trt
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = runtime = trt.Runtime(self._logger)
        self._engine = engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(f"{library.name} does not take a plan that was built for this GPU")
        self._context = context = engine.create_execution_context()
        self._shapes = {name: array.shape for name, array in example.items()}
        for name, shape in self._shapes.items():
            context.set_input_shape(name, shape)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._outputs = {
            name: np.empty(tuple(context.get_tensor_shape(name)), _TYPES[engine.get_tensor_dtype(name).name])
            for name in names
            if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT
        }
        lent = self._held.enter_context(gpu.lend(list(example.values()), list(self._outputs.values())))
        self._addresses = dict(zip((*example, *self._outputs), lent, strict=True))
        for name, address in self._addresses.items():
            context.set_tensor_address(name, address)
        self.enqueue()  # what is made at a first run cannot be captured
        self.is_capturable = library.is_capturable(context, gpu.stream)

    def close(self) -> None:
        """Before the plugins go, which the engine holds."""
        self._held.close()
        del self._context, self._engine, self._runtime

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._put(inputs)
        self.enqueue()
        return self._taken()

    def resize(self, rows: int) -> None:
        for name, shape in self._shapes.items():
            self._context.set_input_shape(name, (rows, *shape[1:]))

    def enqueue(self) -> None:
        if not self._context.execute_async_v3(self._gpu.stream):
            raise EngineError("TensorRT did not run the engine")

    def replayed(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `run`, by a graph that was captured before the inputs were there."""
        with self._gpu.captured(self.enqueue) as replay:
            self._put(inputs)
            replay()
            return self._taken()

    def _put(self, inputs: Mapping[str, np.ndarray]) -> None:
        for name, array in inputs.items():
            self._gpu.write(self._addresses[name], array)

    def _taken(self) -> dict[str, np.ndarray]:
        found = {name: np.empty_like(array) for name, array in self._outputs.items()}
        for name, array in found.items():
            self._gpu.read(self._addresses[name], array)
        return found
