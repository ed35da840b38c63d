"""Builds as Jobs: made, watched, deleted. What they are is in the cluster and in the store, and nothing in here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from app.builds.shared.name import job_name
from app.builds.shared.records import Note, Records, Seen
from app.builds.shared.silence import Silence
from app.builds.state import BuildState
from app.builds.store import now
from app.cluster.api import Cluster
from app.cluster.errors import ClusterError, ClusterRefused, NoSuchObject
from app.cluster.job import BUILD_LABEL, JobOptions, job_of, selector_of
from app.cluster.told import failure_of, has_finished, last_of, waits_for
from app.cluster.watching import Jobs
from app.tasks import Tasks
from app.words import printable

__all__ = ["JobRunner"]

log = logging.getLogger(__name__)
Object = dict[str, Any]
_AGAIN_S = 5.0
_LOG_LINES = 20
_POD_WITHIN_S = 10.0


class JobRunner:
    """Satisfies `app.builds.shared.builds.Runner`. Several servers may do all of this at once: a Job's name is its
    build's, and of several that say how a build has ended the store takes the first.
    """

    def __init__(
        self, records: Records, connect: Callable[[], Awaitable[Cluster]], options: JobOptions,
        wake: Callable[[], None], silence: Silence, pod_name: str = "",
    ) -> None:  # fmt: skip
        """`pod_name`: of the server's own pod; empty: it is named as its host, which most are."""
        self._pod_name = pod_name or socket.gethostname()
        self._records, self._connect, self._options, self._wake = records, connect, options, wake
        self._silence = silence
        self._cluster: Cluster | None = None
        self._pod: Object = {}
        self._jobs: Jobs | None = None
        self._notes: dict[str, str] = {}
        self._without_pods: dict[str, float] = {}
        self._tasks = Tasks()

    async def start(self) -> None:
        """Returns at once; until the API has answered, builds wait."""
        self._tasks.spawn(self._follow())

    async def _follow(self) -> None:
        while True:
            try:
                self._cluster = self._cluster or await self._connect()
                self._pod = await self._cluster.pod(self._pod_name)
                break
            except ClusterError as error:
                log.error("builds wait: %s", self._why_no_pod(error))
            except Exception:
                log.exception("builds wait: the cluster's API cannot be asked")
            await asyncio.sleep(_AGAIN_S)
        self._jobs = Jobs(self._cluster, selector_of(self._pod), self._wake)
        await self._jobs.follow()

    def _why_no_pod(self, error: ClusterError) -> str:
        if isinstance(error, NoSuchObject):
            return f"there is no pod {self._pod_name!r}, and Jobs are made after the server's own: see setting pod_name"
        return str(error)

    # -- Runner --------------------------------------------------------------------------------------------------

    async def look(self, active: Sequence[Seen]) -> None:
        """Make Jobs that are missing, end builds whose Jobs have failed, delete Jobs whose builds were cancelled."""
        self._silence.look(active)
        there = {seen.id for seen in active}
        self._notes = {build: note for build, note in self._notes.items() if build in there}
        self._without_pods = {build: since for build, since in self._without_pods.items() if build in there}
        cluster, jobs = self._cluster, self._jobs
        if cluster is None or jobs is None or jobs.known is None:
            self._notes.update(dict.fromkeys(there, "it waits for the cluster's API"))
            return
        known = dict(jobs.known)
        try:
            pods = await cluster.pods(selector_of(self._pod)) if active else []
        except ClusterError as error:
            self._notes.update(dict.fromkeys(there, f"it waits: {error}"))
            return
        for seen in active:
            theirs = [pod for pod in pods if _build_of(pod) == seen.id]
            try:
                await self._see_to(cluster, seen, known.get(job_name(seen.id)), theirs)
            except ClusterError as error:  # of this one: others go on
                self._notes[seen.id] = printable(f"it waits: {error}")
            except KeyError:  # removed since the listing
                log.info("build %s has been removed", seen.id)
        for name, job in known.items():
            if not has_finished(job) and _build_of(job) not in there:
                await self._delete_if_ended(cluster, _build_of(job), name)

    async def _see_to(self, cluster: Cluster, seen: Seen, job: Object | None, pods: Sequence[Object]) -> None:
        if job is None:
            job = await self._job_behind(cluster, seen)
        if job is None:
            # a server that builds itself may be at it, or a pod that has lost its Job
            if await self._silence.is_free(seen):
                await self._make(cluster, seen)
            return
        if failure_of(job, pods):
            last = last_of(pods)
            said = await cluster.log_of(last["metadata"]["name"], _LOG_LINES) if last is not None else ""
            await self._fail(seen, failure_of(job, pods, said))
            return
        self._notes[seen.id] = printable(waits_for(pods)) if pods or seen.has_begun else self._why_no_pods(seen.id)

    def _why_no_pods(self, build: str) -> str:
        """The API tells it in events, which are not the server's to read."""
        since_s = self._without_pods.setdefault(build, time.monotonic())
        if time.monotonic() - since_s < _POD_WITHIN_S:
            return ""
        return f"its Job has no pod yet: `kubectl describe job {job_name(build)}` tells why"

    async def _job_behind(self, cluster: Cluster, seen: Seen) -> Object | None:
        """Of a build that somebody has claimed: the watch may be behind."""
        with contextlib.suppress(NoSuchObject):
            return await cluster.job(job_name(seen.id)) if seen.claims else None
        return None

    async def _make(self, cluster: Cluster, seen: Seen) -> None:
        asked = await self._records.asked(seen)
        job = job_of(self._pod, seen.id, asked.model, asked.targets, self._options)
        try:
            if await cluster.create_job(job):
                log.info("Job %s is made", job["metadata"]["name"])
            self._notes[seen.id] = ""
        except ClusterRefused as error:
            await self._fail(seen, f"its Job could not be made: {error}")

    async def _fail(self, seen: Seen, reason: str) -> None:
        """Unless it has ended otherwise: the Job's process may have said so just before."""
        progress = (await self._records.note(seen)).progress
        changes = {"state": BuildState.FAILED, "error": printable(reason), "ended": now(), "version": None}
        await self._records.end(seen.id, Note(progress=progress.model_copy(update=changes)))

    async def _delete_if_ended(self, cluster: Cluster, build: str, name: str) -> None:
        """Not where its own process has just said that it succeeded, and is about to end."""
        with contextlib.suppress(KeyError, ClusterError):
            progress = (await self._records.note(await self._records.one(build))).progress
            if progress.state is BuildState.CANCELLED:
                await cluster.delete_job(name)

    async def cancelled(self, build: str) -> None:
        """Where the API is away, a later look deletes the Job."""
        if self._cluster is not None:
            self._tasks.spawn(self._delete(self._cluster, build))

    async def _delete(self, cluster: Cluster, build: str) -> None:
        try:
            await cluster.delete_job(job_name(build))
        except ClusterError as error:
            log.warning("the Job of build %s, which was cancelled, is deleted later: %s", build, error)

    def note(self, build: str) -> str:
        return self._notes.get(build, "")

    def begin_stop(self) -> None:
        """Jobs go on."""

    async def stop(self) -> None:
        self._tasks.cancel_all()
        await self._tasks.wait()
        if self._cluster is not None:
            await self._cluster.close()


def _build_of(job: Object) -> str:
    return str(job["metadata"].get("labels", {}).get(BUILD_LABEL, ""))
