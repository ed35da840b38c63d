"""One store of each kind for all tests of a process; every test has a prefix of its own in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.support.stores import Store, moto, rclone

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
    """A prefix of moto, empty."""
    return moto_server._replace(url=f"s3://models/test{next(_numbers)}/a")


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with rclone(tmp_path_factory.mktemp("rclone")) as store:
        yield store


@pytest.fixture
def reached(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same, for this process, too."""
    for name, value in store.env.items():
        monkeypatch.setenv(name, value)
    return store
