"""Plugins as TensorRT runs them, without TensorRT: its classes, its registry, and what an execution context calls."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx
import tensorrt_rtx as trt
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.plugins.gpu.driver import Kernels
from engines.plugins.gpu.fields import Given
from engines.plugins.gpu.operators import NAMESPACE, OPERATORS, VERSION
from engines.plugins.gpu.tensorrt import registered
from engines.plugins.ops import DOMAIN
from tests.gpu.machines import Machine

__all__ = ["Bound", "Plugins", "described", "run_network"]

_TYPES = {"float32": trt.float32, "float16": trt.float16, "int32": trt.int32}
_OF = ("plugin_namespace", "plugin_version")


class Bound(NamedTuple):
    """Puts a run into the stream, and where in the machine's memory its inputs lie, and then its output."""

    enqueue: Callable[[], None]
    addresses: list[int]
    plugin: Any
    """As it is attached to the context."""


class Plugins:
    """Plugins by their creators, as TensorRT makes them of a plan. A library has one set of them at a time."""

    overwrites: ClassVar[bool] = False
    """Whether memory that was freed is used for other things before a plugin is made of what another wrote."""

    def __init__(self, machine: Machine, *, library: Any = trt, kernels: type[Kernels] = Kernels) -> None:
        self.machine = machine
        self.refused: list[str] = []
        self.loaded: list[tuple[str, int]] = []
        self.kernels = kernels(machine.driver, self._cubin)
        self._library = library
        self._registered = registered(library, self.refused.append, lambda: self.kernels)

    def __enter__(self) -> Plugins:
        self._registered.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._registered.__exit__(None, None, None)
        self.kernels.close()

    def _cubin(self, source: str, sm: int) -> bytes:
        self.loaded.append((source, sm))
        return self.machine.cubin(source, sm)

    def made(self, operator: str, attributes: Mapping[str, Any]) -> Any:
        """Of what the builder wrote into a plan: the fields that a plugin of these attributes has to be kept."""
        trt = self._library
        creator = trt.get_plugin_registry().get_creator(operator, VERSION, NAMESPACE)
        fields = [
            trt.PluginField(name, np.array(value, np.int32).reshape(-1), trt.PluginFieldType.INT32)
            for name, value in attributes.items()
        ]
        built = creator.create_plugin("node", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
        assert built is not None, self.refused
        written = built.get_fields_to_serialize()
        del fields
        if self.overwrites:
            gc.collect()
            taken = [np.full(size, -7, np.int32) for _ in range(50) for size in (1, 2, 4)]
            assert len(taken) == 150
        return creator.create_plugin("node", written, trt.TensorRTPhase.RUNTIME)

    def run(self, plugin: Any, inputs: Sequence[np.ndarray], out: tuple[tuple[int, ...], Any], tactic: int = 0) -> Any:
        """As an execution context does: attach, shapes, enqueue."""
        made = np.empty(*out)
        with self.bound(plugin, inputs, made, tactic) as bound:
            bound.enqueue()
        return made

    @contextlib.contextmanager
    def bound(self, plugin: Any, inputs: Sequence[np.ndarray], out: np.ndarray, tactic: int = 0) -> Iterator[Bound]:
        """An execution context's plugin with its shapes set and its tensors in the machine's memory; `out` holds in the
        end what was written there.
        """
        plugin.set_tactic(tactic)
        attached = plugin.attach_to_context(None)
        given, result = [described(array.shape, array.dtype) for array in inputs], [described(out.shape, out.dtype)]
        attached.on_shape_change(given, result)
        with self.machine.lend(inputs, [out]) as addresses:
            *of, to = addresses
            yield Bound(lambda: attached.enqueue(given, result, of, [to], 0, self.machine.stream), addresses, attached)


def described(shape: Sequence[int], datatype: Any) -> Any:
    """A tensor as an execution context tells of it."""
    description = trt.PluginTensorDesc()
    description.dims, description.type = trt.Dims(list(shape)), _TYPES[np.dtype(datatype).name]
    description.format = trt.TensorFormat.LINEAR
    return description


def run_network(
    model: onnx.ModelProto, plugins: Plugins | None, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """All values of a graph with plugin nodes: those by the plugins, all else by ONNX's own reference."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | dict(inputs)
    for node in model.graph.node:
        given = [values[name] for name in node.input]
        if node.domain == DOMAIN:
            assert plugins is not None, node.op_type
            values[node.output[0]] = _by_plugin(node, plugins, given)
        else:
            values.update(zip(node.output, _by_reference(node, given), strict=True))
    return values


def _by_plugin(node: NodeProto, plugins: Plugins, given: Sequence[np.ndarray]) -> np.ndarray:
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute if one.name not in _OF}
    operator = next(one for one in OPERATORS if one.name == node.op_type)(
        {name: Given("INT32", np.array(value)) for name, value in attributes.items()}
    )
    kind = {"FP32": np.float32, "FP16": np.float16, "INT32": np.int32}[operator.datatype()]
    shape = tuple(operator.output_shape([array.shape for array in given]))
    found: np.ndarray = plugins.run(plugins.made(node.op_type, attributes), given, (shape, kind))
    return found


def _by_reference(node: NodeProto, given: Sequence[np.ndarray]) -> list[np.ndarray]:
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(node.input, given, strict=True)
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "one", infos, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    found: list[np.ndarray] = ReferenceEvaluator(model).run(None, dict(zip(node.input, given, strict=True)))
    return found
