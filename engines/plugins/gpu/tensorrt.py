"""The operators of binary layers for TensorRT and TensorRT-RTX: an IPluginV3 and a creator for each, in Python.

Both have the same Python names. What a plugin is lies in `engines.plugins.gpu.operators`; here it is only told to
TensorRT, which sees exceptions as failures without a reason: reasons are kept beside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from engines.errors import EngineError
from engines.plugins.cuda.launches import Launch
from engines.plugins.gpu.driver import Kernels
from engines.plugins.gpu.fields import Given
from engines.plugins.gpu.operators import NAMESPACE, OPERATORS, VERSION, GpuOperator

__all__ = ["registered"]

_NAMES = {"FLOAT": "FP32", "HALF": "FP16", "INT32": "INT32"}
"""TensorRT's words for datatypes, and ours."""
_WORDS = {"FP32": "FLOAT", "FP16": "HALF", "INT32": "INT32"}


@contextlib.contextmanager
def registered(
    trt: Any, refused: Callable[[str], None], kernels: Callable[[], Kernels] | None = None
) -> Iterator[None]:
    """Make the plugins known to a library for a while. `refused` is told why a node gets none.

    `kernels` are those of the device that the calling thread has current; without them engines can be built by
    TensorRT-RTX alone, which runs nothing. Raises EngineError where the names are taken: a library has one registry.
    """
    registry = trt.get_plugin_registry()
    creators = [_creator_of(trt, operator, refused, kernels) for operator in OPERATORS]
    with contextlib.ExitStack() as known:
        for creator in creators:  # the registry does not hold them
            if not registry.register_creator(creator, NAMESPACE):
                raise EngineError(f"the library has a plugin {creator.name!r} of {NAMESPACE!r} already")
            known.callback(registry.deregister_creator, creator)
        yield


class _Fields:
    """A collection, and what it points into: it holds neither its fields nor their numbers, and what was freed would be
    read. Lives as long as whoever gave it to TensorRT.
    """

    def __init__(self, trt: Any, numbers: Mapping[str, Any]) -> None:
        kind = trt.PluginFieldType.INT32
        self._arrays = {name: np.array(value, np.int32).reshape(-1) for name, value in numbers.items()}
        self._kept = [trt.PluginField(name, array, kind) for name, array in self._arrays.items()]
        self.collection = trt.PluginFieldCollection(self._kept)


def _creator_of(
    trt: Any, operator: type[GpuOperator], refused: Callable[[str], None], kernels: Callable[[], Kernels] | None
) -> Any:
    names = _Fields(trt, {name: [0] * length for name, length in operator.fields})

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = operator.name, NAMESPACE, VERSION
            self.field_names = names.collection

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            try:
                made = operator(dict(_given(trt, field) for field in fields))
            except ValueError as error:
                refused(f"{name}: {operator.name}: {error}")
                return None
            return _plugin_of(trt, made, _Fields(trt, made.values), refused, kernels)

    return Creator()


def _plugin_of(
    trt: Any, operator: GpuOperator, fields: _Fields, refused: Callable[[str], None],
    kernels: Callable[[], Kernels] | None,
) -> Any:  # fmt: skip
    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IPluginV3.__init__(self)
            trt.IPluginV3OneCore.__init__(self)
            trt.IPluginV3OneBuild.__init__(self)
            trt.IPluginV3OneRuntime.__init__(self)
            self.plugin_name, self.plugin_namespace, self.plugin_version = operator.name, NAMESPACE, VERSION
            self.num_outputs = 1
            self._tactic = 0
            self._launch: Launch | None = None

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            twin = _plugin_of(trt, operator, fields, refused, kernels)
            twin._tactic = self._tactic
            return twin

        def get_fields_to_serialize(self) -> Any:
            return fields.collection

        def get_output_data_types(self, types: Sequence[Any]) -> list[Any]:
            return [getattr(trt.DataType, _WORDS[operator.datatype()])]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], expressions: Any) -> list[Any]:
            shapes = [[_Size(trt, expressions, dims[i]) for i in range(len(dims))] for dims in inputs]
            made = operator.output_shape(shapes)
            found = trt.DimsExprs(len(made))
            for i, size in enumerate(made):
                found[i] = size.expression
            return [found]

        def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
            description = tensors[position].desc
            allowed = operator.inputs[position] if position < inputs else (operator.datatype(),)
            is_linear: bool = description.format == trt.TensorFormat.LINEAR
            return is_linear and _NAMES.get(description.type.name) in allowed

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            largest = [tuple(described.max) for described in inputs]
            self._launched([described.desc for described in inputs], largest)

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            self._launch = self._launched(inputs, [tuple(description.dims) for description in inputs])
            if kernels is not None:
                kernels().prepare(self._launch)

        def _launched(self, descriptions: Sequence[Any], shapes: Sequence[Sequence[int]]) -> Launch:
            """Of these shapes; where the kernels cannot, it is said and TensorRT fails, when it builds already."""
            datatypes = [_NAMES[description.type.name] for description in descriptions]
            try:
                operator.require_shapes(shapes)
                return operator.launch(shapes, datatypes, self._tactic)
            except ValueError as error:
                refused(f"{operator.name}: {error}")
                raise

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            return 0

        def get_valid_tactics(self) -> list[int]:
            return list(operator.tactics)

        def set_tactic(self, tactic: int) -> None:
            self._tactic = tactic

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def enqueue(
            self, input_desc: Sequence[Any], output_desc: Sequence[Any], inputs: Sequence[int], outputs: Sequence[int],
            workspace: int, stream: int,
        ) -> None:  # fmt: skip
            if kernels is None or self._launch is None:
                raise RuntimeError("the plugin was registered without kernels, or no shapes were set: it cannot run")
            kernels().run(self._launch, operator.pointers(inputs, outputs[0]), stream)

    return Plugin()


class _Size:
    """A dimension in the making, as an expression of TensorRT."""

    def __init__(self, trt: Any, expressions: Any, expression: Any) -> None:
        self._trt, self._expressions, self.expression = trt, expressions, expression

    def _with(self, operation: str, number: int) -> _Size:
        kind = getattr(self._trt.DimensionOperation, operation)
        made = self._expressions.operation(kind, self.expression, self._expressions.constant(number))
        return _Size(self._trt, self._expressions, made)

    def __add__(self, number: int) -> _Size:
        return self._with("SUM", number)

    def __sub__(self, number: int) -> _Size:
        return self._with("SUB", number)

    def __floordiv__(self, number: int) -> _Size:
        return self._with("FLOOR_DIV", number)


def _given(trt: Any, field: Any) -> tuple[str, Given]:
    """Its name, and what came. Text has no numbers to look at, and reading it as such would fail."""
    is_number = field.type in (trt.PluginFieldType.INT32, trt.PluginFieldType.FLOAT32)
    return field.name, Given(field.type.name, np.array(field.data) if is_number else np.empty(0))
