"""Each check runs on the host and on a GPU; it says why where there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gpu.device import Gpu
from tests.gpu.layers import PluginLayers
from tests.gpu.machines import Machine, NoMachine, skip_or_fail
from tests.gpu.places import Place, RealPlace, SimulatedPlace
from tests.gpu.plugins import Plugins
from tests.plugins.cuda.on_host import HostBuild
from tests.targets.gpu.on_host import Host

XOR, AND = 80, 90
"""GPUs that multiply bits in one way or the other: what the host can be told to do."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session")
def build(folder: Path) -> HostBuild:
    return HostBuild(folder)


@pytest.fixture(scope="session")
def host(build: HostBuild) -> Callable[[int], Host]:
    return lambda sm: Host(build, sm)


@contextlib.contextmanager
def the_gpu(folder: Path) -> Iterator[Gpu]:
    """Skips where there is none."""
    try:
        gpu = Gpu(folder)
    except NoMachine as none:
        skip_or_fail(none)
    with contextlib.closing(gpu):
        yield gpu


@pytest.fixture(scope="session")
def gpu(folder: Path) -> Iterator[Gpu]:
    with the_gpu(folder) as found:
        yield found


@pytest.fixture(params=["host", "gpu"])
def machine(request: pytest.FixtureRequest) -> Machine:
    if request.param == "gpu":
        found: Machine = request.getfixturevalue("gpu")
        return found
    made: Host = request.getfixturevalue("host")(XOR)
    return made


@pytest.fixture(params=["host, XOR", "host, AND", "gpu"])
def layers(request: pytest.FixtureRequest) -> Iterator[PluginLayers]:
    """By plugins; the GPU takes the way that its SM has."""
    if request.param == "gpu":
        on = request.getfixturevalue("gpu")
    else:
        on = request.getfixturevalue("host")({"host, XOR": XOR, "host, AND": AND}[request.param])
    with Plugins(on) as plugins:
        yield PluginLayers(plugins)
    assert plugins.refused == []


@pytest.fixture(params=["simulated TensorRT", "simulated TensorRT-RTX", "gpu"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Place]:
    try:
        made: Place = (
            RealPlace(tmp_path)
            if request.param == "gpu"
            else SimulatedPlace(str(request.param).removeprefix("simulated ").lower(), monkeypatch, tmp_path)
        )
    except NoMachine as none:
        skip_or_fail(none)
    with contextlib.closing(made):
        yield made
