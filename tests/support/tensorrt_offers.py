"""Say as JSON what a module of TensorRT offers: run alone, `python -I -S tensorrt_offers.py FOLDER MODULE`.

An import may end the process, so it is never made in one that tests run in. Nothing of the project is imported here.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from types import ModuleType
from typing import Any


def offers(module: ModuleType) -> dict[str, Any]:
    """Its version, its own names, and its classes by their qualified names, each with bases and members."""
    classes: dict[str, Any] = {}
    members = {name: _member(module, name, classes) for name in dir(module) if not name.startswith("_")}
    members["__version__"] = _member(module, "__version__", classes)
    return {"version": module.__version__, "members": members, "classes": classes}


def _member(owner: Any, name: str, classes: dict[str, Any]) -> dict[str, Any]:
    value, static = getattr(owner, name), inspect.getattr_static(owner, name)
    if isinstance(value, ModuleType):
        return {"kind": "module"}
    if isinstance(value, type):
        _describe(value, classes)
        return {"kind": "class", "type": value.__qualname__}
    if isinstance(static, property):
        settable = static.fset is not None
        return {"kind": "property", "doc": static.fget and static.fget.__doc__, "settable": settable}
    if callable(value):
        is_bound = isinstance(owner, type) and not isinstance(static, staticmethod)
        return {"kind": "method" if is_bound else "function", "doc": _signature(name, value)}
    return {"kind": "value", "type": type(value).__qualname__}


def _describe(described: type, classes: dict[str, Any]) -> None:
    if described.__qualname__ in classes or described.__module__ == "builtins":
        return
    entry: dict[str, Any] = {"bases": [base.__qualname__ for base in described.__mro__[1:]], "members": {}}
    classes[described.__qualname__] = entry  # before its members: those of an enum are of the enum
    for name in set(dir(described)) - {"__class__"}:
        entry["members"][name] = _member(described, name, classes)


def _signature(name: str, value: Any) -> str:
    """Of bindings the docstring, which begins with it; of Python's functions the signature itself."""
    if inspect.isfunction(value):
        return f"{name}{inspect.signature(value)} -> object"
    return value.__doc__ or ""


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    print(json.dumps(offers(importlib.import_module(sys.argv[2]))))
