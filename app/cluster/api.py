"""What is asked of the API of a Kubernetes cluster: Jobs, their pods and logs, of one namespace, as plain objects."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from app.cluster.errors import ClusterError, ClusterRefused, NoSuchObject

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

__all__ = ["RIGHTS", "Change", "Cluster", "Gone", "connect"]

log = logging.getLogger(__name__)
Object = dict[str, Any]
RIGHTS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("batch", "jobs"): ("create", "delete", "get", "list", "watch"),
    ("", "pods"): ("get", "list"),
    ("", "pods/log"): ("get",),
}
"""Verbs by API group and resource: all that is asked for here. A Role of the server gives these, and no more."""
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_WITHIN_S = 10
_TRIES = 4
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 60.0
_WATCHED_S = 240
"""The API ends a watch by itself after some minutes; this is before any proxy on the way does."""
_TOO_OLD = int(HTTPStatus.GONE)
_LATER = frozenset({429, 500, 502, 503, 504})
_NOT_VALID = frozenset({400, 422})


class Gone(ClusterError):
    """What is watched has changed more often than the API remembers: it is listed anew."""


class Change(NamedTuple):
    """`kind` is ADDED, MODIFIED, DELETED or BOOKMARK, whose object has no more than a version."""

    kind: str
    object: Object


async def connect() -> Cluster:
    """As the service account of this pod; elsewhere, as the file says that `KUBECONFIG` names.

    Raises ClusterRefused where there is neither.
    """
    try:
        await asyncio.to_thread(importlib.import_module, "kubernetes_asyncio")  # half a second of reading
        from kubernetes_asyncio import client, config
    except ImportError as error:
        raise ClusterRefused("builds as Jobs need kubernetes-asyncio: pip install 'bitserve[kubernetes]'") from error
    configuration = client.Configuration()
    namespace = "default"
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        with contextlib.suppress(OSError):
            namespace = (await asyncio.to_thread(_NAMESPACE.read_text)).strip()
    except config.ConfigException:
        try:
            loader = await config.load_kube_config(client_configuration=configuration, persist_config=False)
            namespace = (loader.current_context or {}).get("context", {}).get("namespace", namespace)
        except (config.ConfigException, OSError) as error:
            raise ClusterRefused("this is no pod of a cluster, and KUBECONFIG names no file of one") from error
    return Cluster(client.ApiClient(configuration), namespace)


class Cluster:
    """Every method raises ClusterError where the API does not answer after some tries, ClusterRefused where it won't
    do what it is asked.
    """

    def __init__(self, client: ApiClient, namespace: str) -> None:
        from kubernetes_asyncio.client import BatchV1Api, CoreV1Api

        self._client, self.namespace = client, namespace
        self._batch, self._core = BatchV1Api(client), CoreV1Api(client)

    async def close(self) -> None:
        await self._client.close()

    async def create_job(self, job: Object) -> bool:
        """False where there is one of this name."""
        try:
            await self._asked("make a Job", self._batch.create_namespaced_job, self.namespace, job)
        except _Conflict:
            return False
        return True

    async def job(self, name: str) -> Object:
        """Raises NoSuchObject."""
        found: Object = await self._asked("read a Job", self._batch.read_namespaced_job, name, self.namespace)
        return found

    async def jobs(self, selector: str) -> tuple[list[Object], str]:
        """All, and the version of the list, from which they can be watched."""
        found: list[Object] = []
        further = ""
        while True:
            more: dict[str, Any] = {"_continue": further} if further else {}
            page = await self._asked(
                "list Jobs", self._batch.list_namespaced_job, self.namespace, label_selector=selector, limit=500, **more
            )
            found += page.get("items") or []
            further = page["metadata"].get("continue") or ""
            if not further:
                return found, str(page["metadata"].get("resourceVersion", ""))

    async def watch_jobs(self, selector: str, version: str) -> AsyncIterator[Change]:
        """Changes after a version, until the API ends it. Raises Gone where it does not remember that version."""
        with _told("watch Jobs"):
            answer: Any = await self._batch.list_namespaced_job(
                self.namespace, label_selector=selector, resource_version=version, watch=True,
                allow_watch_bookmarks=True, timeout_seconds=_WATCHED_S, _preload_content=False,
                _request_timeout=_WATCHED_S + _WITHIN_S,
            )  # fmt: skip
            try:
                _check(answer.status, await _text_if_bad(answer), answer.headers)
                async for line in answer.content:
                    if line.endswith(b"\n"):  # else the connection was lost in the middle
                        yield _change(line)
            finally:
                answer.close()

    async def delete_job(self, name: str) -> None:
        """With its pods, which are told to go. One that is not there is no error."""
        with contextlib.suppress(NoSuchObject):
            await self._asked(
                "delete a Job", self._batch.delete_namespaced_job, name, self.namespace,
                propagation_policy="Background",
            )  # fmt: skip

    async def pods(self, selector: str) -> list[Object]:
        page = await self._asked("list pods", self._core.list_namespaced_pod, self.namespace, label_selector=selector)
        return list(page.get("items") or [])

    async def pod(self, name: str) -> Object:
        """Raises NoSuchObject."""
        found: Object = await self._asked("read a pod", self._core.read_namespaced_pod, name, self.namespace)
        return found

    async def log_of(self, pod: str, lines: int) -> str:
        """The end of what a pod has said; empty where there is nothing."""
        try:
            return str(await self._asked(
                "read a log", self._core.read_namespaced_pod_log, pod, self.namespace, tail_lines=lines, plain=True
            ))  # fmt: skip
        except ClusterError as error:  # it is a help, no more
            log.warning("the log of pod %s is not read: %s", pod, error)
            return ""

    async def _asked(
        self, what: str, call: Callable[..., Awaitable[Any]], *arguments: Any, plain: bool = False, **options: Any
    ) -> Any:
        """Again, with jitter, where the API has no time, and when it says: every call may be made twice."""
        for attempt in range(_TRIES):
            try:
                with _told(what):
                    answer = await call(*arguments, **options, _preload_content=False, _request_timeout=_WITHIN_S)
                    body = (await answer.read()).decode("utf-8", "replace")
                    _check(answer.status, body, answer.headers)
                    return body if plain else json.loads(body)
            except _Later as error:
                if attempt == _TRIES - 1:
                    raise ClusterError(str(error)) from error
                pause_s = error.after_s or _PAUSE_S * 2**attempt * random.uniform(0.5, 1.5)
                await asyncio.sleep(min(pause_s, _LONGEST_PAUSE_S))
        raise AssertionError


class _Conflict(ClusterError):
    """There is an object of this name."""


class _Later(ClusterError):
    """The API has no time now, or was not reached."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


async def _text_if_bad(answer: Any) -> str:
    return "" if answer.status < 300 else (await answer.read()).decode("utf-8", "replace")


def _check(status: int, body: str, headers: Any) -> None:
    """Raise what an answer's status means."""
    if status < 300:
        return
    said = _message(body)
    text = f"the cluster's API answers {status}: {said}" if said else f"the cluster's API answers {status}"
    if status == HTTPStatus.NOT_FOUND:
        raise NoSuchObject(text)
    if status == HTTPStatus.CONFLICT:
        raise _Conflict(text)
    if status == _TOO_OLD:
        raise Gone(text)
    if status in _LATER:
        raise _Later(text, _seconds(headers.get("Retry-After", "")))
    if status in _NOT_VALID:
        raise ClusterRefused(text)
    raise ClusterError(text)  # such as no right to: that may be given


def _message(body: str) -> str:
    """Of a Status object."""
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(body).get("message", ""))[:300]
    return ""


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0


def _change(line: bytes) -> Change:
    try:
        event = json.loads(line)
        change = Change(str(event["type"]), event["object"])
    except (ValueError, KeyError, TypeError) as error:
        raise _Later("the cluster's API sends a change that cannot be read") from error
    if change.kind == "ERROR":
        _check(int(change.object.get("code", 500)), json.dumps(change.object), {})
    return change


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """The library's errors as ours."""
    import aiohttp
    from kubernetes_asyncio.client.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        _check(error.status or 500, str(error.body or ""), error.headers or {})
        raise ClusterRefused(f"cannot {what}: {error.reason}") from error
    except ssl.SSLError as error:
        raise ClusterRefused(f"cannot {what}: the cluster's API shows no certificate that is trusted") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _Later(f"cannot {what}: the cluster's API does not answer") from error
    except ValueError as error:
        raise _Later(f"cannot {what}: the cluster's API answers with something else") from error
