from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def wrk() -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
