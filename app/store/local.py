"""A mirror's folder: versions as any repository has them, each with a note of what it is a copy of."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from app.store.remote import Held
from engines.repository import is_model_name, staged_folder, withdraw_version

__all__ = ["held_in", "keep_file", "kept_files", "new_version", "note_files", "write_note"]

_NOTE = ".mirrored"
"""In a version's folder, and in a model's for the files beside its versions: what has none is not ours to remove."""


class _Note(msgspec.Struct, frozen=True):
    tag: str
    size_bytes: int


def held_in(folder: Path, wanted: dict[str, set[int]] | None = None) -> dict[str, dict[int, Held]]:
    """What is there of the store, by model and version; those `wanted` are marked as used now."""
    found: dict[str, dict[int, Held]] = {}
    for note in folder.glob(f"*/*/{_NOTE}"):
        model, version = note.parent.parent.name, note.parent.name
        if not (is_model_name(model) and version.isascii() and version.isdigit()):
            continue
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            known = msgspec.json.decode(note.read_bytes(), type=_Note)
            if wanted is not None and int(version) in wanted.get(model, ()):
                os.utime(note)
            found.setdefault(model, {})[int(version)] = Held(known.tag, known.size_bytes, note.stat().st_mtime)
    return found


@contextmanager
def new_version(folder: Path, model: str, version: int, tag: str, size_bytes: int) -> Iterator[Path]:
    """A folder to fill that becomes the version in one step; one of the same number that is there makes way."""
    final = folder / model / str(version)
    with staged_folder(final) as staging:
        yield staging
        write_note(staging, tag, size_bytes)
        if final.exists():
            withdraw_version(folder, model, version)


def write_note(version: Path, tag: str, size_bytes: int) -> None:
    """Say in a version's folder what it is a copy of."""
    (version / _NOTE).write_bytes(msgspec.json.encode(_Note(tag, size_bytes)))


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
