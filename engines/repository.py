"""Models on disk: names, versions, publishing, and the cache of compiled plans. The contract between the two halves.

    <repository>/<model>/config.toml          optional
    <repository>/<model>/<version>/model.onnx
                                   spec.json, calibration.npz, validation.npz  optional: what its build is asked
    <cache>/<key>/engine.blob, manifest.json  one compiled plan, a version's manifest written last
                  report.json, report.html    optional
                  *.plan, signature           plans for GPUs, if there are any
    <anything starting with a dot>            ours or the user's, never a model

A folder appears whole or not at all: it is filled under a dotted name, synced, and renamed. A reader that is killed, or
a writer that is killed, at any point leaves the old state or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from engines.errors import BadRepository, PlanInvalid
from engines.files import open_plain
from engines.handover import MANIFEST_FILE, REPORT_FILE, REPORT_PAGE, check_handover
from engines.hardware import cpu_fingerprint
from engines.manifest import Manifest, decode, encode
from engines.manifest_check import check_manifest
from engines.plugins.extension import extension_digest
from engines.signature import SIGNATURE_FILE, sign
from engines.steps import CANONICAL_PASSES

__all__ = [
    "CALIBRATION_FILE", "CONFIG_FILE", "MANIFEST_FILE", "MODEL_FILE", "REPORT_FILE", "REPORT_PAGE", "SPEC_FILE",
    "VALIDATION_FILE", "Manifest", "PlanCache", "VersionFiles", "check_model_folder", "check_model_name", "decode",
    "encode", "file_sha256", "is_model_name", "keep_page", "move_in", "new_staging", "next_version", "plan_key",
    "publish_version", "scan", "staged_folder", "stamp_of", "sweep_versions", "tool_versions", "withdraw_version",
]  # fmt: skip

MODEL_FILE = "model.onnx"
SPEC_FILE = "spec.json"
CALIBRATION_FILE, VALIDATION_FILE = "calibration.npz", "validation.npz"
CONFIG_FILE = "config.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RESERVED = frozenset({"stats"})  # GET /v2/models/stats is the statistics of all models
_PASSING_ERRORS = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE})
_STAGING, _DISCARDED = ".staging", ".discarded."
_LEFT_VERSION = re.compile(r"\.[0-9]+\.[^.]+\.staging")
_COPIED_BYTES = 2**20
_TOOLS = ("bitserve", "nncf", "onnx", "onnxruntime", "onnxscript", "openvino", "optuna")
PLAN_FORMAT = "27"
"""Part of every plan key: raise it when the build itself changes what it makes."""


def is_model_name(name: str) -> bool:
    """True for `[A-Za-z0-9][A-Za-z0-9._-]{0,127}` without `..` that no route of the protocol claims."""
    return bool(_NAME.fullmatch(name)) and ".." not in name and name not in _RESERVED


def check_model_name(name: str) -> None:
    """Raise BadRepository unless `is_model_name`; the texts are those that scripts written for Triton match."""
    if not name.strip():
        raise BadRepository("Model name cannot be empty or whitespace")
    if "/" in name or "\\" in name or name.strip() in (".", "..") or name.strip().startswith(".."):
        raise BadRepository("model name must not contain path traversal characters")
    if not is_model_name(name):
        raise BadRepository(
            f"model name {name!r} is not allowed; expected 1 to 128 of A-Z a-z 0-9 . _ - starting with a letter or "
            "digit, without '..'"
        )


def check_model_folder(folder: Path) -> None:
    """Raise BadRepository where a model's folder is a link that leads out of the repository around it.

    What is published there would be written outside, and what is served from there others may change.
    """
    if folder.is_symlink() and not folder.resolve().is_relative_to(folder.parent.resolve()):
        raise BadRepository(f"the folder of model {folder.name!r} is a symbolic link that leads out of the repository")


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """One version on disk. `stamp` changes when a file of it does: of each, (size in bytes, mtime in ns, inode)."""

    model: str
    version: int
    folder: Path
    stamp: tuple[int, ...]
    has_manifest: bool

    @property
    def source(self) -> Path:
        return self.folder / MODEL_FILE


def scan(repository: Path) -> dict[str, list[VersionFiles]]:
    """Every model and its versions, ascending. Stray files, dotted names and illegal names are skipped."""
    models: dict[str, list[VersionFiles]] = {}
    for entry in _entries(repository):
        if is_model_name(entry.name) and _is_folder(entry):
            models[entry.name] = sorted(_versions(Path(entry.path), entry.name), key=lambda found: found.version)
    return {name: versions for name, versions in sorted(models.items()) if versions}


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        if error.errno in _PASSING_ERRORS:  # nothing was seen, so nothing may be concluded
            raise
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle, say
        return False


def _versions(folder: Path, model: str) -> Iterator[VersionFiles]:
    for entry in _entries(folder):
        if not (entry.name.isascii() and entry.name.isdigit() and _is_folder(entry)):
            continue
        if len(entry.name) > 18 or str(int(entry.name)) != entry.name:
            continue  # "01" and "1" would be the same version
        path = Path(entry.path)
        with contextlib.suppress(OSError):
            if not stat.S_ISREG((path / MODEL_FILE).stat().st_mode):
                continue  # reading a pipe would never end
            yield VersionFiles(model, int(entry.name), path, stamp_of(path), (path / MANIFEST_FILE).exists())


def stamp_of(folder: Path) -> tuple[int, ...]:
    """The stamp of a version's folder: of the model, then of what else its build is asked; zeros for what is absent."""
    stamp: list[int] = []
    for name in (MODEL_FILE, SPEC_FILE, CALIBRATION_FILE, VALIDATION_FILE):
        try:
            found = (folder / name).stat()
            stamp += [found.st_size, found.st_mtime_ns, found.st_ino]
        except OSError:
            stamp += [0, 0, 0]
    return tuple(stamp)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes. Raises ModelRefused where it is a link or no plain file."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tool_versions() -> dict[str, str]:
    """Versions of everything that shapes a compiled plan."""
    return {**{name: metadata.version(name) for name in _TOOLS}, "binary kernels": extension_digest()}


def plan_key(
    source_sha256: str, target: str = "openvino", threads: int = 0, given: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The cache key of a plan: source, target, passes, tools, hardware (`threads` 0 = all usable ones). 32 hex digits.

    `given` are the hashes of what else its build is asked, by file name.
    """
    hardware, tools = cpu_fingerprint(threads), tool_versions()
    further = [f"{name}={value}" for pairs in (tools, dict(sorted(given.items()))) for name, value in pairs.items()]
    parts = [PLAN_FORMAT, source_sha256, target, ", ".join(CANONICAL_PASSES), hardware, *further]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@contextlib.contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """A folder to fill; on a clean exit it becomes `final` in one rename, otherwise nothing is left.

    Files are synced before the rename and the parent after it. Raises FileExistsError where `final` exists: what was
    published is immutable.
    """
    with _private_folder(final) as staging:
        yield staging
        move_in(staging, final)


@contextlib.contextmanager
def _private_folder(final: Path) -> Iterator[Path]:
    """A folder beside `final`; gone afterwards unless it was moved."""
    staging = new_staging(final)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def new_staging(final: Path) -> Path:
    """An empty folder beside `final`, under a name that every sweep knows."""
    final.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=_STAGING, dir=final.parent))


def move_in(staging: Path, final: Path, *, replacing: bool = False) -> None:
    """Sync, and rename. What is there makes way at the last moment where this one is `replacing` it; else raises
    FileExistsError.
    """
    staging.chmod(0o755)  # mkdtemp makes it private; another user's server may have to read it
    for file in staging.iterdir():
        _sync(file)
    _sync(staging)
    if replacing:
        _bury(final)
    if final.exists():
        raise FileExistsError(f"{final.name} exists already and is immutable")
    try:
        staging.rename(final)
    except OSError as error:  # another writer was first
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise FileExistsError(f"{final.name} exists already and is immutable") from error
        raise
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_version(repository: Path, model: str, version: int, files: Mapping[str, Path], manifest: bytes) -> Path:
    """Add an immutable version: its files by name (`BuildRequest.files`) first, its manifest last; all or none is seen.

    Raises BadRepository for an illegal name, a folder outside or an existing version, ModelRefused for a link.
    """
    check_model_name(model)
    check_model_folder(repository / model)
    final = repository / model / str(version)
    try:
        with staged_folder(final) as staging:
            for name, path in files.items():
                with open_plain(path) as source, (staging / name).open("xb") as copy:
                    shutil.copyfileobj(source, copy, _COPIED_BYTES)
            (staging / MANIFEST_FILE).write_bytes(manifest)
    except FileExistsError as error:
        raise BadRepository(f"model {model!r} has a version {version} already; versions are immutable") from error
    return final


def keep_page(folder: Path, page: bytes) -> None:
    """Put the page of a plan's report beside it, whole or not at all; nothing where that cannot be written."""
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(prefix=".page.", dir=folder, delete=False) as file:
        try:
            file.write(page)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.rename(file.name, folder / REPORT_PAGE)
        except OSError:
            os.unlink(file.name)


def next_version(repository: Path, model: str) -> int:
    """One more than the highest version that there is, whatever its state."""
    check_model_name(model)
    check_model_folder(repository / model)
    names = [entry.name for entry in _entries(repository / model)]
    return max((int(name) for name in names if name.isascii() and name.isdigit()), default=0) + 1


def withdraw_version(repository: Path, model: str, version: int) -> None:
    """Take back a version that could not be brought into service; renamed first, so that nobody finds half of it."""
    _bury(repository / model / str(version))


def _bury(folder: Path) -> None:
    """Remove a folder, if it is there. A grave of its own: one that a killed process has left would be in the way."""
    if folder.exists():
        grave = new_staging(folder)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(grave / folder.name)
        shutil.rmtree(grave, ignore_errors=True)


def sweep_versions(repository: Path, older_than_s: float, now_s: float) -> int:
    """Remove what killed writers left in the models' folders, once it is older than the limit; return how many."""
    models = [entry for entry in _entries(repository) if is_model_name(entry.name) and _is_folder(entry)]
    return sum(_sweep(Path(model.path), older_than_s, now_s, _LEFT_VERSION.fullmatch) for model in models)


def _sweep(folder: Path, older_than_s: float, now_s: float, is_ours: Callable[[str], object]) -> int:
    removed = 0
    for entry in _entries(folder):
        with contextlib.suppress(OSError):
            if is_ours(entry.name) and now_s - entry.stat(follow_symlinks=False).st_mtime > older_than_s:
                shutil.rmtree(entry.path, ignore_errors=True)
                removed += 1
    return removed


class PlanCache:
    """Compiled plans by key. Whatever is not whole, not ours or not this key's is reported, never trusted.

    `threads` is how many an engine was allowed; 0 = all of this machine. `plan_key` signs what holds plans for GPUs;
    without one they stay unsigned, and no server reads them.
    """

    def __init__(self, folder: Path, threads: int = 0, plan_key: bytes | None = None) -> None:
        self.folder, self.plan_key = folder, plan_key
        self._most_threads = threads or os.cpu_count() or 1

    def entry(self, key: str) -> Path:
        return self.folder / key

    def manifest(self, key: str) -> Manifest | None:
        """The manifest of a plan, or None where there is no plan.

        Raises PlanInvalid where it is not this key's, or cannot be true.
        """
        try:
            data = (self.entry(key) / MANIFEST_FILE).read_bytes()
        except FileNotFoundError:
            if self.entry(key).exists():
                raise PlanInvalid("the plan has no manifest") from None
            return None
        except OSError as error:
            raise PlanInvalid(f"the plan's manifest cannot be read: {error.strerror}") from error
        manifest = decode(data)
        if manifest.key != key:
            raise PlanInvalid(f"the plan belongs to key {manifest.key[:12]}, expected {key[:12]}")
        check_manifest(manifest, self._most_threads)
        return manifest

    def manifests(self) -> Iterator[Manifest]:
        """Of all plans that can be read."""
        for file in self.folder.glob(f"*/{MANIFEST_FILE}"):
            with contextlib.suppress(PlanInvalid, OSError):
                yield decode(file.read_bytes())

    def store(self, manifest: Manifest, blob: bytes) -> None:
        """Add a plan, its manifest written last. One of the same key that came first is kept."""
        with (
            contextlib.suppress(FileExistsError),
            staged_folder(self.entry(manifest.key)) as staging,
        ):
            (staging / manifest.engine.file).write_bytes(blob)
            (staging / MANIFEST_FILE).write_bytes(encode(manifest))

    @contextlib.contextmanager
    def handover(self, key: str) -> Iterator[Path]:
        """A private folder for a child process to leave a plan of `key` in, for `adopt`; gone afterwards."""
        with _private_folder(self.entry(key)) as folder:
            yield folder

    def adopt(self, folder: Path, key: str, *, replacing: bool = False) -> Manifest:
        """Take over what a child process has left, in one rename. One of the same key that came first is kept, unless
        this one is `replacing` it.

        Raises PlanInvalid for anything but a whole plan of this key, and then the cache is as it was.
        """
        manifest = check_handover(folder, key, self._most_threads)
        if manifest.plans and self.plan_key:
            signed = sign((folder / MANIFEST_FILE).read_bytes(), self.plan_key)
            (folder / SIGNATURE_FILE).write_bytes(signed)
        if replacing:
            self.discard(key)
        for file in folder.iterdir():
            file.chmod(0o644)
        with contextlib.suppress(FileExistsError):
            move_in(folder, self.entry(key))
        return self.manifest(key) or manifest

    def discard(self, key: str) -> None:
        """Remove a plan, by renaming it away first so that no reader finds half of it."""
        grave = Path(tempfile.mkdtemp(prefix=_DISCARDED, dir=self.folder))
        with contextlib.suppress(FileNotFoundError):
            self.entry(key).rename(grave / key)
        shutil.rmtree(grave, ignore_errors=True)

    def sweep(self, older_than_s: float, now_s: float) -> int:
        """Remove what killed builds left behind, once it is older than the limit; return how many.

        Only names that this module makes are touched: the cache may be a folder that holds other things too.
        """

        def is_ours(name: str) -> bool:
            return name.startswith(_DISCARDED) or (name.startswith(".") and name.endswith(_STAGING))

        return _sweep(self.folder, older_than_s, now_s, is_ours)
