"""Build a TensorRT plan from an ONNX graph whose precision is settled: TensorRT 11 takes it as it is, strongly typed.

The same code for TensorRT and TensorRT-RTX (`engines.targets.tensorrt_seam` holds what differs). It may abort, hang or
crash with its process (a stride of 0 does), so it runs in one of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from engines.errors import ModelRefused
from engines.plugins.gpu.tensorrt import registered
from engines.targets.tensorrt_options import BuiltPlan, PlanOptions, network_counts
from engines.targets.tensorrt_seam import Library

__all__ = ["build_plan"]

_MOST_SAID = 3
_PLUGIN = "PLUGIN"
"""Severity of what our plugins say: TensorRT tells that one failed, and never why."""
_HARMLESS = ("Make sure input",)
"""Warnings of the parser that say nothing against its reading: inputs of INT64 are bound as such."""
_DATATYPES = {"FLOAT": "FP32", "HALF": "FP16", "BOOL": "BOOL"}


def build_plan(
    library: Library, model: bytes, options: PlanOptions, progress: Callable[[float], None] = lambda share: None
) -> tuple[bytes, BuiltPlan]:
    """The plan, and what it is. `model` is a serialized ONNX graph; `progress` is told shares from 0 to 1.

    Raises ModelRefused where the parser or the builder refuse, or the parser as much as warns: it takes unsigned
    8-bit numbers for signed ones with a warning alone.
    """
    trt, began_s = library.trt, time.monotonic()
    said: list[tuple[str, str]] = []
    logger = _logger_of(trt, said)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    with contextlib.ExitStack() as around:
        if options.has_plugins:
            around.enter_context(registered(trt, lambda reason: said.append((_PLUGIN, reason))))
        _parse(trt, network, logger, model, said)
        counts = network_counts(_layers(trt, network))
        config, sms = _configured(library, builder, options)
        monitor = _monitor_of(trt, progress)
        config.progress_monitor = monitor
        around.enter_context(library.timed(config, options))
        made = builder.build_serialized_network(network, config)
    if made is None:
        raise ModelRefused(f"{library.name} cannot build the network: {_worst(said)}")
    plan = bytes(made)
    warnings = tuple(dict.fromkeys(text.strip() for severity, text in said if severity == "WARNING"))
    built = BuiltPlan(
        library=library.name, version=trt.__version__, sms=sms, network=counts, size_bytes=len(plan),
        seconds=round(time.monotonic() - began_s, 3), warnings=warnings,
    )  # fmt: skip
    return plan, built


def _configured(library: Library, builder: Any, options: PlanOptions) -> tuple[Any, tuple[int, ...]]:
    """How it is to build, and for which GPUs."""
    trt = library.trt
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)  # FP32 was proven as such, and TF32 keeps 10 bits of 23
    if options.is_sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    for ranges in options.profiles:
        config.add_optimization_profile(_profile(builder, ranges))
    return config, library.aim(config, options)


def _parse(trt: Any, network: Any, logger: Any, model: bytes, said: list[tuple[str, str]]) -> None:
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        told = _of_plugins(said) or "; ".join(f"{_at(error)}{error.desc()}" for error in errors[:_MOST_SAID])
        raise ModelRefused(f"the parser of TensorRT refuses the graph: {told or _worst(said)}")
    warnings = [text for severity, text in said if severity == "WARNING" and not any(h in text for h in _HARMLESS)]
    if warnings:
        raise ModelRefused(f"the parser of TensorRT takes the graph for another: {'; '.join(warnings[:_MOST_SAID])}")


def _at(error: Any) -> str:
    name, operator = error.node_name(), error.node_operator()
    return f"{operator} (node {name!r}): " if name or operator else ""


def _layers(trt: Any, network: Any) -> list[tuple[str, str]]:
    """Operator and datatype of the first output of each layer, as they were parsed."""
    found = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        tensor = layer.get_output(0)
        datatype = tensor.dtype.name if tensor is not None else "NONE"
        operator = layer.type.name
        if layer.type == trt.LayerType.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer  # NVIDIA's way to reach what a kind of layer has
            core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
            operator = core.plugin_name
        found.append((operator, _DATATYPES.get(datatype, datatype)))
    return found


def _profile(builder: Any, ranges: dict[str, Any]) -> Any:
    profile = builder.create_optimization_profile()
    for name, (low, best, high) in ranges.items():
        profile.set_shape(name, low, best, high)
    return profile


def _of_plugins(said: list[tuple[str, str]]) -> str:
    return "; ".join([text for severity, text in said if severity == _PLUGIN][:_MOST_SAID])


def _worst(said: list[tuple[str, str]]) -> str:
    if of_plugins := _of_plugins(said):
        return of_plugins
    errors = [text for severity, text in said if "ERROR" in severity]
    return "; ".join(errors[:_MOST_SAID]) or "it gave no reason"


def _logger_of(trt: Any, said: list[tuple[str, str]]) -> Any:
    """Keeps (severity, text) of warnings and worse."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR", "WARNING"):
                said.append((severity.name, text))

    return Logger()


def _monitor_of(trt: Any, progress: Callable[[float], None]) -> Any:
    """Tells how far the outermost phase is; phases come one after the other, so the share starts anew with each."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self._outermost[phase] = max(1, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self._outermost:
                progress(min(1.0, (step + 1) / self._outermost[phase]))
            return True

        def phase_finish(self, phase: str) -> None:
            if self._outermost.pop(phase, None):
                progress(1.0)

    return Monitor()
