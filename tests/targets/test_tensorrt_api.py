"""Every name of TensorRT that the code uses is in TensorRT 11.4 and in TensorRT-RTX 1.7, and is called as they say.

No GPU is needed: their bindings import over stub libraries.
"""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from engines.targets.tensorrt import _DATATYPES
from engines.targets.tensorrt_options import Compatibility
from engines.targets.tensorrt_rules import _LAYERS
from tests.packaged import DatasetMissing, wheel_tree
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


def test_what_one_library_has_is_used_for_that_library_alone(surfaces: dict[str, Surface]) -> None:
    tensorrt, rtx = _named(surfaces, ENGINES / "targets/tensorrt_seam.py")
    assert {"IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"} <= rtx - tensorrt
    assert {"HardwareCompatibilityLevel", "ITimingCache.serialize"} <= tensorrt - rtx


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
@pytest.mark.parametrize("file", ["tensorrt.py", "tensorrt_seam.py"])
def test_each_name_that_the_code_uses_would_be_missed(surfaces: dict[str, Surface], library: str, file: str) -> None:
    source = (ENGINES / "targets" / file).read_text("utf-8")
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
    assert set(_DATATYPES) <= classes["DataType"].keys()
    assert set(_LAYERS.values()) <= classes["LayerType"].keys()
    assert levels <= classes["HardwareCompatibilityLevel"].keys()
    assert set(NAMES.values()) <= classes.keys()


def test_the_libraries_that_the_bindings_need_are_small(tmp_path: Path) -> None:
    needed = {}
    for library, (requirement, package) in LIBRARIES.items():
        try:
            needed[library] = lay_over_stubs(wheel_tree(requirement), package, tmp_path / library)
        except DatasetMissing as missing:
            pytest.skip(str(missing))
    assert needed["tensorrt-rtx"] == [
        "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
        "getNvOnnxParserVersion", "getPluginRegistry",
    ]  # fmt: skip
    assert needed["tensorrt"] == [*needed["tensorrt-rtx"], "initLibNvInferPlugins"]
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'tensorrt')!r}); import tensorrt_bindings as t; "
    used = "t.Builder(t.Logger())"
    ran = [
        subprocess.run([sys.executable, "-I", "-S", "-c", code + more], check=False).returncode for more in ("", used)
    ]
    assert ran == [0, -signal.SIGILL]
