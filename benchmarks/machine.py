"""A fingerprint of the machine and the tools that a figure was measured with."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from typing import Any

import psutil

from engines.hardware import cpu_fingerprint, cpu_model, usable_threads

__all__ = ["fingerprint"]

_PACKAGES = ("openvino", "nncf", "onnxruntime", "numpy", "uvicorn", "uvloop", "httptools", "msgspec")


def fingerprint() -> dict[str, Any]:
    """What a reader needs to judge whether a figure applies to another machine."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_model(),
        "cpu_fingerprint": cpu_fingerprint(),
        "threads": usable_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "commit": _commit(),
        "load_average": os.getloadavg(),
    }


def _commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
