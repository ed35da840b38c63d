"""What can be set of builds as Jobs, and what is refused before anything runs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.settings import Settings


def refused(**fields: str) -> str:
    with pytest.raises(ValidationError) as error:
        Settings(**fields)  # type: ignore[arg-type]
    return str(error.value)


def test_jobs_need_a_store() -> None:
    assert "needs a repository in a store (s3://...)" in refused(build_executor="kubernetes")
    settings = Settings(build_executor="kubernetes", repository="s3://bucket/models")
    assert settings.store == "s3://bucket/models"
    assert "'process' or 'kubernetes'" in refused(build_executor="nomad")


def test_labels_are_pairs() -> None:
    assert "expected labels as key=value,key=value, this has 'gpu'" in refused(build_gpu_selector="a=b,gpu")
    assert Settings(build_gpu_selector="a=b, c=d").gpu_selector == {"a": "b", "c": "d"}
    assert Settings(build_gpu_selector="").gpu_selector == {}
    assert Settings().gpu_selector == {"nvidia.com/gpu.present": "true"}
