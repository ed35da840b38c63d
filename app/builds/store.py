"""Builds on disk: `<repository>/.builds/<id>/`. Whatever is not here does not survive the process, so all is here.

request.json   what was asked; a build exists when its folder does, and the folder appears whole, in one rename
state.json     how far it is; replaced in one rename
events.jsonl   what happened, a line each, only ever appended
input/         model.onnx, and what came with it, as in a version's folder; dropped when the build ends
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from app.builds.state import Asked, BuildState, Event, Progress
from engines.repository import staged_folder

__all__ = ["INPUT", "BuildStore", "is_build_id", "now", "unreadable"]

log = logging.getLogger(__name__)
_ID = re.compile(r"([0-9]{8}-[0-9]{6}-[0-9]{6})-[0-9a-f]{8}")
_MOMENT = "%Y%m%d-%H%M%S-%f"
_TICK = datetime.timedelta(microseconds=1)
_REQUEST, _STATE, _EVENTS, INPUT = "request.json", "state.json", "events.jsonl", "input"
_MAX_EVENTS_BYTES = 2**20


def now() -> str:
    """The time in ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def is_build_id(text: str) -> bool:
    """Whether a text has the form of one; ids come from clients."""
    return _ID.fullmatch(text) is not None


def unreadable(build: str) -> Asked:
    """What is told of a request that cannot be read."""
    return Asked(id=build, model="", key="", file_name="", sha256="", size_bytes=0, created="")


def _moment(build: str) -> datetime.datetime:
    """When an id was given."""
    found = _ID.fullmatch(build)
    try:
        return datetime.datetime.strptime(found[1] if found else "", _MOMENT).replace(tzinfo=datetime.UTC)
    except ValueError:  # a folder that was named by hand
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)


class BuildStore:
    """All calls touch the disk and are short, except `open`, `sweep`, `make_room` and `size_bytes`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last = datetime.datetime.min.replace(tzinfo=datetime.UTC)

    def new_id(self, last: str = "") -> str:
        """Cannot be guessed, and sorts after all that were given before (`last`: elsewhere), also where the clock was
        set back.
        """
        known = [_moment(build) for build in [*self.ids()[-1:], *([last] if last else [])]]
        self._last = max(datetime.datetime.now(datetime.UTC), *(moment + _TICK for moment in [self._last, *known]))
        return f"{self._last:{_MOMENT}}-{secrets.token_hex(4)}"

    def path(self, build: str) -> Path:
        """The folder of a build. KeyError where there is none: ids come from clients."""
        path = self.folder / build
        if not is_build_id(build) or not (path / _REQUEST).is_file():
            raise KeyError(build)
        return path

    @contextlib.contextmanager
    def open(self, build: str) -> Iterator[Path]:
        """A folder to receive an upload into; it becomes the build's on a clean exit, else nothing is left."""
        with staged_folder(self.folder / build) as staging:
            (staging / INPUT).mkdir()
            yield staging

    def write_request(self, staging: Path, asked: Asked) -> None:
        (staging / _REQUEST).write_text(asked.model_dump_json(indent=2))

    def ids(self) -> list[str]:
        """All builds, the oldest first."""
        with contextlib.suppress(OSError):
            return sorted(p.name for p in self.folder.iterdir() if is_build_id(p.name) and (p / _REQUEST).is_file())
        return []

    def final_ids(self) -> list[str]:
        """Builds that have ended, the oldest first."""
        found = []
        for build in self.ids():
            with contextlib.suppress(KeyError):
                if self.progress(build).state.is_final:
                    found.append(build)
        return found

    def asked(self, build: str) -> Asked:
        """What was asked; where that cannot be read, nothing but the id, and then `progress` says so."""
        return self._asked(build) or unreadable(build)

    def _asked(self, build: str) -> Asked | None:
        path = self.path(build) / _REQUEST
        try:
            asked = Asked.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise KeyError(build) from None
        except (ValidationError, OSError):  # not written by us, or by a later version, or damaged
            return None
        return asked if asked.id == build else None

    def progress(self, build: str) -> Progress:
        """How far it is; what cannot be read cannot be continued, and so has failed."""
        if self._asked(build) is None:
            return Progress(state=BuildState.FAILED, error=f"its {_REQUEST} cannot be read")
        try:
            return Progress.model_validate_json((self.path(build) / _STATE).read_bytes())
        except FileNotFoundError:
            return Progress()
        except (ValidationError, OSError):
            return Progress(state=BuildState.FAILED, error=f"its {_STATE} cannot be read")

    def write_progress(self, build: str, progress: Progress) -> None:
        path = self.path(build) / _STATE
        written = path.with_suffix(".new")
        with written.open("w") as file:
            file.write(progress.model_dump_json(indent=2))
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)

    def overwrite_progress(self, build: str, progress: Progress) -> None:
        """The same within the room that the file has already, where a disk has no other: not safe from a crash."""
        with (self.path(build) / _STATE).open("r+") as file:
            file.write(progress.model_dump_json())
            file.truncate()

    def append(self, build: str, event: Event) -> None:
        """Add an event; past 1 MiB of them, all but the last are dropped."""
        path = self.path(build) / _EVENTS
        if not event.state.is_final and path.exists() and path.stat().st_size > _MAX_EVENTS_BYTES:
            return
        try:
            with path.open("a") as file:
                file.write(event.model_dump_json() + "\n")
        except OSError as error:  # a build does not fail for what it says of itself
            log.warning("an event of build %s is lost: %s", build, error.strerror)

    def events(self, build: str) -> list[Event]:
        """All events; a line that was cut short by a crash, or damaged, is passed over."""
        try:
            lines = (self.path(build) / _EVENTS).read_text(errors="replace").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValidationError):
                found.append(Event.model_validate_json(line))
        return found

    def drop_input(self, build: str) -> None:
        shutil.rmtree(self.path(build) / INPUT, ignore_errors=True)

    def remove(self, build: str) -> None:
        """Forget a build. Its request goes first, so that half a build is none."""
        with contextlib.suppress(KeyError, OSError):
            path = self.path(build)
            (path / _REQUEST).unlink()
            shutil.rmtree(path, ignore_errors=True)

    def size_bytes(self) -> int:
        """Of everything that is kept."""
        return self._size_bytes(self.folder)

    def make_room(self, size_bytes: int, max_bytes: int) -> bool:
        """Remove the oldest finished builds until so many more bytes fit; False, and none is, where they cannot."""
        if size_bytes > max_bytes:
            return False
        excess = self.size_bytes() + size_bytes - max_bytes
        chosen = []
        for build in self.final_ids() if excess > 0 else []:
            if excess <= 0:
                break
            chosen.append(build)
            excess -= self._size_bytes(self.folder / build)
        if excess > 0:
            return False
        for build in chosen:
            self.remove(build)
        return True

    def _size_bytes(self, of: Path) -> int:
        total = 0
        for folder, _, files in os.walk(of):
            for name in files:
                with contextlib.suppress(OSError):
                    total += (Path(folder) / name).stat().st_size
        return total

    def retain(self, keep: int, spare: str = "") -> None:
        """Remove the oldest finished builds beyond `keep`. `spare` is one of those that are kept, however old."""
        final = [build for build in self.final_ids() if build != spare]
        for build in final[: max(0, len(final) - max(0, keep - bool(spare)))]:
            self.remove(build)

    def sweep(self) -> None:
        """Remove what broken uploads left. Before the first upload only: one under way looks the same."""
        with contextlib.suppress(OSError):
            for entry in self.folder.iterdir():
                if entry.is_dir() and not (entry / _REQUEST).is_file():
                    shutil.rmtree(entry, ignore_errors=True)
