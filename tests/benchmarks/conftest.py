from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from benchmarks.peers.venvs import CACHE_VARIABLE


@pytest.fixture
def wrk() -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield
