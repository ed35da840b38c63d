"""Which builds get a Job: those that nobody is at, whoever else has the same store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client

from app.builds.shared.name import job_name
from app.builds.shared.records import Note, Records
from app.builds.shared.silence import Silence
from app.builds.state import BuildState, Progress
from app.cluster.api import Cluster
from app.cluster.job import JobOptions
from app.cluster.runner import JobRunner
from app.store.bucket import open_bucket
from tests.store.carrying import Clock, look, pass_time, stored
from tests.support.kubernetes import Kubernetes
from tests.support.stores import Store

pytestmark = pytest.mark.timeout(300)
RUNNING = Progress(state=BuildState.RUNNING, stage="compile", attempts=1)


@pytest.fixture
def records(store: Store, monkeypatch: pytest.MonkeyPatch) -> Records:
    for name, value in store.env.items():
        monkeypatch.setenv(name, value)
    return Records(open_bucket(store.url))


@contextlib.asynccontextmanager
async def running(cluster: Kubernetes, records: Records, clock: Clock) -> AsyncIterator[JobRunner]:
    """A runner that knows the cluster's Jobs."""

    async def connect() -> Cluster:
        configuration = client.Configuration(host=cluster.url, api_key={"BearerToken": f"Bearer {cluster.token}"})
        return Cluster(client.ApiClient(configuration), cluster.namespace)

    options = JobOptions(2**31, 600.0)
    runner = JobRunner(records, connect, options, lambda: None, Silence(records, now_s=clock))
    await runner.start()
    try:
        while runner._jobs is None or runner._jobs.known is None:
            await asyncio.sleep(0.01)
        yield runner
    finally:
        await runner.stop()


def names(cluster: Kubernetes) -> list[Any]:
    return [job["metadata"]["name"] for job in cluster.jobs]


@pytest.mark.anyio
async def test_a_build_that_a_server_is_at_gets_no_job_until_that_is_silent(cluster, records, tmp_path: Path) -> None:
    """Servers of the same store may build themselves, as while they are told to leave that to the cluster."""
    build, clock = await stored(records, tmp_path), Clock()
    assert await records.claim(build, 1, "a-server")
    async with running(cluster, records, clock) as runner:
        await look(runner, records)
        await records.write_note(build, Note(progress=RUNNING, by="a-server", claim=1, beat=1))
        await look(runner, records)
        await pass_time(runner, records, clock, 55)
        assert names(cluster) == []
        await records.write_note(build, Note(progress=RUNNING, by="a-server", claim=1, beat=2))
        await pass_time(runner, records, clock, 55)
        assert names(cluster) == [], "something was heard of it"
        await pass_time(runner, records, clock, 15)
        assert names(cluster) == [job_name(build)]
        assert not (await records.one(build)).has_ended


@pytest.mark.anyio
async def test_a_build_that_was_given_back_gets_a_job_at_once(cluster, records, tmp_path: Path) -> None:
    build, clock = await stored(records, tmp_path), Clock()
    assert await records.claim(build, 1, "a-server")
    given_back = RUNNING.model_copy(update={"state": BuildState.QUEUED, "attempts": 0})
    await records.write_note(build, Note(progress=given_back, by="", claim=1, beat=1))
    async with running(cluster, records, clock) as runner:
        await look(runner, records)
        assert names(cluster) == [job_name(build)]


@pytest.mark.anyio
async def test_a_job_that_was_deleted_while_it_ran_is_made_again_once_its_pod_is_silent(
    cluster, records, tmp_path: Path
) -> None:
    build, clock = await stored(records, tmp_path), Clock()
    async with running(cluster, records, clock) as runner:
        await look(runner, records)
        assert await records.claim(build, 1, f"{job_name(build)}-0123")
        await records.write_note(build, Note(progress=RUNNING, by=f"{job_name(build)}-0123", claim=1, beat=1))
        cluster.delete_job(job_name(build))
        while job_name(build) in (runner._jobs.known or {}):
            await asyncio.sleep(0.01)
        await look(runner, records)
        assert names(cluster) == []
        await pass_time(runner, records, clock, 70)
        assert names(cluster) == [job_name(build)]
