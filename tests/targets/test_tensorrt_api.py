"""Every name of TensorRT that the code uses is in TensorRT 11.4 and in TensorRT-RTX 1.7, and is called as they say.

No GPU is needed: their bindings import over stub libraries.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from engines.plugins.gpu.tensorrt import _NAMES, _WORDS
from engines.targets.tensorrt import _DATATYPES
from engines.targets.tensorrt_options import Compatibility
from engines.targets.tensorrt_rules import _LAYERS
from tests.packaged import DatasetMissing, wheel_tree
from tests.support.tensorrt_known import HOOKS
from tests.support.tensorrt_surface import LIBRARIES, Surface, lay_over_stubs
from tests.support.tensorrt_uses import NAMES, compare

ENGINES = Path(__file__).parents[2] / "engines"
FILES = [
    *sorted((ENGINES / "targets").glob("tensorrt*.py")),
    *sorted((ENGINES / "runtime").glob("tensorrt*.py")),
    *sorted((ENGINES / "plugins").rglob("*.py")),
]


def _named(surfaces: dict[str, Surface], file: Path) -> list[set[str]]:
    return [compare(file.read_text("utf-8"), file.name, surface).uses for surface in surfaces.values()]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ENGINES)))
def test_what_the_code_uses_is_there(surfaces: dict[str, Surface], library: str, file: Path) -> None:
    assert compare(file.read_text("utf-8"), file.name, surfaces[library]).problems == []


def test_what_the_code_uses_is_found(surfaces: dict[str, Surface]) -> None:
    tensorrt, rtx = _named(surfaces, ENGINES / "targets/tensorrt.py")
    assert tensorrt == rtx
    assert {"Builder", "OnnxParser.parse", "MemoryPoolType.WORKSPACE", "ILogger.log", "ITensor.dtype"} <= rtx


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_the_bindings_call_by_name_is_named_in_them(library: str) -> None:
    try:
        tree = wheel_tree(LIBRARIES[library][0])
    except DatasetMissing as missing:
        pytest.skip(str(missing))
    (bindings,) = [file for file in tree.rglob("*.so") if file.stem.startswith("tensorrt")]
    content = bindings.read_bytes()
    assert all(b"\0%b\0" % name.encode() in content for hooks in HOOKS.values() for name in hooks)


def test_what_one_library_has_is_used_for_that_library_alone(surfaces: dict[str, Surface]) -> None:
    tensorrt, rtx = _named(surfaces, ENGINES / "targets/tensorrt_seam.py")
    assert {"IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"} <= rtx - tensorrt
    assert {"HardwareCompatibilityLevel", "ITimingCache.serialize"} <= tensorrt - rtx


def test_the_versions_compared_are_those_installed(surfaces: dict[str, Surface]) -> None:
    project = tomllib.loads((ENGINES.parent / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    installed = {need.name: need.specifier for need in map(Requirement, [*extras["rtx"], *extras["gpu"]])}
    assert str(installed["tensorrt-rtx"]) == f"=={surfaces['tensorrt-rtx'].version}"
    assert surfaces["tensorrt"].version in installed["tensorrt-cu13"]


class _Misspelt(ast.NodeTransformer):
    """One name, wherever it is an attribute, a method that stands for one, or a word."""

    def __init__(self, name: str) -> None:
        self._name = name

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        node.attr += "s" if node.attr == self._name else ""
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.name += "s" if node.name == self._name else ""
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(f"{node.value}s") if node.value == self._name else node


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("file", ["targets/tensorrt.py", "targets/tensorrt_seam.py", "plugins/gpu/tensorrt.py"])
def test_each_name_that_the_code_uses_would_be_missed(surfaces: dict[str, Surface], library: str, file: str) -> None:
    source = (ENGINES / file).read_text("utf-8")
    uses = compare(source, file, surfaces[library]).uses
    passed = set()
    for name in {use.rpartition(".")[2] for use in uses}:
        misspelt = ast.unparse(_Misspelt(name).visit(ast.parse(source)))
        if not any(f"{name}s" in problem for problem in compare(misspelt, file, surfaces[library]).problems):
            passed.add(name)
    assert uses
    assert passed == set()


@pytest.mark.parametrize("library", LIBRARIES)
def test_members_that_the_code_names_in_tables(surfaces: dict[str, Surface], library: str) -> None:
    classes = surfaces[library].classes
    levels = {word.upper() for word in typing.get_args(Compatibility)}
    assert set(_DATATYPES) | set(_NAMES) <= classes["DataType"].keys()
    assert {name: word for word, name in _NAMES.items()} == _WORDS
    assert {"SUM", "SUB", "FLOOR_DIV"} <= classes["DimensionOperation"].keys()
    assert set(_LAYERS.values()) <= classes["LayerType"].keys()
    assert levels <= classes["HardwareCompatibilityLevel"].keys()
    assert set(NAMES.values()) <= classes.keys()


@pytest.fixture
def laid(tmp_path: Path) -> dict[str, list[str]]:
    """What the stubs define, by library; the bindings are in folders of these names."""
    try:
        return {
            library: lay_over_stubs(wheel_tree(requirement), package, tmp_path / library)
            for library, (requirement, package) in LIBRARIES.items()
        }
    except DatasetMissing as missing:
        pytest.skip(str(missing))


def test_the_bindings_need_nine_functions_of_their_libraries(laid: dict[str, list[str]]) -> None:
    assert laid["tensorrt-rtx"] == [
        "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
        "getNvOnnxParserVersion", "getPluginRegistry",
    ]  # fmt: skip
    assert laid["tensorrt"] == [*laid["tensorrt-rtx"], "initLibNvInferPlugins"]


@pytest.mark.usefixtures("laid")
def test_what_calls_a_stub_ends_its_process_and_an_import_does_not(tmp_path: Path) -> None:
    for library, (_, package) in LIBRARIES.items():
        imported = f"import sys; sys.path.insert(0, {str(tmp_path / library)!r}); import {package} as trt; "
        for use, is_signalled in (("trt.Logger()", False), ("trt.Builder(trt.Logger())", True)):
            ran = subprocess.run([sys.executable, "-I", "-S", "-c", imported + use], check=False)
            assert (ran.returncode < 0) == is_signalled
            assert is_signalled or ran.returncode == 0
