"""The lock files: what pyproject.toml asks for, pinned and hashed, and all that this asks for in turn."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.deploy.support.image import tool_venv
from tests.support.servers import ROOT

FOLDER = ROOT / "deploy/image"
NAMES = ("cpu", "gpu", "build")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"cpu": ("store", "kubernetes"), "gpu": ("store", "kubernetes", "gpu")}
LINE = re.compile(
    r"^(?P<name>[a-z0-9.-]+)==(?P<version>\S+)(?: ; (?P<marker>.*?))?(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})+)$"
)


def entries(text: str) -> list[re.Match[str]]:
    """The requirements of a lock file; AssertionError names a line that is no pinned and hashed one."""
    whole = re.sub(r" \\\n +", " ", re.sub(r"^ *#.*\n", "", text, flags=re.M))
    found = [(line, LINE.match(line)) for line in whole.splitlines() if line]
    assert [line for line, match in found if match is None] == []
    return [match for _, match in found if match]


def pins(name: str) -> dict[str, set[Version]]:
    """Versions by name: more than one where another Python needs another."""
    found: dict[str, set[Version]] = {}
    for entry in entries((FOLDER / f"requirements-{name}.txt").read_text()):
        found.setdefault(entry["name"], set()).add(Version(entry["version"]))
    return found


def unfit(requirements: list[str], pinned: dict[str, set[Version]]) -> list[str]:
    """Requirements that a lock file does not meet."""
    asked = [Requirement(text) for text in requirements]
    return [
        str(one)
        for one in asked
        if not (found := pinned.get(one.name.lower().replace("_", "-"))) or not all(v in one.specifier for v in found)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_line_is_pinned_and_hashed(name: str) -> None:
    assert entries((FOLDER / f"requirements-{name}.txt").read_text())


@pytest.mark.parametrize("line", ["numpy>=2", "numpy==2.4.6", "--index-url https://example.org/simple"])
def test_a_line_that_is_not_is_found(line: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(line)):
        entries(f"{(FOLDER / 'requirements-cpu.txt').read_text()}{line}\n")


@pytest.mark.parametrize("name", EXTRAS)
def test_the_ranges_of_the_project_hold(name: str) -> None:
    asked = [
        *PROJECT["dependencies"],
        *(one for extra in EXTRAS[name] for one in PROJECT["optional-dependencies"][extra]),
    ]
    assert len(asked) > 20
    assert unfit(asked, pins(name)) == []


def test_what_the_builder_asks_for_holds() -> None:
    """The project's build backend among it; openvino's headers come with the dependencies."""
    lines = [line.partition("#")[0].strip() for line in (FOLDER / "build.in").read_text().splitlines()]
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    asked = [*filter(None, lines), *(one for one in backend if not one.startswith("openvino"))]
    assert unfit(asked, pins("build")) == []


def test_a_range_that_does_not_hold_is_found() -> None:
    assert unfit(["numpy>=99", "nothing-of-the-kind>=1", "onnx>=1.21,<2"], pins("cpu")) == [
        "numpy>=99", "nothing-of-the-kind>=1",
    ]  # fmt: skip


def test_both_images_have_one_version_of_what_they_share() -> None:
    """The wheel with the kernels is compiled once, against the openvino of the first."""
    cpu, gpu = pins("cpu"), pins("gpu")
    assert set(cpu) <= set(gpu)
    assert {name: gpu[name] for name in cpu} == cpu


def test_what_the_image_of_gpus_builds_apart_is_in_its_lock() -> None:
    (names,) = re.findall(r"mine = /\^\((.*?)\)==/", (ROOT / "Dockerfile").read_text())
    apart = names.split("|")
    assert "pycuda" in apart
    assert set(apart) <= set(pins("gpu"))


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    """An environment in which `lock.sh` finds uv; it asks the index whose certificates this machine knows."""
    path = f"{tool_venv('uv', 'uv>=0.9,<1')}:{os.environ['PATH']}"
    return {**{key: value for key, value in os.environ.items() if not key.startswith("UV_")}, "PATH": path}


def renewed(lock: dict[str, str], folder: Path, without: str = "") -> dict[str, str]:
    """The lock files as `lock.sh` would leave them, from those that are there, a requirement dropped from each."""
    for name in NAMES:
        text = (FOLDER / f"requirements-{name}.txt").read_text()
        less = re.sub(rf"^{without}==.*\n(?:    .*\n)+", "", text, flags=re.M) if without else text
        (folder / f"requirements-{name}.txt").write_text(less)
    done = subprocess.run(
        [FOLDER / "lock.sh", "--out-dir", folder], env=lock, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name: (folder / f"requirements-{name}.txt").read_text() for name in NAMES}


def test_the_lock_files_are_whole(lock: dict[str, str], tmp_path: Path) -> None:
    """To make them anew, with the versions kept that they have, changes nothing."""
    for name, text in renewed(lock, tmp_path).items():
        assert text == (FOLDER / f"requirements-{name}.txt").read_text(), f"run deploy/image/lock.sh: {name} differs"


def test_a_dependency_of_a_dependency_that_is_missing_is_found(lock: dict[str, str], tmp_path: Path) -> None:
    """It comes back, so the file that lacks it would differ."""
    assert "\nmarkupsafe==" in renewed(lock, tmp_path, without="markupsafe")["cpu"]


def test_a_hash_that_is_wrong_is_refused(tmp_path: Path) -> None:
    """By pip, as the Dockerfile calls it."""
    text = (FOLDER / "requirements-cpu.txt").read_text()
    entry = next(match for match in entries(text) if match["name"] == "mdurl")
    for hashes, accepted in ((entry["hashes"], True), (f" --hash=sha256:{'0' * 64}", False)):
        (tmp_path / "one.txt").write_text(f"mdurl=={entry['version']}{hashes}\n")
        pip = [
            tool_venv("uv", "uv>=0.9,<1") / "python",
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-cache-dir",
        ]
        done = subprocess.run(
            [*pip, "--require-hashes", "--requirement", tmp_path / "one.txt", "--dest", tmp_path / str(accepted)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) is accepted, done.stderr
        assert ("DO NOT MATCH" in done.stderr) is not accepted
