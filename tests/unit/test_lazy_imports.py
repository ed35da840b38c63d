"""What is heavy, or needs a GPU, is imported by what uses it, and never by what only might."""

from __future__ import annotations

import subprocess
import sys

import pytest

GPU = {"tensorrt", "tensorrt_rtx", "tensorrt_bindings", "tensorrt_rtx_bindings", "pycuda", "cuda", "pynvml"}
HEAVY = {
    "openvino",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "nncf",
    "matplotlib",
    "jinja2",
    "optuna",
    "torch",
    "obstore",
}
# Whether a module is installed makes no difference: what is asked for is written down before it is looked for.
WATCHED = """
import importlib, pkgutil, sys
asked = set()
class Watch:
    def find_spec(name, path=None, target=None):
        asked.add(name.partition(".")[0])
sys.meta_path.insert(0, Watch)
{imports}
print(" ".join(sorted(asked)))
"""
EVERY_MODULE = """
import app.main, engines
for found in pkgutil.walk_packages(engines.__path__, "engines."):
    importlib.import_module(found.name)
"""


def _asked_for(imports: str) -> set[str]:
    code = WATCHED.format(imports=imports)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return set(ran.stdout.split())


@pytest.mark.parametrize("module", ["app.main", "app.cli", "app.bench.child", "engines"])
def test_servers_commands_and_loads_start_without_compilers_and_gpus(module: str) -> None:
    asked = _asked_for(f"import {module}")
    assert module.partition(".")[0] in asked
    assert asked & (GPU | HEAVY) == set()


def test_no_module_of_the_compiler_imports_what_needs_a_gpu() -> None:
    asked = _asked_for(EVERY_MODULE)
    assert {"engines", "openvino", "onnx"} <= asked
    assert asked & GPU == set()
