"""The Dockerfile as it stands: what linters say of it, and what two stages must have in common."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.support.render_tools import checkov
from tests.support.servers import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def hadolint(text: str) -> list[str]:
    """Codes of what hadolint finds, of any severity."""
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", "--no-fail", "--format", "json", "-"],
        input=text, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [found["code"] for found in json.loads(done.stdout)]


def checkov_findings(text: str, folder: Path) -> list[str]:
    """Ids of failed checks."""
    (folder / "Dockerfile").write_text(text)
    done = subprocess.run(
        [
            checkov(), "--file", folder / "Dockerfile", "--framework", "dockerfile", "--skip-download", "--compact",
            "--output", "json",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["summary"]["passed"] > 5, "checkov looked at nothing"
    return [found["check_id"] for found in report["results"]["failed_checks"]]


def last_stage(name: str) -> str:
    """The text of a stage, from its FROM to the next."""
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, flags=re.M | re.S)
    assert found
    return found[1]


def test_hadolint_finds_nothing() -> None:
    assert hadolint(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("RUN apt-get install -y curl", "DL3008"),
        ("USER root", "DL3002"),
        ("FROM python:latest", "DL3007"),
        ("RUN cd /tmp", "DL3003"),
        ("ADD a /b", "DL3020"),
    ],
)
def test_hadolint_finds_a_mistake(line: str, code: str) -> None:
    assert code in hadolint(f"{DOCKERFILE}{line}\n")


@pytest.mark.timeout(400)  # checkov is installed on first use
def test_checkov_finds_nothing(tmp_path: Path) -> None:
    assert checkov_findings(DOCKERFILE, tmp_path) == []


@pytest.mark.timeout(400)
def test_checkov_finds_mistakes(tmp_path: Path) -> None:
    changed = re.sub(r"^HEALTHCHECK .*\n", "", DOCKERFILE, flags=re.M)
    changed = re.sub(r"^USER .*\n", "USER root\nRUN sudo true\n", changed, flags=re.M)
    assert {"CKV_DOCKER_2", "CKV_DOCKER_8", "CKV2_DOCKER_1"} <= set(checkov_findings(changed, tmp_path))


def test_both_images_run_the_same_way() -> None:
    """All that is not about where the program comes from."""
    kinds = (
        "ARG",
        "ENV PATH",
        "    BITSERVE_",
        "WORKDIR",
        "USER",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    )
    cpu, gpu = ([line for line in last_stage(name).splitlines() if line.startswith(kinds)] for name in ("cpu", "gpu"))
    assert cpu == gpu
    assert len(cpu) > len(kinds)


def test_cpu_is_the_default_target() -> None:
    assert re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.M)[-1] == "cpu"


def test_the_version_is_the_projects() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert set(re.findall(r"^ARG VERSION=(\S+)$", DOCKERFILE, flags=re.M)) == {version}
    assert set(re.findall(r"bitserve(?:-gpu)?:(\S+)", DOCKERFILE)) == {version}


def test_no_address_of_a_registry_of_packages_is_written_down() -> None:
    """Which one is asked is a matter of where the image is built."""
    texts = [DOCKERFILE, *((ROOT / "deploy/image").glob("*"))]
    for text in (one if isinstance(one, str) else one.read_text() for one in texts):
        assert not re.search(r"https?://(?!127\.0\.0\.1)|--(extra-)?index-url|--find-links|trusted-host", text)
