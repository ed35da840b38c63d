"""`python -m deploy.check`: a line for every validator, and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.check import VALIDATORS, NotChecked, Validator, line
from tests.deploy.support.render import RenderError
from tests.deploy.support.render_tools import ROOT, ToolMissing

pytestmark = pytest.mark.timeout(600)  # tools are installed on first use


def check(**env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.check"]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def fails_with(error: Exception) -> Validator:
    def findings() -> list[str]:
        raise error

    return Validator("tool", "what it checks", findings)


def test_all_is_well() -> None:
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [said.partition(": ")[0] for said in lines] == [validator.name for validator in VALIDATORS]
    assert all(said.endswith(": ok") or ": not checked: " in said for said in lines), lines


def test_without_its_tools_it_says_what_to_install_and_fails(tmp_path: Path) -> None:
    done = check(BITSERVE_TOOLS_CACHE=str(tmp_path), PATH=str(tmp_path), PIP_NO_INDEX="1")
    assert done.returncode == 1
    lines = {said.partition(": ")[0]: said for said in done.stdout.splitlines()}
    assert set(lines) == {validator.name for validator in VALIDATORS}
    for name in ("kubectl kustomize", "helm template"):
        assert "failed, not installed" in lines[name]
        assert "apt-get install npm" in lines[name]


def test_what_is_found_follows() -> None:
    said = line(Validator("tool", "what it checks", lambda: ["one", "two"]))
    assert said == ("tool: what it checks: failed", True, ["one", "two"])
    assert line(Validator("tool", "what it checks", list)) == ("tool: what it checks: ok", False, [])


def test_what_cannot_be_rendered_or_installed_fails() -> None:
    said = line(fails_with(RenderError("a\nb")))
    assert said == ("tool: what it checks: failed", True, ["a", "b"])
    said = line(fails_with(ToolMissing("apt-get install it")))
    assert said == ("tool: what it checks: failed, not installed: apt-get install it", True, [])


def test_what_has_nothing_to_be_checked_against_is_said() -> None:
    said = line(fails_with(NotChecked("no folder")))
    assert said == ("tool: what it checks: not checked: no folder", False, [])
