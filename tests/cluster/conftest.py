"""A store for all tests of a process, a prefix of it and a cluster for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kubelet import Kubelet, cluster_of
from tests.store.conftest import anyio_backend, moto_server, store
from tests.support.kubernetes import Kubernetes
from tests.support.stores import Store

__all__ = ["anyio_backend", "cluster", "kubelet", "moto_server", "store"]


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
