"""Faults are put into the text of methods."""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any

import pytest

__all__ = ["plant"]


def plant(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, old: str, new: str) -> None:
    """Put another text into a method, where the old one stands once."""
    source = textwrap.dedent(inspect.getsource(getattr(owner, method)))
    assert source.count(old) == 1, f"{method} has {old!r} {source.count(old)} times"
    found: dict[str, Any] = {}
    code = compile(source.replace(old, new), f"<{method} with a fault>", "exec")
    exec(code, vars(sys.modules[owner.__module__]), found)
    monkeypatch.setattr(owner, method, found[method])
