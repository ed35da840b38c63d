"""The double of Kubernetes, driven by the real client: it is no use unless that takes it for the API."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from kubernetes_asyncio.client import ApiClient, ApiException, BatchV1Api, CoreV1Api, V1DeleteOptions, V1Preconditions
from kubernetes_asyncio.config import new_client_from_config
from kubernetes_asyncio.watch import Watch

from tests.support.kubernetes import Kubernetes, run_container
from tests.support.kubernetes_samples import job, refused
from tests.support.servers import until

pytestmark = pytest.mark.anyio
TOKEN = "a token of a service account"
NAMESPACE = "models"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server() -> Iterator[Kubernetes]:
    with Kubernetes(NAMESPACE, TOKEN) as made:
        yield made


@pytest.fixture
async def client(server: Kubernetes, tmp_path: Path) -> AsyncIterator[ApiClient]:
    made = await new_client_from_config(config_file=str(server.kubeconfig(tmp_path)))
    async with made:
        yield made


@pytest.fixture
def batch(client: ApiClient) -> BatchV1Api:
    return BatchV1Api(client)


@pytest.fixture
def core(client: ApiClient) -> CoreV1Api:
    return CoreV1Api(client)


def direct(server: Kubernetes, method: str, path: str, **keys: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.request(method, server.url + path, headers=headers, verify=False, timeout=20, **keys)


async def quietly(call: Any) -> Any:
    """A call that blocks, and needs the loop to go on."""
    return await asyncio.to_thread(call)


async def test_a_job_is_kept_with_what_the_api_adds(server, batch):
    made = await batch.create_namespaced_job(NAMESPACE, job())
    assert made.metadata.uid
    assert made.metadata.creation_timestamp
    assert (made.metadata.generation, made.metadata.labels) == (1, {"app": "bitserve", "part": "build"})
    assert (made.spec.completions, made.spec.parallelism, made.spec.backoff_limit) == (1, 1, 1)
    assert made.spec.selector.match_labels == {"batch.kubernetes.io/controller-uid": made.metadata.uid}
    labels = made.spec.template.metadata.labels
    assert labels["batch.kubernetes.io/job-name"] == labels["job-name"] == "build-1"
    assert made.status.active is None
    read = await batch.read_namespaced_job("build-1", NAMESPACE)
    assert read == made
    assert [(one.method, one.query) for one in server.requests] == [("POST", {}), ("GET", {})]
    assert server.requests[0].body["metadata"]["name"] == "build-1"


async def test_a_name_is_taken_once(batch):
    await batch.create_namespaced_job(NAMESPACE, job())
    with refused(409, "AlreadyExists") as status:
        await batch.create_namespaced_job(NAMESPACE, job())
    assert status["message"] == 'jobs.batch "build-1" already exists'
    assert status["details"] == {"name": "build-1", "group": "batch", "kind": "jobs"}


async def test_lists_are_selected_and_come_in_pages(server, batch):
    for number in range(5):
        await batch.create_namespaced_job(NAMESPACE, job(f"build-{number}", even=str(number % 2 == 0).lower()))
    for selector, wanted in {
        "even=true": "024", "even!=true": "13", "even in (true, maybe)": "024", "app=bitserve,even notin (true)": "13",
        "!even": "", "even": "01234",
    }.items():  # fmt: skip
        found = await batch.list_namespaced_job(NAMESPACE, label_selector=selector)
        assert "".join(one.metadata.name[-1] for one in found.items) == wanted
    page = await batch.list_namespaced_job(NAMESPACE, limit=2)
    names = [one.metadata.name for one in page.items]
    assert page.metadata.remaining_item_count == 3
    await batch.delete_namespaced_job("build-4", NAMESPACE, propagation_policy="Background")
    rest = await batch.list_namespaced_job(NAMESPACE, _continue=page.metadata._continue)
    assert names + [one.metadata.name for one in rest.items] == [f"build-{number}" for number in range(5)]
    assert rest.metadata.resource_version == page.metadata.resource_version
    server.compact()
    with refused(410, "Expired"):
        await batch.list_namespaced_job(NAMESPACE, _continue=page.metadata._continue)


async def test_a_watch_tells_what_happens(server, batch):
    await batch.create_namespaced_job(NAMESPACE, job("before"))
    start = await batch.list_namespaced_job(NAMESPACE)
    await batch.create_namespaced_job(NAMESPACE, job("other", part="else"))
    seen = []
    async with Watch() as watch:
        events = watch.stream(
            batch.list_namespaced_job, NAMESPACE, label_selector="part=build", allow_watch_bookmarks=True,
            resource_version=start.metadata.resource_version, timeout_seconds=60,
        )  # fmt: skip
        await batch.create_namespaced_job(NAMESPACE, job())
        async for event in events:
            one = event["raw_object"]
            if event["type"] == "BOOKMARK":
                break
            seen.append((event["type"], one["metadata"]["name"], one["kind"]))
            if event["type"] == "ADDED":
                server.run_pod("build-1")
                server.succeed("build-1")
                server.expire("build-1")
            if event["type"] == "DELETED":
                server.bookmark()
        assert int(watch.resource_version) > int(start.metadata.resource_version)
    assert {name for _, name, _ in seen} == {"build-1"}
    kinds = [kind for kind, _, _ in seen]
    assert (kinds[0], kinds[-1], {*kinds[1:-1]}) == ("ADDED", "DELETED", {"MODIFIED"})
    await quietly(lambda: until(lambda: server.watching == 0, "the watch has gone with its client"))


async def test_a_watch_of_everything_begins_with_what_is_there(batch):
    await batch.create_namespaced_job(NAMESPACE, job())
    async with Watch() as watch:
        events = [
            event["type"] async for event in watch.stream(batch.list_namespaced_job, NAMESPACE, timeout_seconds=1)
        ]
    assert events == ["ADDED"]


@pytest.mark.parametrize("over_http", [False, True])
async def test_what_is_too_old_is_gone(server, batch, over_http):
    start = await batch.list_namespaced_job(NAMESPACE)
    version = start.metadata.resource_version
    server.compact(over_http)
    async with Watch() as watch:
        events = watch.stream(batch.list_namespaced_job, NAMESPACE, resource_version=version)
        with pytest.raises(ApiException) as caught:
            await anext(events)
    assert (caught.value.status, "too old resource version" in str(caught.value)) == (410, True)
    answer = direct(server, "GET", f"/apis/batch/v1/namespaces/models/jobs?watch=true&resourceVersion={version}")
    body = answer.json()
    assert answer.status_code == (410 if over_http else 200)
    assert (body if over_http else body["object"])["reason"] == "Expired"
    assert over_http or body["type"] == "ERROR"
    again = await batch.list_namespaced_job(NAMESPACE)
    path = f"/apis/batch/v1/namespaces/models/jobs?watch=true&resourceVersion={again.metadata.resource_version}"
    assert direct(server, "GET", f"{path}&timeoutSeconds=1").text == ""


@pytest.mark.parametrize("how", ["lost", "mid_line", "end"])
async def test_watches_are_cut(server, batch, how):
    await batch.create_namespaced_job(NAMESPACE, job())
    answer = await batch.list_namespaced_job(NAMESPACE, watch=True, _preload_content=False)
    assert json.loads(await answer.content.readline())["type"] == "ADDED"
    assert server.watching == 1
    assert server.cut_watches(how) == 1
    if how == "end":
        assert await answer.content.readline() == b""
    else:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()
    answer.close()
    assert (await batch.list_namespaced_job(NAMESPACE)).items


async def test_a_pod_goes_its_way(server, batch, core):
    made = await batch.create_namespaced_job(NAMESPACE, job())
    server.unschedulable("build-1", "0/3 nodes are available: 3 Insufficient memory.")
    (pod,) = (await core.list_namespaced_pod(NAMESPACE, label_selector="job-name=build-1")).items
    assert pod.metadata.owner_references[0].uid == made.metadata.uid
    assert (pod.status.phase, pod.status.conditions[0].reason) == ("Pending", "Unschedulable")
    assert await core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE) in ("", None)
    server.start_pod("build-1")
    with refused(400, "BadRequest") as status:
        await core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE)
    name = pod.metadata.name
    assert status["message"] == f'container "build" in pod "{name}" is waiting to start: ContainerCreating'
    server.run_pod("build-1")
    read = await batch.read_namespaced_job("build-1", NAMESPACE)
    assert (read.status.active, read.status.ready) == (1, 1)
    assert read.status.start_time
    server.set_log(name, "one\ntwo\nthree\n")
    assert await core.read_namespaced_pod_log(name, NAMESPACE, tail_lines=2) == "two\nthree\n"
    assert await core.read_namespaced_pod_log(name, NAMESPACE, container="build", limit_bytes=5) == "one\nt"
    for keys in ({"container": "none"}, {"previous": True}):
        with refused(400, "BadRequest"):
            await core.read_namespaced_pod_log(name, NAMESPACE, **keys)
    server.succeed("build-1")
    read = await batch.read_namespaced_job("build-1", NAMESPACE)
    assert (read.status.succeeded, read.status.active) == (1, None)
    assert [one.type for one in read.status.conditions] == ["SuccessCriteriaMet", "Complete"]
    pod = await core.read_namespaced_pod(name, NAMESPACE)
    assert (pod.status.phase, pod.status.container_statuses[0].state.terminated.exit_code) == ("Succeeded", 0)
    server.expire("build-1")
    for call in (batch.read_namespaced_job("build-1", NAMESPACE), core.read_namespaced_pod(name, NAMESPACE)):
        with refused(404, "NotFound"):
            await call


def ended(server: Kubernetes) -> list[str]:
    status = server.job("build-1")["status"]
    return [f"{one['type']} {one['reason']}" for one in status.get("conditions", ())]


async def test_pods_fail_until_the_job_does(server, batch, core):
    await batch.create_namespaced_job(NAMESPACE, job())
    server.fail_pod("build-1", "Evicted")
    assert (server.job("build-1")["status"].get("failed"), ended(server)) == (None, []), "the policy ignores it"
    server.fail_pod("build-1")
    assert (server.job("build-1")["status"]["failed"], ended(server)) == (1, [])
    server.fail_pod("build-1")
    assert ended(server) == ["FailureTarget BackoffLimitExceeded", "Failed BackoffLimitExceeded"]
    pods = (await core.list_namespaced_pod(NAMESPACE)).items
    said = sorted((one.status.reason or "", one.status.container_statuses[0].state.terminated.reason) for one in pods)
    assert said == [("", "OOMKilled"), ("", "OOMKilled"), ("Evicted", "Error")]


async def test_a_job_ends_by_its_policy_or_its_deadline(server, batch):
    await batch.create_namespaced_job(NAMESPACE, job())
    server.fail_pod("build-1", "Error", 2)
    assert ended(server) == ["FailureTarget PodFailurePolicy", "Failed PodFailurePolicy"]
    assert "exit code 2 matching FailJob rule at index 1" in server.job("build-1")["status"]["conditions"][1]["message"]
    await batch.delete_namespaced_job("build-1", NAMESPACE, propagation_policy="Background")
    await batch.create_namespaced_job(NAMESPACE, job())
    server.run_pod("build-1")
    server.deadline("build-1")
    assert ended(server) == ["FailureTarget DeadlineExceeded", "Failed DeadlineExceeded"]
    assert server.pods("build-1") == [], "they are deleted, and so are their logs"


async def test_pods_go_with_their_job_or_stay(server, batch):
    for policy, left in (("Background", 0), ("Foreground", 0), ("Orphan", 1)):
        await batch.create_namespaced_job(NAMESPACE, job())
        server.run_pod("build-1")
        answer = await batch.delete_namespaced_job(
            "build-1", NAMESPACE, body=V1DeleteOptions(propagation_policy=policy)
        )
        assert answer.status == ("Success" if policy == "Background" else answer.status)
        assert (server.jobs, len(server.pods())) == ([], left)
    await batch.create_namespaced_job(NAMESPACE, job())
    answer = direct(server, "DELETE", "/apis/batch/v1/namespaces/models/jobs/build-1")
    assert "child pods are preserved by default" in answer.headers["warning"]
    assert answer.json()["metadata"]["finalizers"] == ["orphan"]
    with refused(404, "NotFound") as status:
        await batch.delete_namespaced_job("build-1", NAMESPACE, propagation_policy="Background")
    assert status["message"] == 'jobs.batch "build-1" not found'


async def test_another_job_of_the_name_is_not_deleted(server, batch):
    await batch.create_namespaced_job(NAMESPACE, job())
    body = V1DeleteOptions(propagation_policy="Background", preconditions=V1Preconditions(uid="another"))
    with refused(409, "Conflict") as status:
        await batch.delete_namespaced_job("build-1", NAMESPACE, body=body)
    assert "does not match the UID in record" in status["message"]
    assert len(server.jobs) == 1


async def test_who_may_not_is_told(server, batch, core):
    server.forbid("create", "jobs")
    with refused(403, "Forbidden") as status:
        await batch.create_namespaced_job(NAMESPACE, job())
    assert status["message"] == (
        'jobs.batch is forbidden: User "system:serviceaccount:models:bitserve" cannot create resource "jobs" in API '
        'group "batch" in the namespace "models"'
    )
    server.allow("create", "jobs")
    server.job_quota = 1
    await batch.create_namespaced_job(NAMESPACE, job())
    with refused(403, "Forbidden") as status:
        await batch.create_namespaced_job(NAMESPACE, job("build-2"))
    assert "exceeded quota: builds, requested: count/jobs.batch=1, used: count/jobs.batch=1" in status["message"]
    with refused(403, "Forbidden") as status:
        await core.list_namespaced_pod("kube-system")
    assert 'cannot list resource "pods" in API group "" in the namespace "kube-system"' in status["message"]
    server.token = "another"
    with refused(401, "Unauthorized"):
        await batch.list_namespaced_job(NAMESPACE)


async def test_an_api_under_load_says_so(server, batch):
    server.fail_next(2, status=429, retry_after_s=1, only="POST")
    server.fail_next(status=503)
    assert (await quietly(lambda: direct(server, "GET", "/apis/batch/v1/namespaces/models/jobs"))).status_code == 503
    for _ in range(2):
        with pytest.raises(ApiException) as caught:
            await batch.create_namespaced_job(NAMESPACE, job())
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
    await batch.create_namespaced_job(NAMESPACE, job())


async def test_an_answer_is_lost(server, batch):
    for served in (False, True):
        server.drop_next(served=served, only="POST")
        with pytest.raises(aiohttp.ClientConnectionError):
            await batch.create_namespaced_job(NAMESPACE, job())
        assert len(server.jobs) == served
    with refused(409, "AlreadyExists"):
        await batch.create_namespaced_job(NAMESPACE, job())


async def test_a_call_hangs_until_it_is_released(server, batch):
    server.hang_next(only="POST")
    call = asyncio.create_task(batch.create_namespaced_job(NAMESPACE, job()))
    await quietly(lambda: until(lambda: server.requests, "the call came"))
    assert (server.jobs, call.done()) == ([], False)
    server.release()
    assert (await call).metadata.name == "build-1"


async def test_the_api_goes_away_and_comes_back(server, batch):
    await batch.create_namespaced_job(NAMESPACE, job())
    answer = await batch.list_namespaced_job(NAMESPACE, watch=True, _preload_content=False)
    await answer.content.readline()
    server.stop()
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.content.readline()
    with pytest.raises(aiohttp.ClientConnectionError):
        await batch.list_namespaced_job(NAMESPACE)
    server.start()
    assert [one.metadata.name for one in (await batch.list_namespaced_job(NAMESPACE)).items] == ["build-1"]


async def test_a_kubelet_may_really_run_it(server, batch, core, tmp_path):
    told: list[str] = []
    over = threading.Event()

    def run(made: dict[str, Any]) -> None:
        told.append(threading.current_thread().name)
        pod = server.run_pod(made)
        server.set_log(pod, tmp_path / "log")
        assert run_container(made, {"A": "not heard", "B": "from a secret"}, tmp_path / "log").wait(60) == 0
        server.succeed(made)
        over.set()

    server.on_create = run
    server.on_delete = lambda gone: told.append(gone["metadata"]["name"])
    await batch.create_namespaced_job(NAMESPACE, job())
    assert await quietly(lambda: over.wait(60)), server.findings
    (pod,) = server.pods("build-1")
    name = pod["metadata"]["name"]
    assert await core.read_namespaced_pod_log(name, NAMESPACE) == "said from a secret said\n"
    await batch.delete_namespaced_job("build-1", NAMESPACE, propagation_policy="Background")
    await quietly(lambda: until(lambda: "build-1" in told, "the kubelet was told"))


async def test_what_a_hook_raises_is_a_finding(server, batch):
    def fails(made: dict[str, Any]) -> None:
        raise ValueError(made["metadata"]["name"])

    server.on_create = fails
    await batch.create_namespaced_job(NAMESPACE, job())
    await quietly(lambda: until(lambda: server.findings, "a finding"))
    assert server.take_findings() == ["fails: ValueError: build-1"]


async def test_any_pod_may_be_put_there(server, core):
    template = job()["spec"]["template"]
    server.put_pod({"metadata": {"name": "bitserve-0", **template["metadata"]}, "spec": template["spec"]})
    pod = await core.read_namespaced_pod("bitserve-0", NAMESPACE)
    assert (pod.status.phase, pod.spec.containers[0].image) == ("Running", "bitserve:0.1.0")
    with refused(405, "MethodNotAllowed"):
        await core.delete_namespaced_pod("bitserve-0", NAMESPACE)
