"""A mirror's folder: versions as any repository has them, each with a note of what it is a copy of."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from app.store.remote import Held
from engines.files import open_plain
from engines.repository import MANIFEST_FILE, is_model_name, move_in, new_staging

__all__ = ["copy_version", "end_version", "held_in", "keep_file", "kept_files", "mark_used", "note_files"]

_COPIED_BYTES = 2**20

_NOTE = ".mirrored"
"""In a version's folder, and in a model's for the files beside its versions: what has none is not ours to remove."""


class _Note(msgspec.Struct, frozen=True):
    tag: str
    size_bytes: int


def held_in(folder: Path) -> dict[str, dict[int, Held]]:
    """What is there of the store, by model and version."""
    found: dict[str, dict[int, Held]] = {}
    for note in folder.glob(f"*/*/{_NOTE}"):
        model, version = note.parent.parent.name, note.parent.name
        if not (is_model_name(model) and version.isascii() and version.isdigit()):
            continue
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            known = msgspec.json.decode(note.read_bytes(), type=_Note)
            found.setdefault(model, {})[int(version)] = Held(known.tag, known.size_bytes, note.stat().st_mtime)
    return found


def mark_used(folder: Path, wanted: Mapping[str, Iterable[int]]) -> None:
    """Note that these are wanted now: what was wanted longest ago makes room first."""
    for model, numbers in wanted.items():
        for number in numbers:
            with contextlib.suppress(OSError):
                os.utime(folder / model / str(number) / _NOTE)


def end_version(staging: Path, folder: Path, model: str, version: int, tag: str, size_bytes: int) -> None:
    """A folder of `new_staging` that has all files of a version becomes it; one of the same number makes way."""
    (staging / _NOTE).write_bytes(msgspec.json.encode(_Note(tag, size_bytes)))
    move_in(staging, folder / model / str(version), replacing=True)


def copy_version(
    folder: Path, model: str, version: int, files: Mapping[str, Path], manifest: bytes, tag: str, size_bytes: int
) -> None:
    """The same, of files that are on this machine. Raises ModelRefused for a link, or OSError."""
    staging = new_staging(folder / model / str(version))
    try:
        for name, path in files.items():
            with open_plain(path) as source, (staging / name).open("xb") as copy:
                shutil.copyfileobj(source, copy, _COPIED_BYTES)
        (staging / MANIFEST_FILE).write_bytes(manifest)
        end_version(staging, folder, model, version, tag, size_bytes)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def kept_files(folder: Path) -> dict[str, dict[str, str]]:
    """Files beside versions that came from the store, with their tags, by model."""
    found: dict[str, dict[str, str]] = {}
    for note in folder.glob(f"*/{_NOTE}"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            found[note.parent.name] = msgspec.json.decode(note.read_bytes(), type=dict[str, str])
    return found


def keep_file(folder: Path, model: str, name: str, data: bytes | None) -> None:
    """Replace a file of a model whole, or remove it (None)."""
    path = folder / model / name
    if data is None:
        path.unlink(missing_ok=True)
    else:
        _replace(path, data)


def note_files(folder: Path, model: str, tags: dict[str, str]) -> None:
    """Remember what the files of a model are copies of."""
    _replace(folder / model / _NOTE, msgspec.json.encode(tags))
    if not tags:
        (folder / model / _NOTE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there may be something in it
            (folder / model).rmdir()


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".staging", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(made, 0o644)
        os.replace(made, path)
    except BaseException:
        os.unlink(made)
        raise
