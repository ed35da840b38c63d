"""A venv for each peer, in a cache folder outside the project: their packages must not meet ours."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

__all__ = ["CACHE_VARIABLE", "OPENVINO", "cache_folder", "made"]

CACHE_VARIABLE = "BITSERVE_PEERS_CACHE"
"""The variable that names the folder."""
OPENVINO = f"openvino=={metadata.version('openvino')}"
"""The very version that this project runs."""
_MARK = "installed"


def cache_folder() -> Path:
    """As the variable names it, or else in the user's own cache."""
    named = os.environ.get(CACHE_VARIABLE)
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else own / "bitserve-peers"


def made(name: str, requirements: tuple[str, ...]) -> Path:
    """The Python of a venv with exactly these installed; made anew where they have changed or an install broke off."""
    folder = cache_folder() / f"{name}-{_digest(requirements)}"
    python = folder / "bin" / "python"
    if not (folder / _MARK).exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True)
        (folder / _MARK).write_text("\n".join(requirements))
    return python


def _digest(requirements: tuple[str, ...]) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return hashlib.sha256("\n".join((version, *requirements)).encode()).hexdigest()[:12]
