"""One build of the kernels for the host, shared by all tests of a session."""

from __future__ import annotations

import os

import pytest

from tests.plugins.cuda.on_host import HostBuild, missing


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> HostBuild:
    absent = missing()
    if absent and os.environ.get("CI") != "true":
        pytest.skip(f"needs {', '.join(absent)}; see .ci/debian-packages.txt")
    assert not absent
    return HostBuild(tmp_path_factory.mktemp("on_host"))
