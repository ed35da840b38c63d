"""How contexts of an engine are made: in which TensorRT and TensorRT-RTX differ when they run."""

from __future__ import annotations

import logging
import threading
from typing import Any, ClassVar, Protocol

from engines.runtime.buckets import Shapes
from engines.runtime.kept_kernels import KeptKernels

__all__ = ["Contexts", "contexts_of"]


log = logging.getLogger(__name__)
_MOST_SHAPES = 64
"""That have kernels of their own: what was compiled stays as long as an engine, and nothing is said of a limit
(TensorRT-RTX, IRuntimeConfig).
"""


class Contexts(Protocol):
    """Of one engine. `captures`: it makes CUDA graphs by itself, so that nobody else must. `compiles`: to put a batch
    into a stream may take as long as a compiler does.
    """

    captures: ClassVar[bool]
    compiles: ClassVar[bool]

    def make(self, *, shared: bool = False) -> Any:
        """With all its scratch memory, or `shared`: with what it is told before each run. None where that does not fit
        the GPU.
        """

    def version(self, shapes: Shapes) -> int:
        """Of the contexts that run a batch of these shapes. One that was made for another is to be made anew."""

    def keep(self) -> None:
        """What was compiled so far, for the next time."""


class TensorRT:
    """Its kernels were chosen when the plan was built."""

    name: ClassVar[str] = "tensorrt"
    captures: ClassVar[bool] = False
    compiles: ClassVar[bool] = False

    def __init__(self, trt: Any, engine: Any, kept: KeptKernels | None, *, graphs: bool, is_fixed: bool) -> None:
        self._trt, self._engine = trt, engine

    def make(self, *, shared: bool = False) -> Any:
        return self._engine.create_execution_context(_strategy(self._trt, shared=shared))

    def version(self, shapes: Shapes) -> int:
        return 0

    def keep(self) -> None:
        """There is nothing."""


class Rtx:
    """Kernels for the GPU that is here are compiled when shapes come for the first time, and then never again, for they
    are kept. Where rows have one shape (`is_fixed`), that is while it is loaded; else a batch of a new shape runs on
    kernels for any, while its own are compiled; and where shapes are too many, all run on those from then on.
    """

    name: ClassVar[str] = "tensorrt-rtx"
    captures: ClassVar[bool] = True
    compiles: ClassVar[bool] = True

    def __init__(self, trt: Any, engine: Any, kept: KeptKernels | None, *, graphs: bool, is_fixed: bool) -> None:
        self._trt, self._engine, self._kept = trt, engine, kept
        runtime_config = self._runtime_config = engine.create_runtime_config()
        self._wants_graphs, self._is_fixed = graphs, is_fixed
        self._shapes, self._are_many = set[Shapes](), False
        self._making = threading.Lock()
        self._found = kept.read() if kept is not None else b""
        self._compiled = runtime_config.create_runtime_cache()
        if self._found:
            self._compiled.deserialize(self._found)  # of another GPU or driver, it is refused and begins empty
        runtime_config.set_runtime_cache(self._compiled)

    def make(self, *, shared: bool = False) -> Any:
        runtime_config, many = self._runtime_config, self._are_many
        graphs, kernels = self._trt.CudaGraphStrategy, self._trt.DynamicShapesKernelSpecializationStrategy
        captures = self._wants_graphs and not many
        with self._making:
            runtime_config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if captures else graphs.DISABLED
            compiled = kernels.NONE if many else kernels.EAGER if self._is_fixed else kernels.LAZY
            runtime_config.dynamic_shapes_kernel_specialization_strategy = compiled
            runtime_config.set_execution_context_allocation_strategy(_strategy(self._trt, shared=shared))
            return self._engine.create_execution_context(runtime_config)

    def version(self, shapes: Shapes) -> int:
        if not self._is_fixed and not self._are_many:
            self._shapes.add(shapes)
            if len(self._shapes) > _MOST_SHAPES:
                log.info("batches have more than %d shapes: all run on kernels for any from now on", _MOST_SHAPES)
                self._are_many = True
        return int(self._are_many)

    def keep(self) -> None:
        content = bytes(self._compiled.serialize())
        if self._kept is not None and content != self._found:
            self._kept.write(content)
            self._found = content


def _strategy(trt: Any, *, shared: bool) -> Any:
    strategies = trt.ExecutionContextAllocationStrategy
    return strategies.USER_MANAGED if shared else strategies.STATIC


_CONTEXTS: dict[str, type[TensorRT] | type[Rtx]] = {TensorRT.name: TensorRT, Rtx.name: Rtx}


def contexts_of(
    target: str, trt: Any, engine: Any, kept: KeptKernels | None, *, graphs: bool, is_fixed: bool
) -> Contexts:
    """Of a plan's target; with CUDA graphs or without. `is_fixed`: all its rows have one shape."""
    return _CONTEXTS[target](trt, engine, kept, graphs=graphs, is_fixed=is_fixed)
