"""The image, built without a daemon: a base by debootstrap, the Dockerfile by buildah, both kept for the next run."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.servers import ROOT

__all__ = ["BASE", "CERTIFICATES", "IMAGE", "Store", "build", "cpu_image", "store", "tool_venv", "tools_cache"]

BASE = "python:3.11-slim-bookworm"
"""The Dockerfile's own: what is made here bears its name, since no registry is asked."""
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGE = f"localhost/bitserve:{VERSION}"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
"""Of this machine: where its network signs what pip loads, the base knows nothing of that."""
_KEPT = "168h"
"""Of steps that nothing uses any more, the age at which they go."""
_PACKAGES = "ca-certificates,python3,python3-venv,python3-pip"
_LEFT_OUT = ("./var/cache/apt/*", "./var/lib/apt/lists/*", "./var/log/*", "./dev/*")
_DOCKERFILE = """\
FROM scratch
ADD base.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["python3"]
"""


def tools_cache() -> Path:
    """Where what takes long to make is kept; git ignores it."""
    folder = Path(os.environ.get("BITSERVE_TOOLS_CACHE") or ROOT / ".tools").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """One process at a time makes a thing."""
    with (tools_cache() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
    """Its output; AssertionError with the end of what it said where it fails."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
    )
    said = f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}: {said}"
    return done.stdout


class Store:
    """Images and containers in a folder of its own, apart from what else the machine has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._flags = ("--root", str(folder / "store"), "--runroot", str(folder / "run"), "--storage-driver", "overlay")
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self.env = {
            "CONTAINERS_CONF": str(ROOT / "tests/deploy/containers.conf"),
            "TMPDIR": str(folder / "tmp"),  # caches of RUN --mount lie there
        }

    def buildah(self, *arguments: str) -> str:
        return _run(("buildah", *self._flags, *arguments), self.env)

    def podman_command(self, *arguments: str) -> list[str]:
        """crun does not take every kernel's cgroups; runc does."""
        return ["podman", *self._flags, "--runtime", "runc", "--cgroup-manager", "cgroupfs", *arguments]

    def podman_output(self, *arguments: str) -> tuple[int, str]:
        """Exit code and all that was said, where failing is one of the answers."""
        done = subprocess.run(
            self.podman_command(*arguments), check=False, env={**os.environ, **self.env}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout

    def podman(self, *arguments: str) -> str:
        return _run(self.podman_command(*arguments), self.env)

    def has(self, image: str) -> bool:
        return self.podman_output("image", "exists", image)[0] == 0

    def inspect(self, image: str) -> dict[str, Any]:
        return dict(json.loads(self.podman("image", "inspect", image))[0])


@functools.cache
def store() -> Store:
    return Store(tools_cache() / "image")


def _make_base(to: Store) -> None:
    """Debian with its own Python, in place of the base that no registry can be asked for."""
    with tempfile.TemporaryDirectory(dir=to.folder) as own:
        root = Path(own) / "root"
        _run(("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", root))
        context = Path(own) / "context"
        context.mkdir()
        excluded = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
        _run(("tar", "-C", root, *excluded, "-cf", context / "base.tar", "."))
        shutil.rmtree(root)
        (context / "Dockerfile").write_text(_DOCKERFILE)
        to.buildah("bud", "--isolation", "chroot", "--tag", BASE, str(context))


def build(to: Store, tag: str, *flags: str, context: Path = ROOT) -> str:
    """`tag`, built of the Dockerfile of `context`. Steps that have not changed are taken from the last build."""
    with _alone("image"):
        if not to.has(BASE):
            _make_base(to)
        to.podman_output("image", "prune", "--force", "--filter", f"until={_KEPT}")  # else the folder grows for ever
        to.buildah(
            "bud", "--format", "docker", "--layers", "--isolation", "chroot", "--pull=never", "--network", "host",
            "--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro", "--tag", tag, *flags, str(context),
        )  # fmt: skip
    return tag


@functools.cache
def cpu_image() -> str:
    """The name of the image of the default target; built once a session."""
    return build(store(), IMAGE)


def tool_venv(name: str, *requirements: str) -> Path:
    """The bin folder of a venv of its own, for a tool whose dependencies fit no other's."""
    folder = tools_cache() / f"venv-{name}"
    with _alone(f"venv-{name}"):
        mark, wanted = folder / ".complete", "\n".join(requirements)
        if not mark.is_file() or mark.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            _run((sys.executable, "-m", "venv", folder))
            pip = (folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            _run((*pip, *requirements))
            mark.write_text(wanted)
    return folder / "bin"
