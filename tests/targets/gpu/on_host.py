"""Plugins run without a GPU: TensorRT-RTX's own classes, as TensorRT calls them, over kernels that run on the host."""

from __future__ import annotations

import gc
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import tensorrt_rtx as trt
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.plugins.cuda.launches import POINTERS, Launch
from engines.plugins.gpu.driver import Kernels
from engines.plugins.gpu.fields import Given
from engines.plugins.gpu.operators import NAMESPACE, OPERATORS, VERSION
from engines.plugins.gpu.tensorrt import registered
from engines.plugins.ops import DOMAIN
from tests.plugins.cuda.on_host import CUDA, HostBuild

__all__ = ["HostDriver", "HostPlugins", "run_network"]

_TYPES = {"float32": trt.float32, "float16": trt.float16, "int32": trt.int32}
_OF = ("plugin_namespace", "plugin_version")


class HostDriver:
    """`engines.plugins.gpu.driver.Driver` whose device is this processor. Memory is that of arrays that it was told."""

    def __init__(self, build: HostBuild, sm: int) -> None:
        self._build, self._sm = build, sm
        self._modules: dict[int, str] = {}
        self._functions: list[tuple[str, str]] = []
        self._memory: dict[int, np.ndarray] = {}
        self.launched: list[str] = []
        """Entries, in their order."""
        self.seed = 0

    def hold(self, array: np.ndarray) -> int:
        """Its address."""
        address = int(array.ctypes.data)
        self._memory[address] = array
        return address

    def sm(self) -> int:
        return self._sm

    def load_module(self, image: bytes) -> int:
        self._modules[len(self._functions) + 1] = image.decode()
        return len(self._functions) + 1

    def unload_module(self, module: int) -> None:
        del self._modules[module]

    @property
    def modules(self) -> list[str]:
        """Those that are loaded."""
        return list(self._modules.values())

    def function(self, module: int, name: str) -> int:
        self._functions.append((self._modules[module], name))
        return len(self._functions) - 1

    def launch(
        self, function: int, grid: tuple[int, int, int], block: int, shared_bytes: int, stream: int, argument: bytes
    ) -> None:
        source, entry = self._functions[function]
        count = POINTERS[source]
        *given, out = (self._memory.get(one) for one in struct.unpack_from(f"<{count}Q", argument))
        assert out is not None, "the output lies nowhere"
        launch = Launch(source, entry, grid, block, shared_bytes, argument[8 * count :])
        kernels = self._build.kernels(CUDA / f"{source}.cu", self._sm)
        out[...] = kernels.run(launch, given, (out.shape, out.dtype.type), seed=self.seed)
        self.launched.append(entry)


class HostPlugins:
    """Plugins by their creators, as TensorRT makes them of a plan."""

    def __init__(self, build: HostBuild, sm: int) -> None:
        self.refused: list[str] = []
        self.driver = HostDriver(build, sm)
        self.loaded: list[tuple[str, int]] = []
        self._kernels = Kernels(self.driver, self._cubin)
        self._registered = registered(trt, self.refused.append, lambda: self._kernels)

    def __enter__(self) -> HostPlugins:
        self._registered.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._registered.__exit__(None, None, None)
        self._kernels.close()

    def _cubin(self, source: str, sm: int) -> bytes:
        self.loaded.append((source, sm))
        return source.encode()

    def made(self, operator: str, attributes: dict[str, Any]) -> Any:
        """Of what the builder wrote into a plan: the fields that a plugin of these attributes has to be kept."""
        creator = trt.get_plugin_registry().get_creator(operator, VERSION, NAMESPACE)
        fields = [
            trt.PluginField(name, np.array(value, np.int32).reshape(-1), trt.PluginFieldType.INT32)
            for name, value in attributes.items()
        ]
        built = creator.create_plugin("node", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
        assert built is not None, self.refused
        written = built.get_fields_to_serialize()
        del fields
        gc.collect()
        taken = [np.full(size, -7, np.int32) for _ in range(50) for size in (1, 2, 4)]  # the memory of what was freed
        assert len(taken) == 150
        return creator.create_plugin("node", written, trt.TensorRTPhase.RUNTIME)

    def run(self, plugin: Any, inputs: Sequence[np.ndarray], out: tuple[tuple[int, ...], Any], tactic: int = 0) -> Any:
        """As an execution context does: attach, shapes, enqueue."""
        arrays = [np.ascontiguousarray(array) for array in inputs]
        made = np.empty(*out)
        plugin.set_tactic(tactic)
        attached = plugin.attach_to_context(None)
        given, result = [_description(array) for array in arrays], [_description(made)]
        attached.on_shape_change(given, result)
        addresses = [self.driver.hold(array) for array in arrays]
        attached.enqueue(given, result, addresses, [self.driver.hold(made)], 0, 1)
        return made


def _description(array: np.ndarray) -> Any:
    described = trt.PluginTensorDesc()
    described.dims, described.type = trt.Dims(list(array.shape)), _TYPES[array.dtype.name]
    described.format = trt.TensorFormat.LINEAR
    return described


def run_network(model: onnx.ModelProto, plugins: HostPlugins, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All values of a graph with plugin nodes: those by the plugins, all else by ONNX's own reference."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | inputs
    for node in model.graph.node:
        given = [values[name] for name in node.input]
        if node.domain == DOMAIN:
            values[node.output[0]] = _by_plugin(node, plugins, given)
        else:
            for name, value in zip(node.output, _by_reference(node, given), strict=True):
                values[name] = value
    return values


def _by_plugin(node: NodeProto, plugins: HostPlugins, given: Sequence[np.ndarray]) -> np.ndarray:
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
