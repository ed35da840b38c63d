"""Take out of an environment what the server and its builds never load, then compile the rest to bytecode.

It runs with the environment's own Python. Whole packages stay, so that what is installed is what the lock file and the
SBOM say; that nothing of use is missing is what the tests in the running container show.
"""

from __future__ import annotations

import compileall
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

TEST_FOLDERS = ("tests", "test")
"""Packages' own tests and their data; `testing` is left: it is what other packages import."""
SOURCES = (".c", ".cpp", ".h", ".hpp", ".pyx", ".pxd", ".a")
"""Of compiled modules, whose results are here."""
HEADERS_IN_USE = ("cuda", "nvidia", "pycuda")
"""Packages that compile for a GPU where they run."""
PATTERNS = (
    "openvino/include",
    # models are read as ONNX or as OpenVINO's own, and run on the CPU
    "openvino/libs/libopenvino_intel_gpu_plugin.so",
    "openvino/libs/cache.json",  # kernels of that plugin
    "openvino/libs/libopenvino_intel_npu_*",
    "openvino/libs/libopenvino_tensorflow_*",
    "openvino/libs/libopenvino_pytorch_*",
    "openvino/libs/libopenvino_paddle_*",
    "openvino/libs/libopenvino_gguf_*",
    "openvino/libs/libopenvino_jax_*",
    "openvino/frontend/[!o]*/py_*_frontend.*",  # the same, as modules: all but onnx
    "onnxruntime/transformers",  # scripts that prepare language models, run by hand
)
WITHOUT_BYTECODE = re.compile(
    r"/(fontTools|alembic|sqlalchemy|sklearn|narwhals|sympy/(physics|stats|diffgeom|holonomic|vector|categories|crypto))/"
)
"""Large packages, and parts, that no build imports: they come as dependencies of dependencies."""


def slim(packages: Path) -> None:
    """Remove, then compile. Bytecode is not checked against its source: layers may change the time of a file."""
    for folder in [found for name in TEST_FOLDERS for found in packages.rglob(name) if found.is_dir()]:
        shutil.rmtree(folder, ignore_errors=True)  # it may have lain in another
    for pattern in PATTERNS:
        found = list(packages.glob(pattern))
        if not found:
            sys.exit(f"{pattern} is not there: has a new version moved it?")
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in packages.rglob("*"):
        of = path.relative_to(packages).parts[0]
        if path.suffix in SOURCES and of not in HEADERS_IN_USE and path.is_file():
            path.unlink()
    for package in packages.iterdir():
        if package.is_dir() and not (packages / f"{package.name}.libs").is_dir():
            _strip(package)
    compiled = compileall.compile_dir(
        packages, quiet=1, workers=0, rx=WITHOUT_BYTECODE, maxlevels=50,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
    if not compiled:
        sys.exit("a module does not compile")


def _strip(package: Path) -> None:
    """Its extension modules lose their symbols; not where they were patched for libraries beside, which may break."""
    modules = [module for module in package.rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}") if module.is_file()]
    if modules:
        subprocess.run(["strip", "--strip-unneeded", *modules], check=True)


if __name__ == "__main__":
    slim(Path(sysconfig.get_path("purelib")))
