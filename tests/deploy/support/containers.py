"""A container of the image, run as a cluster runs it: read-only, without a capability, with 1 GB and one CPU."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.deploy.support.image import Store, store
from tests.support.servers import TOKEN, free_port, until

__all__ = ["OWNER", "Container", "cache_folder", "give", "running_container"]

OWNER = 10001
"""User and group of the server in its container."""
CONFINED = ("--read-only", "--cap-drop=ALL", "--security-opt", "no-new-privileges", "--memory", "1g", "--cpus", "1")


def give(folder: Path) -> Path:
    """Make the server the owner of all that is there, as a cluster does with a volume."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OWNER, OWNER)
    return folder


def cache_folder(parent: Path) -> Path:
    """A new folder that the server may write."""
    folder = parent / f"cache-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    return give(folder)


class Container:
    """A server in a container of the host's network; `url` and `port` are its own."""

    def __init__(self, of: Store, name: str, port: int) -> None:
        self.store, self.name, self.port = of, name, port
        self.url = f"http://127.0.0.1:{port}"

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.store.podman("container", "inspect", self.name))[0]["State"])

    def log(self) -> str:
        return self.store.podman_output("logs", self.name)[1]

    def run(self, *command: str) -> str:
        """What a command prints that runs inside, as the server's user."""
        return self.store.podman("exec", self.name, *command)

    def python(self, program: str) -> str:
        return self.run("python", "-c", program)

    def index(self) -> dict[str, str]:
        """States by `model/version`."""
        entries = httpx.post(f"{self.url}/v2/repository/index", timeout=10, verify=False).json()
        return {f"{entry['name']}/{entry['version']}": entry["state"] for entry in entries}

    def alive(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/v2/health/live", timeout=5, verify=False).status_code == 200
        return False

    def wait_ready(self, *versions: str) -> None:
        """Until these, as `model/version`, are ready."""
        until(lambda: self.alive() or not self.state()["Running"], f"{self.name} live")
        assert self.state()["Running"], self.log()

        def settled() -> bool:
            index = self.index()
            return all(index.get(version, "LOADING") != "LOADING" for version in versions)

        until(settled, f"{versions} past loading", timeout_s=120, every_s=0.2)
        assert {version: self.index()[version] for version in versions} == dict.fromkeys(versions, "READY"), self.log()

    def stop(self, within_s: int = 30) -> int:
        """What `podman stop` does: SIGTERM, then SIGKILL after `within_s`. The exit code."""
        self.store.podman("stop", "--time", str(within_s), self.name)
        return int(self.state()["ExitCode"])


@contextlib.contextmanager
def running_container(
    image: str, models: Path, cache: Path, *flags: str, env: Mapping[str, str] | None = None, confined: bool = True,
) -> Iterator[Container]:  # fmt: skip
    """A started one, not waited for; removed however the test ends. `flags` are podman's."""
    container = Container(store(), f"bitserve-{uuid.uuid4().hex[:8]}", free_port())
    values = {
        "BITSERVE_HOST": "127.0.0.1",
        "BITSERVE_PORT": str(container.port),
        "BITSERVE_ADMIN_TOKEN": TOKEN,
        **(env or {}),
    }
    variables = [f"--env={name}={value}" for name, value in values.items()]
    volumes = ["--tmpfs", "/tmp", "--volume", f"{models}:/models", "--volume", f"{cache}:/cache"]
    command = ["run", "--detach", "--name", container.name, "--network", "host", *(CONFINED if confined else ())]
    try:
        container.store.podman(*command, *volumes, *variables, *flags, image)
        yield container
    finally:
        container.store.podman_output("rm", "--force", "--time", "5", container.name)
