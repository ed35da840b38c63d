"""All that differs between TensorRT and TensorRT-RTX as builders: the module, the GPUs built for, flags, the cache.

Else both have the same Python names. TensorRT-RTX builds for GPUs that are not here, TensorRT for the one that is.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

from engines.errors import ModelRefused
from engines.hardware import Gpu, gpus
from engines.targets.tensorrt_options import PlanOptions

__all__ = ["Library", "Rtx", "TensorRT", "library_of", "linked_environment", "require_builder", "sms_of"]

_USUAL_SMS = (80, 86, 89, 120)


class Library(Protocol):
    """One of the two. `trt` is its module."""

    name: ClassVar[str]
    trt: Any

    def aim(self, config: Any, options: PlanOptions) -> tuple[int, ...]:
        """Say which GPUs are built for, and return them. Raises ModelRefused for those that cannot be."""

    @contextlib.contextmanager
    def timed(self, config: Any, options: PlanOptions) -> Iterator[None]:
        """Build with the times of kernels that earlier builds have measured."""


class Rtx:
    """TensorRT-RTX: plans fit all GPUs that they were built for, of one exact version of the library."""

    name: ClassVar[str] = "tensorrt-rtx"
    module: ClassVar[str] = "tensorrt_rtx"
    extra: ClassVar[str] = "rtx"

    def __init__(self) -> None:
        self.trt = _module(self.module, self.name, self.extra)

    def aim(self, config: Any, options: PlanOptions) -> tuple[int, ...]:
        """All those asked for, at once."""
        trt = self.trt
        if options.compatibility != "none":
            raise ModelRefused(f"{self.name} has no hardware compatibility levels; name the GPUs instead")
        known = trt.ComputeCapability.__members__
        unknown = [sm for sm in options.sms if f"SM{sm}" not in known]
        if unknown or not options.sms:
            names = ", ".join(name for name in known if name.startswith("SM"))
            asked = ", ".join(f"SM{sm}" for sm in unknown) or "no GPU"
            raise ModelRefused(f"{self.name} cannot build for {asked}; expected some of {names}")
        config.num_compute_capabilities = len(options.sms)
        for i, sm in enumerate(options.sms):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), i)
        return options.sms

    @contextlib.contextmanager
    def timed(self, config: Any, options: PlanOptions) -> Iterator[None]:
        """It times no kernels when it builds: they are chosen on the GPU."""
        yield


class TensorRT:
    """TensorRT: plans fit the GPU that they were built on, unless a compatibility level says more. Never run here."""

    name: ClassVar[str] = "tensorrt"
    module: ClassVar[str] = "tensorrt"
    extra: ClassVar[str] = "gpu"

    def __init__(self) -> None:
        self.trt = _module(self.module, self.name, self.extra)
        self._gpu = _first_gpu(self.name)

    def aim(self, config: Any, options: PlanOptions) -> tuple[int, ...]:
        """The GPU that is here, and no other."""
        trt = self.trt
        name, _, sm = self._gpu
        others = [other for other in options.sms if other != sm]
        if others and options.compatibility == "none":
            asked = ", ".join(f"SM{other}" for other in others)
            raise ModelRefused(f"{self.name} builds for the GPU that is here, {name} (SM{sm}), and not for {asked}")
        if options.compatibility != "none":
            level = getattr(trt.HardwareCompatibilityLevel, options.compatibility.upper())
            config.hardware_compatibility_level = level
        return (sm,)

    @contextlib.contextmanager
    def timed(self, config: Any, options: PlanOptions) -> Iterator[None]:
        """One file for each (GPU, driver, version), read and written by one process at a time."""
        if options.timing_cache is None:
            yield
            return
        trt = self.trt
        gpu, driver, _ = self._gpu
        file = Path(options.timing_cache) / _file_name(gpu, driver, trt.__version__)
        with _locked(file):
            kept = file.read_bytes() if file.exists() else b""
            # of another version or damaged, it is refused, and measured anew
            cache = config.create_timing_cache(kept) or config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
            yield
            _replace(file, bytes(config.get_timing_cache().serialize()))


_LIBRARIES: dict[str, type[Rtx] | type[TensorRT]] = {Rtx.name: Rtx, TensorRT.name: TensorRT}


def library_of(name: str) -> Library:
    """The library of a target. Raises ModelRefused where it is not installed, or has no GPU that it needs."""
    return _LIBRARIES[name]()


def require_builder(name: str) -> None:
    """Raise ModelRefused where the library of a target is not installed, or has no GPU that it needs. Imports nothing
    of it.
    """
    library = _LIBRARIES[name]
    if importlib.util.find_spec(library.module) is None:
        raise ModelRefused(
            f"target {name!r} needs a library that is not installed; pip install 'bitserve[{library.extra}]'"
        )
    if library is TensorRT:
        _first_gpu(name)


def sms_of(name: str, asked: tuple[int, ...]) -> tuple[int, ...]:
    """The GPUs that a target builds for: those asked for, else its usual ones, or the one that is here."""
    if asked or name == Rtx.name:
        return asked or _USUAL_SMS
    return (_first_gpu(name).sm,)


def linked_environment(folder: Path) -> dict[str, str]:
    """The environment of a process that parses for TensorRT-RTX; `folder` is writable, and stays until it ends.

    The parser opens `libtensorrt_rtx.so` to add a plugin; the wheel has `libtensorrt_rtx.so.1` alone, and the process
    is aborted. The link is ours, so that nothing is written into site-packages.
    """
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    if found is None or found.origin is None:
        return {}
    library = Path(found.origin).parent / "libtensorrt_rtx.so.1"
    link = folder / "libtensorrt_rtx.so"
    if not link.is_symlink():
        link.symlink_to(library)
    others = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": f"{folder}:{others}" if others else str(folder)}


def _module(name: str, target: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelRefused(
            f"target {target!r} needs a library that cannot be imported ({error.msg}); pip install 'bitserve[{extra}]'"
        ) from error


def _first_gpu(target: str) -> Gpu:
    """Raises ModelRefused where there is none."""
    found = gpus()
    if not found:
        raise ModelRefused(
            f"target {target!r} builds on the GPU that will run it, and none is to be seen here; "
            "'tensorrt-rtx' builds without one"
        )
    return found[0]


def _file_name(*parts: str) -> str:
    safe = ("".join(c if c.isalnum() or c == "." else "-" for c in part) for part in parts)
    return "_".join(safe) + ".timing"


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(file: Path, data: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(data)
    new.replace(file)
