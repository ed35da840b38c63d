"""A store for all tests of a process, a prefix of it and a cluster for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kubelet import Kubelet, cluster_of
from tests.support.kubernetes import Kubernetes
from tests.support.stores import Store, moto

_numbers = itertools.count()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def moto_server() -> Iterator[Store]:
    with moto() as store:
        yield store


@pytest.fixture
def store(moto_server: Store) -> Store:
    return moto_server._replace(url=f"s3://models/cluster{next(_numbers)}/a")


@pytest.fixture
def cluster() -> Iterator[Kubernetes]:
    with cluster_of() as made:
        yield made


@pytest.fixture
def kubelet(cluster: Kubernetes, store: Store, tmp_path: Path) -> Iterator[Kubelet]:
    made = Kubelet(cluster, store, tmp_path)
    try:
        yield made
    finally:
        made.end()
