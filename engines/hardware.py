"""What this machine offers: usable threads, GPUs, and a fingerprint that decides whether a compiled plan fits."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Gpu", "cpu_fingerprint", "cpu_model", "gpus", "has_vnni", "usable_threads", "visible_gpus"]

_VNNI = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})


def usable_threads(cgroup: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """min(CPU affinity, cgroup quota), at least 1.

    The quota is the least on the way from the process's own group, as `own` tells, to the root that is mounted: each
    group bounds all below it. A fractional quota is rounded up, since a stream with half a core still runs.
    """
    affinity = len(os.sched_getaffinity(0))
    quotas = (_quota_cores(group) for group in _groups(cgroup, own))
    return max(1, math.ceil(min(affinity, *quotas, math.inf)))


def _groups(cgroup: Path, own: Path) -> Iterator[Path]:
    """The folders that may hold a quota: of cgroup v2, and of v1, which has one tree for each set of controllers.

    A container may be told its group as its host sees it, which is not mounted; then only the root is there.
    """
    yield from (cgroup, cgroup / "cpu")
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            roots = [cgroup, cgroup / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [cgroup / "cpu", cgroup / controllers]
        else:
            continue
        parts = [part for part in path.split("/") if part]
        if ".." not in parts:  # a group beside the root, or above it
            yield from (root.joinpath(*parts[:depth]) for root in roots for depth in range(len(parts), -1, -1))


def _quota_cores(group: Path) -> float:
    """Of `cpu.max` ("quota period" in us, "max" = none) in cgroup v2, or of `cpu.cfs_quota_us` in v1 (-1 = none)."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    try:
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return math.inf


def _cpuinfo() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo, or nothing where there is none."""
    try:
        block = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_model() -> str:
    """The processor's own name, for reports."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Whether sums of byte products are made in 32 bits here; without, pairs of them overflow 16 bits.

    oneDNN can be told to leave out newer instructions, which is heeded.
    """
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if most and most not in ("ALL", "DEFAULT") and not any(name in most for name in ("VNNI", "AMX", "AVX10")):
        return False
    return not _VNNI.isdisjoint((_cpuinfo().get("flags") or "").split())


def cpu_fingerprint(threads: int = 0) -> str:
    """What a compiled CPU plan depends on: architecture, instruction sets and threads, as a short readable string.

    `threads` 0 means all that are usable. The model name is left out on purpose: two names with the same instruction
    sets run the same code.
    """
    info = _cpuinfo()
    flags = " ".join(sorted((info.get("flags") or info.get("Features") or "").split()))
    digest = hashlib.sha256(flags.encode()).hexdigest()[:12]
    return f"{platform.machine()}-{digest}-{threads or usable_threads()}t"


class Gpu(NamedTuple):
    """`sm` is 10 * major + minor of its compute capability, `driver` the version of the driver."""

    name: str
    driver: str
    sm: int


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that CUDA will show this process, in its order; none where there is no driver, or no
    `nvidia-ml-py` to ask for them.
    """
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # an error of NVML's own, or of the import
        return ()
    try:
        driver = nvml.nvmlSystemGetDriverVersion()
        return tuple(_gpu(nvml, number, driver) for number in visible_gpus(nvml))
    except Exception:
        return ()
    finally:
        with contextlib.suppress(Exception):
            nvml.nvmlShutdown()


def visible_gpus(nvml: Any) -> list[int]:
    """NVML's numbers of the GPUs that CUDA will show, in CUDA's order: NVML shows those of the whole machine.

    CUDA Programming Guide, "Environment Variables", CUDA_VISIBLE_DEVICES: numbers, or beginnings of UUIDs that fit one
    GPU; behind one that fits none, nothing is visible. Parts of GPUs (MIG) are not known here.
    """
    count: int = nvml.nvmlDeviceGetCount()
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        return list(range(count))
    found: list[int] = []
    for word in map(str.strip, told.split(",")):
        fitting = [number for number in range(count) if _is_named(nvml, number, word)]
        if len(fitting) != 1 or fitting[0] in found:
            break
        found += fitting
    return found


def _is_named(nvml: Any, number: int, word: str) -> bool:
    if not word.startswith("GPU-"):
        return word == str(number)
    try:
        uuid = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(number))
    except Exception:  # one that is lost
        return False
    return (uuid.decode() if isinstance(uuid, bytes) else str(uuid)).startswith(word)


def _gpu(nvml: Any, index: int, driver: str) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(nvml.nvmlDeviceGetName(handle), driver, 10 * major + minor)
