"""The Python names of the real TensorRT and TensorRT-RTX: their bindings, imported over stub libraries.

The bindings link to large libraries, which need a driver, and call nothing of them when they are imported. So the
stubs define what the linker asks for, and end the process that calls them.
"""

from __future__ import annotations

import ctypes
import functools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.packaged import DatasetMissing, wheel_tree
from tests.support.tensorrt_signatures import Signature, returned, signatures

__all__ = ["LIBRARIES", "Member", "Surface", "lay_over_stubs", "surface_of"]

LIBRARIES = {
    "tensorrt": ("tensorrt-cu13-bindings==11.4.0.106", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings==1.7.1.116", "tensorrt_rtx_bindings"),
}
"""The target that a library builds for, the wheel of its bindings, and the module in it."""
_OFFERS = Path(__file__).with_name("tensorrt_offers.py")
_STUBBED = re.compile(r"NEEDED.*\[(lib(?:nv|tensorrt)[^\]]*)\]")


@dataclass(frozen=True)
class Member:
    """`kind` is module, class, property, method, function or value; `type` is what it is or gives, where known."""

    kind: str
    type: str | None = None
    is_settable: bool = False
    signatures: tuple[Signature, ...] = ()


@dataclass(frozen=True)
class Surface:
    """What one library offers. Classes within classes have names such as `ILogger.Severity`."""

    library: str
    version: str
    members: dict[str, Member]
    classes: dict[str, dict[str, Member]]
    bases: dict[str, tuple[str, ...]]

    def is_a(self, name: str, base: str) -> bool:
        """Whether a class is the other, or derived from it."""
        return name == base or base in self.bases.get(name, ())


def lay_over_stubs(tree: Path, package: str, folder: Path) -> list[str]:
    """Copy the bindings of an unpacked wheel into a folder, beside stubs of their libraries; what these define.

    The bindings look beside themselves first, so a TensorRT that is installed is not taken for them.
    """
    shutil.copytree(tree / package, folder / package)
    (bindings,) = (folder / package).glob("*.so")
    symbols = _missing(bindings)
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{symbol}(void) {{ __builtin_trap(); }}\n" for symbol in symbols))
    for library in _STUBBED.findall(_said("readelf", "--dynamic", "--wide", bindings)):
        stub = folder / package / library
        _said("gcc", "-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{library}", "-o", stub, source)
    return symbols


def _missing(bindings: Path) -> list[str]:
    """The functions that no library at hand defines: those of the system have a version, or are in this process."""
    here = ctypes.CDLL(None)
    lines = (line.split() for line in _said("nm", "--dynamic", "--undefined-only", bindings).splitlines())
    names = (name for kind, name in lines if kind == "U" and "@" not in name)
    return sorted(name for name in names if not hasattr(here, name))


def _said(*command: str | Path) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise DatasetMissing(f"{command[0]} not found: apt-get install gcc") from missing
    assert done.returncode == 0, f"{command[0]} failed: {done.stderr[-2000:]}"
    return done.stdout


@functools.cache
def surface_of(library: str, folder: Path) -> Surface:
    """Of one of LIBRARIES; its bindings are laid into a folder of its own in `folder`. Raises DatasetMissing."""
    requirement, package = LIBRARIES[library]
    own = folder / library
    lay_over_stubs(wheel_tree(requirement), package, own)
    offered = json.loads(_said(sys.executable, "-I", "-S", _OFFERS, own, package))
    return Surface(
        library=library,
        version=offered["version"],
        members=_members(offered["members"]),
        classes={name: _members(described["members"]) for name, described in offered["classes"].items()},
        bases={name: tuple(described["bases"]) for name, described in offered["classes"].items()},
    )


def _members(described: dict[str, Any]) -> dict[str, Member]:
    return {name: _member(name, **fields) for name, fields in described.items()}


def _member(name: str, kind: str, type: str | None = None, doc: str | None = None, settable: bool = False) -> Member:
    if kind == "property":
        return Member(kind, returned(doc or ""), is_settable=settable)
    return Member(kind, type, signatures=signatures(name, doc or ""))
