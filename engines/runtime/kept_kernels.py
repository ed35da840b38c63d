"""Kernels that TensorRT-RTX compiled on a GPU, kept for the next time. They are native code: only what was signed by
this installation is read back.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from engines.hardware import Gpu
from engines.manifest import Manifest, PlanFile

__all__ = ["KeptKernels", "kernels_file", "sweep_kernels"]

_SIGNATURE_BYTES = hashlib.sha256().digest_size
_NAME_LENGTH = 32


def kernels_file(folder: Path, plan: PlanFile, gpu: Gpu, number: int) -> Path:
    """Where those of a plan are, for one kind of GPU with one driver: of others the library takes none. Each device has
    a file, for each meets other shapes.
    """
    here = hashlib.sha256(f"{gpu.name}-{gpu.driver}".encode()).hexdigest()
    return folder / plan.target / f"{_plan_name(plan)}-{here[:_NAME_LENGTH]}-{number}"


def sweep_kernels(
    folder: Path, targets: Iterable[str], manifests: Callable[[], Iterable[Manifest]], older_than_s: float, now_s: float
) -> int:
    """Remove those of plans that are in no manifest, and what a write that was killed has left, once it is older than
    the limit; how many. Manifests are asked for after the files: who has just come is not taken for one that has gone.
    """
    files = [file for target in targets for file in _files(folder / target)]
    known = {_plan_name(plan) for manifest in manifests() for plan in manifest.plans} if files else set()
    swept = 0
    for file in files:
        name, is_half = file.name.partition("-")[0], "." in file.name
        with contextlib.suppress(OSError):
            if now_s - file.stat().st_mtime > older_than_s and (is_half or name not in known):
                file.unlink()
                swept += 1
    return swept


def _plan_name(plan: PlanFile) -> str:
    return plan.sha256[:_NAME_LENGTH]


def _files(folder: Path) -> list[Path]:
    try:
        return [file for file in folder.iterdir() if file.is_file()]
    except OSError:
        return []


class KeptKernels:
    """In one file, behind their signature."""

    def __init__(self, file: Path, key: bytes) -> None:
        self._file, self._key = file, key

    def read(self) -> bytes:
        """Those of another device of the same kind where it has none. Empty where there are none, or not ours."""
        kind = self._file.name.rpartition("-")[0]
        others = sorted(self._file.parent.glob(f"{kind}-[0-9]")) if kind else []
        return next(filter(None, map(self._read, (self._file, *others))), b"")

    def _read(self, file: Path) -> bytes:
        try:
            found = file.read_bytes()
        except OSError:
            return b""
        signature, content = found[:_SIGNATURE_BYTES], found[_SIGNATURE_BYTES:]
        return content if hmac.compare_digest(signature, self._signature(content)) else b""

    def write(self, content: bytes) -> None:
        """In the place of those before. Where that fails, they are compiled again."""
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f"{self._file.name}.", dir=self._file.parent)
            try:
                with os.fdopen(descriptor, "wb") as new:
                    new.write(self._signature(content) + content)
                os.replace(name, self._file)
            except BaseException:
                os.unlink(name)
                raise

    def _signature(self, content: bytes) -> bytes:
        return hmac.new(self._key, content, hashlib.sha256).digest()
