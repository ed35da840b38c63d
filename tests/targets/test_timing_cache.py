"""Times of kernels: one file for each GPU, driver and version, and one builder at a time. No TensorRT is needed."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.hardware import Gpu
from engines.targets.tensorrt_options import PlanOptions
from engines.targets.tensorrt_seam import TensorRT

GPU = Gpu("NVIDIA A10", "580.95", 86)


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data


class Config:
    """As IBuilderConfig: what it does not understand gives no cache."""

    def create_timing_cache(self, data: bytes) -> Cache | None:
        return None if data.startswith(b"broken") else Cache(data)

    def set_timing_cache(self, cache: Cache | None, ignore_mismatch: bool) -> None:
        assert cache is not None
        assert not ignore_mismatch
        self.cache = cache

    def get_timing_cache(self) -> Cache:
        return self.cache


def library(gpu: Gpu = GPU, version: str = "11.4.0") -> TensorRT:
    made = TensorRT.__new__(TensorRT)
    made.trt, made._gpu = SimpleNamespace(__version__=version), gpu
    return made


def options(folder: Path) -> PlanOptions:
    return PlanOptions(profiles=(), timing_cache=str(folder))


def built(library: TensorRT, folder: Path, adds: bytes) -> bytes:
    """What the build found; it adds what it measured."""
    config: Any = Config()
    with library.timed(config, options(folder)):
        found = config.cache.data
        config.cache.data += adds
    return bytes(found)


def test_what_one_build_has_measured_the_next_one_finds(tmp_path: Path) -> None:
    assert built(library(), tmp_path, b"a") == b""
    assert built(library(), tmp_path, b"b") == b"a"
    assert built(library(), tmp_path, b"") == b"ab"


@pytest.mark.parametrize(
    "other",
    [library(GPU._replace(name="NVIDIA L4")), library(GPU._replace(driver="580.96")), library(version="11.4.1")],
)
def test_times_of_another_gpu_driver_or_version_are_not_used(tmp_path: Path, other: TensorRT) -> None:
    built(library(), tmp_path, b"a")
    assert built(other, tmp_path, b"") == b""
    assert len(list(tmp_path.glob("*.timing"))) == 2


def test_a_damaged_file_is_measured_anew(tmp_path: Path) -> None:
    built(library(), tmp_path, b"a")
    (file,) = tmp_path.glob("*.timing")
    file.write_bytes(b"broken")
    assert built(library(), tmp_path, b"c") == b""
    assert file.read_bytes() == b"c"


def test_a_build_that_fails_leaves_the_times_as_they_were(tmp_path: Path) -> None:
    built(library(), tmp_path, b"a")
    with pytest.raises(TypeError):
        built(library(), tmp_path, "no bytes")  # type: ignore[arg-type]
    assert built(library(), tmp_path, b"") == b"a"


def test_one_builder_at_a_time(tmp_path: Path) -> None:
    """Eight at once each add their own letter; were two of them in at once, one's letter would be lost."""
    barrier = threading.Barrier(8)

    def build(letter: bytes) -> None:
        barrier.wait()
        built(library(), tmp_path, letter)

    threads = [threading.Thread(target=build, args=(bytes([letter]),)) for letter in b"abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(built(library(), tmp_path, b"")) == sorted(b"abcdefgh")


def test_no_folder_means_no_times(tmp_path: Path) -> None:
    config: Any = Config()
    with library().timed(config, PlanOptions(profiles=())):
        assert not hasattr(config, "cache")
    assert list(tmp_path.iterdir()) == []
