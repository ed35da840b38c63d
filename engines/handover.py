"""A plan in a folder: how a child process leaves it, and what is looked at before anything of it is believed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from engines.errors import PlanInvalid
from engines.manifest import EngineFile, Manifest, PlanFile, decode, encode
from engines.manifest_check import check_manifest

__all__ = [
    "ENGINE_FILE", "FALLBACK", "MANIFEST_FILE", "PLAN_FILES", "REPORT_FILE", "REPORT_PAGE", "WHOLE", "Plan",
    "check_handover", "read_page", "write_plan",
]  # fmt: skip

ENGINE_FILE = "engine.blob"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.json"
REPORT_PAGE = "report.html"
FALLBACK, WHOLE = "fallback", "whole"
"""What a build says it has left before its end: an engine in FP32; all but plans for GPUs, in a folder of this name."""
PLAN_FILES = {"tensorrt-rtx": ("tensorrt-rtx.plan", "tensorrt-rtx.lowered.plan"), "tensorrt": ("tensorrt.plan",)}
"""By target: the second is for GPUs without units for bits, where others run binary layers as plugins."""
_MOST_BYTES = {ENGINE_FILE: 2**34, MANIFEST_FILE: 2**24, REPORT_FILE: 2**25, REPORT_PAGE: 2**26}
"""All that may be there, and how large each may be."""
_NEEDED = (ENGINE_FILE, MANIFEST_FILE)
_MOST_BYTES |= {file: 2**34 for files in PLAN_FILES.values() for file in files}
_ENGINES = frozenset({ENGINE_FILE, *(file for files in PLAN_FILES.values() for file in files)})


class Plan(NamedTuple):
    """What a build makes: the manifest, the report as JSON, the engine as a server imports it, plans by file name."""

    manifest: Manifest
    report: bytes
    blob: bytes
    plans: Mapping[str, bytes] = MappingProxyType({})


def write_plan(plan: Plan, folder: Path) -> None:
    """Leave it in an empty folder, the manifest last: with it the plan is whole. Raises OSError."""
    (folder / REPORT_FILE).write_bytes(plan.report)
    (folder / ENGINE_FILE).write_bytes(plan.blob)
    for name, data in plan.plans.items():
        (folder / name).write_bytes(data)
    (folder / MANIFEST_FILE).write_bytes(encode(plan.manifest))


def check_handover(folder: Path, key: str, most_threads: int) -> Manifest:
    """The manifest of the plan in `folder`. No process may be left that could change it afterwards.

    Raises PlanInvalid unless there are only plain files under the expected names and sizes, the manifest is that of
    `key` and can be true (`check_manifest`), and the engine is the one that it describes.
    """
    with os.scandir(folder) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    for name, status in found.items():
        _check_file(name, status)
    for name in _NEEDED:
        if name not in found:
            raise PlanInvalid(f"the compile left no {name}")
    manifest = decode((folder / MANIFEST_FILE).read_bytes())
    if manifest.key != key:
        raise PlanInvalid(f"the compile left a plan of key {manifest.key[:12]}, expected {key[:12]}")
    files: list[EngineFile | PlanFile] = [manifest.engine, *manifest.plans]
    said = {file.file: (file.size_bytes, file.sha256) for file in files}
    seen = {name: (found[name].st_size, _sha256(folder / name)) for name in found if name in _ENGINES}
    if said != seen or manifest.engine.file != ENGINE_FILE:
        raise PlanInvalid("the compile left an engine or a plan that is not the one in its manifest")
    if any(plan.file not in PLAN_FILES.get(plan.target, ()) for plan in manifest.plans):
        raise PlanInvalid("the compile left a plan under the name of another target")
    check_manifest(manifest, most_threads)
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_page(folder: Path) -> bytes:
    """The page that a child has drawn. Raises PlanInvalid unless it is a plain file of a sensible size."""
    page = folder / REPORT_PAGE
    try:
        _check_file(REPORT_PAGE, page.lstat())
        return page.read_bytes()
    except OSError as error:
        raise PlanInvalid(f"{REPORT_PAGE} cannot be read: {error.strerror}") from error


def _check_file(name: str, status: os.stat_result) -> None:
    if name not in _MOST_BYTES:
        raise PlanInvalid(f"the compile left {name[:100]!r}; expected {', '.join(_MOST_BYTES)}")
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise PlanInvalid(f"the compile left {name}, and it is no plain file")
    if status.st_size > _MOST_BYTES[name]:
        raise PlanInvalid(f"the compile left {name} with {status.st_size} bytes; expected at most {_MOST_BYTES[name]}")
