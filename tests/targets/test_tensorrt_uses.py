"""The comparison of sources with TensorRT: it names each planted fault, and takes what is right."""

from __future__ import annotations

import textwrap

import pytest

from tests.support.tensorrt_surface import Surface
from tests.support.tensorrt_uses import compare

RIGHT = """
def build(trt, logger, model, cache: Any, flags):
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger=logger)
    if not parser.parse(model):
        raise ValueError([error.desc() for error in [parser.get_error(0)]])
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, pool_size=1)
    config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, "DETAILED")
    config.set_timing_cache(cache, ignore_mismatch=False)
    counts = {network.get_layer(i).type.name for i in range(network.num_layers)}
    return bytes(builder.build_serialized_network(network, config)), trt.__version__

def watched(trt):
    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self._seen = {}

        def phase_start(self, phase, parent, steps):
            self._seen[phase] = steps

        def step_complete(self, phase, step):
            return True
    return Monitor()

class Rtx:
    name: ClassVar[str] = "tensorrt-rtx"
    def aim(self, config: Any):
        config.num_compute_capabilities = 1
        config.set_compute_capability(self.trt.ComputeCapability.SM86, 0)

class TensorRT:
    name = "tensorrt"
    def add(self, network: Any, plugin):
        network.add_plugin_v3([], [], plugin)
"""

FAULTS = {
    "a typo in a method": ("builder.create_netwrok()", "Builder has no create_netwrok, but create_network"),
    "a typo in the module": ("trt.Bulider(logger)", "trt has no Bulider, but Builder"),
    "a typo in a property": ("len(network.num_layer)", "INetworkDefinition has no num_layer, but num_layers"),
    "a removed flag": ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag has no FP16"),
    "a removed property": ("config.int8_calibrator = None", "IBuilderConfig has no int8_calibrator"),
    "a removed method": ("tensor.set_dynamic_range(-1, 1)", "ITensor has no set_dynamic_range"),
    "a removed query": ("builder.platform_has_fast_fp16", "Builder has no platform_has_fast_fp16"),
    "an unknown member of an enum": ("trt.MemoryPoolType.SCRATCH", "MemoryPoolType has no SCRATCH"),
    "a word for a member": ("layer.type.name == 'CONV'", "LayerType has no CONV"),
    "a word among several": ("tensor.dtype.name in ('HALF', 'FP16')", "DataType has no FP16"),
    "too many arguments": ("builder.create_network(0, 1)", "Builder.create_network is called with (?, ?); there is"),
    "too few arguments": ("config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)", "there is (pool, pool_size)"),
    "an unknown keyword": ("config.set_timing_cache(cache, ignore=False)", "(ITimingCache, ignore=?)"),
    "too few for a constructor": ("trt.OnnxParser(network)", "OnnxParser is called with (INetworkDefinition)"),
    "no constructor at all": ("trt.ICudaEngine()", "no call at all"),
    "another enum": ("config.set_flag(trt.MemoryPoolType.WORKSPACE)", "set_flag is called with (MemoryPoolType)"),
    "another object": ("builder.build_serialized_network(config, network)", "(IBuilderConfig, INetworkDefinition)"),
    "what cannot be set": ("network.num_layers = 3", "INetworkDefinition.num_layers cannot be set"),
    "a fault in what a call gives": ("config.get_timing_cache().serialise()", "ITimingCache has no serialise"),
    "a fault in a copy": ("made = layer.get_output(0)\n    made.typ", "ITensor has no typ"),
    "a name for another class": ("network = builder.create_builder_config()", "network holds IBuilderConfig"),
    "a fault in a comprehension": ("[layer.nam for layer in layers]", "ILayer has no nam, but name"),
    "a fault in an attribute of self": ("self._engine.num_io_tensor", "ICudaEngine has no num_io_tensor"),
    "what nothing is known of": ("thing.go()", "thing is Any, and its name is no class of TensorRT"),
    "a word that is not there": ("getattr(config, 'max_workspace_size')", "IBuilderConfig has no max_workspace_size"),
    "a word that is not written": ("getattr(config, word)", "getattr with a name that is not written here"),
    "arguments that are not written": ("config.set_flag(*flags)", "arguments that are not written here"),
}
HEAD = """
def use(trt, builder, network, config, cache, layer: Any, tensor: Any | None, thing: Any, layers: list[Any], flags):
    """
DERIVED = {
    "a method that nothing calls": ("phase_begin(self, phase)", "IProgressMonitor has no phase_begin, but phase_"),
    "a method of other parameters": ("step_complete(self, phase)", "step_complete takes 2 parameters; there is"),
}


def _told(source: str, surface: Surface) -> str:
    return "\n".join(compare(source, "planted.py", surface).problems)


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_what_is_right_is_taken(surfaces: dict[str, Surface], library: str) -> None:
    assert _told(RIGHT, surfaces[library]) == ""


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("line", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_named(surfaces: dict[str, Surface], library: str, line: str, said: str) -> None:
    told = _told(HEAD + line, surfaces[library])
    assert said in told
    assert told.startswith(f"planted.py:{3 + line.count(chr(10))}: ")
    assert told.count("\n") == 0


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("method", "said"), DERIVED.values(), ids=DERIVED.keys())
def test_a_method_that_is_not_called_is_named(
    surfaces: dict[str, Surface], library: str, method: str, said: str
) -> None:
    told = _told(f"class Monitor(trt.IProgressMonitor):\n    def {method}:\n        return True", surfaces[library])
    assert said in told


def test_what_one_library_alone_has_is_told_by_the_class_around(surfaces: dict[str, Surface]) -> None:
    only_rtx = (
        "class {}:\n    name = '{}'\n    def aim(self, config: Any, trt):\n        config.num_compute_capabilities = 1"
    )
    assert _told(only_rtx.format("Rtx", "tensorrt-rtx"), surfaces["tensorrt"]) == ""
    assert _told(only_rtx.format("Rtx", "tensorrt-rtx"), surfaces["tensorrt-rtx"]) == ""
    assert "has no num_compute_capabilities" in _told(only_rtx.format("T", "tensorrt"), surfaces["tensorrt"])
    assert "has no num_compute_capabilities" in _told(only_rtx.format("T", "other"), surfaces["tensorrt"])


def test_plugins_enter_networks_of_tensorrt_alone(surfaces: dict[str, Surface]) -> None:
    for method in ("add_plugin_v2([], plugin)", "add_plugin_v3([], [], plugin)"):
        added = f"def add(trt, network: Any, plugin):\n    network.{method}"
        assert _told(added, surfaces["tensorrt"]) == ""
        assert f"has no {method.split('(')[0]}" in _told(added, surfaces["tensorrt-rtx"])


def test_what_visibly_is_another_thing_is_let_be(surfaces: dict[str, Surface]) -> None:
    source = """
    def other(trt, config: Options, error: Exception):
        config.anything, error.args
        tensor = [1]
        tensor.append(2)
        profile: Profile = find()
        profile.anything
        try:
            pass
        except ValueError as error:
            error.args
    """
    assert _told(textwrap.dedent(source), surfaces["tensorrt"]) == ""


def test_a_file_without_the_module_is_let_be(surfaces: dict[str, Surface]) -> None:
    assert _told("def other(tensor):\n    tensor.dims", surfaces["tensorrt"]) == ""
