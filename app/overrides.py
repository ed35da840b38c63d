"""What the loader remembers: sights of files, what load calls brought along instead, which calls are under way."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.config import ModelConfig, read_config
from engines import repository
from engines.errors import BadRepository
from engines.repository import VersionFiles

__all__ = ["NOTHING", "Calls", "Override", "Overrides", "Seen", "Signature", "stamp_of"]


Signature = tuple[tuple[int, ...], tuple[int, int] | None]
"""(size, mtime ns, inode) of each of a version's files; (size, mtime ns) of config.toml, None where there is none."""

NOTHING: Signature = ((), None)


@dataclass(slots=True)
class Seen:
    """What the last look saw of a version, and which sight of it a load was started for."""

    last: Signature
    handled: Signature | None = None


def stamp_of(path: Path) -> tuple[int, int] | None:
    """The second half of a signature."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Override:
    """What one load call brought. `folder` is laid out like the repository and belongs to this call alone."""

    config: ModelConfig | None = None
    folder: Path | None = None

    def over(self, file: Path) -> ModelConfig:
        """The configuration: this one, else the file's. BadRepository where the file is wrong."""
        if self.config is not None:
            return self.config
        try:
            return read_config(file.read_text("utf-8"))
        except FileNotFoundError:
            return ModelConfig()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise BadRepository(f"config.toml cannot be read: {why}") from error

    def choose(self, file: Path, numbers: set[int]) -> set[int]:
        """Version numbers that the policy serves; the latest where the configuration is wrong."""
        try:
            policy = self.over(file).versions
        except BadRepository:
            policy = "latest"
        if policy == "latest":
            return {max(numbers)} if numbers else set()
        return numbers if policy == "all" else numbers & set(policy)

    def require(self, model: str, file: Path, number: int, numbers: set[int]) -> None:
        """Raise BadRepository where version `number` of the repository, one of `numbers`, would not be served."""
        if self.folder is not None:
            raise BadRepository(f"{model!r} serves files that a load call brought; unload it first")
        if number not in self.choose(file, numbers):
            raise BadRepository(f"the configuration of {model!r} does not ask for version {number}")


_NONE = Override()


class Overrides:
    """What stands in for the repository, by model; gone at the next load that succeeds."""

    def __init__(self) -> None:
        self._in_force: dict[str, Override] = {}
        self._folder: Path | None = None

    def get(self, model: str) -> Override:
        return self._in_force.get(model, _NONE)

    def scan(self) -> dict[str, list[VersionFiles]]:
        """Models whose files were brought by a load call."""
        found: dict[str, list[VersionFiles]] = {}
        for override in list(self._in_force.values()):
            if override.folder is not None:
                found.update(repository.scan(override.folder))
        return found

    def open(self) -> None:
        """Make the folder that all files are brought to. Raises BadRepository if that cannot be done."""
        if self._folder is None:
            with _disk_errors():
                self._folder = Path(tempfile.mkdtemp(prefix="bitserve-loaded-"))

    def stage(self, model: str, config: ModelConfig | None, files: Mapping[int, bytes]) -> Override:
        """Write files beside those in force, which they do not touch. Raises BadRepository if that cannot be done."""
        if not files:
            return Override(config)
        with _disk_errors():
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            for version, data in files.items():
                with repository.staged_folder(folder / model / str(version)) as staging:
                    (staging / repository.MODEL_FILE).write_bytes(data)
        return Override(config, folder)

    def put(self, model: str, override: Override) -> Override:
        """Put an override in force; returns the one before."""
        before = self._in_force.pop(model, _NONE)
        if override != _NONE:
            self._in_force[model] = override
        return before

    def discard(self, override: Override) -> None:
        """Remove the files of an override, unless it is in force."""
        if override.folder is not None and override not in list(self._in_force.values()):
            shutil.rmtree(override.folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # its own text would name a path of this machine
        raise BadRepository(f"the files cannot be stored: {error.strerror or type(error).__name__}") from error


class Calls:
    """One load call at a time per model; and which models calls touch while the watcher looks at the disk."""

    def __init__(self) -> None:
        self._turns: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()
        self._noted: set[str] | None = None
        self._looking = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self, model: str) -> AsyncIterator[None]:
        """Wait for the calls before this one."""
        self.touch(model)
        self._waiting[model] += 1
        try:
            async with self._turns.setdefault(model, asyncio.Lock()):
                yield
        finally:
            self._waiting[model] -= 1
            if not self._waiting[model]:
                del self._waiting[model], self._turns[model]

    def touch(self, model: str) -> None:
        if self._noted is not None:
            self._noted.add(model)

    @contextlib.asynccontextmanager
    async def noting(self) -> AsyncIterator[set[str]]:
        """The models for which a call is under way, or comes before the end: what is read meanwhile may be old.

        One look at a time: the next one waits.
        """
        async with self._looking:
            touched = self._noted = set(self._turns)
            try:
                yield touched
            finally:
                self._noted = None
