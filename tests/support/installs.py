"""The sources as pip takes them, without what an editable install has left among them."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["ROOT", "copy_sources"]

ROOT = Path(__file__).resolve().parents[2]


def copy_sources(to: Path) -> None:
    """A new folder, since building leaves files beside the sources."""
    to.mkdir(parents=True)
    for name in ("app", "engines"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.plugin"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to / name)
