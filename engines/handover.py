"""A plan in a folder: how a child process leaves it, and what is looked at before anything of it is believed."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from engines.errors import PlanInvalid
from engines.manifest import Manifest, decode, encode
from engines.manifest_check import check_manifest

__all__ = [
    "ENGINE_FILE", "MANIFEST_FILE", "REPORT_FILE", "REPORT_PAGE", "Plan", "check_handover", "read_page", "write_plan",
]  # fmt: skip

ENGINE_FILE = "engine.blob"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.json"
REPORT_PAGE = "report.html"
_MOST_BYTES = {ENGINE_FILE: 2**34, MANIFEST_FILE: 2**24, REPORT_FILE: 2**25, REPORT_PAGE: 2**26}
"""All that may be there, and how large each may be."""
_NEEDED = (ENGINE_FILE, MANIFEST_FILE)


class Plan(NamedTuple):
    """What a build makes: the manifest, the report as JSON, the engine as a server imports it."""

    manifest: Manifest
    report: bytes
    blob: bytes


def write_plan(plan: Plan, folder: Path) -> None:
    """Leave it in an empty folder, the manifest last: with it the plan is whole. Raises OSError."""
    (folder / REPORT_FILE).write_bytes(plan.report)
    (folder / ENGINE_FILE).write_bytes(plan.blob)
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
    engine = manifest.engine
    with (folder / ENGINE_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if (engine.file, engine.size_bytes, engine.sha256) != (ENGINE_FILE, found[ENGINE_FILE].st_size, digest):
        raise PlanInvalid("the compile left an engine that is not the one in its manifest")
    check_manifest(manifest, most_threads)
    return manifest


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
