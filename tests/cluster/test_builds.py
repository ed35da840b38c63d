"""Builds as Jobs, carried out: a real server, the double of the cluster's API, and the Job's own process."""

from __future__ import annotations

import os
import signal

import httpx
import pytest

from app.cluster.job import COMPONENT
from tests.cluster.kubelet import serving
from tests.store.test_servers import FP32, model, scale_of, wait_scale
from tests.support.servers import ADMIN, Server, until
from tests.support.stores import Store
from tests.support.uploads import build_of, ended, send

pytestmark = pytest.mark.timeout(300)  # tools that render manifests are installed on first use


def is_in_store(store: Store, *parts: str) -> bool:
    return any(all(part in name for part in parts) for name in store.names())


def test_an_upload_becomes_a_job_that_builds_and_publishes(store, cluster, kubelet, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        assert answer.status_code == 202, answer.text
        status = ended(server, answer)
        assert (status["state"], status["version"], status["attempts"]) == ("succeeded", 1, 1), status
        assert scale_of(server) == pytest.approx(2.0), "who is told that it has succeeded can ask"
        assert not any('"compiling' in line for line in server.log), "the server takes the plan of the Job"
        log = "\n".join(status["log"])
        assert "accepted" in log
        assert "version 1" in log
        report = httpx.get(f"{server.url}{status['report']}", headers=ADMIN)
        assert report.status_code == 200
        (job,) = cluster.jobs
        assert job["metadata"]["labels"]["app.kubernetes.io/component"] == COMPONENT
        assert job["metadata"]["annotations"]["bitserve/model"] == "m"
        until(lambda: cluster.job(job)["status"].get("succeeded") == 1, "the Job has ended")
        assert send(server, "m", model(2.0), FP32).headers["location"] == answer.headers["location"], "the same again"
        assert len(cluster.jobs) == 1
    assert not is_in_store(store, ".builds/", "/input/"), "what was sent is not kept"


def test_events_stream_as_those_of_local_builds(store, cluster, kubelet, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        url = f"{server.url}{answer.headers['location']}/events"
        lines = httpx.get(url, headers=ADMIN, timeout=120).text.splitlines()
        states = [line.removeprefix("event: ") for line in lines if line.startswith("event:")]
        assert states[0] == "queued"
        assert states[-1] == "succeeded"
        assert states.count("succeeded") == 1
        assert "running" in states
        ids = [int(line.removeprefix("id: ")) for line in lines if line.startswith("id:")]
        assert ids == sorted(ids)
        last = httpx.get(url, headers={**ADMIN, "Last-Event-ID": str(ids[-2])}, timeout=60).text
        assert last.count("event: succeeded") == 1
        assert last.count("event:") <= 2


def test_a_model_that_is_refused_fails_once_with_its_reason(store, cluster, kubelet, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        status = ended(server, send(server, "m", b"this is no model"))
        assert status["state"] == "failed"
        assert "m" not in {name for name, _ in server.index()}
        assert status["error"], "the builder's own words"
        assert "Job" not in status["error"]
        (job,) = cluster.jobs
        until(lambda: cluster.job(job)["status"].get("succeeded") == 1, "no try is left: the build has its answer")
        assert len(kubelet.processes) == 1


def test_it_goes_on_without_the_server_and_another_tells_of_it(store, cluster, kubelet, tmp_path):
    """The server is killed as soon as the Job is made; what is known is in the store and in the cluster."""
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        assert kubelet.begun.acquire(timeout=60)
        os.kill(server.process.pid, signal.SIGKILL)
    with serving(store, cluster, tmp_path / "two") as other:
        status = ended(other, answer)
        assert (status["state"], status["version"]) == ("succeeded", 1), status
        wait_scale(other, 2.0)
        assert len(cluster.jobs) == 1
        assert len(kubelet.processes) == 1


def test_killed_before_its_job_is_made_a_later_server_makes_it(store, cluster, kubelet, tmp_path):
    cluster.fail_next(1000, status=503, only="POST")
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        assert answer.status_code == 202
        assert not cluster.jobs
        os.kill(server.process.pid, signal.SIGKILL)
    cluster.release()
    with serving(store, cluster, tmp_path / "two") as other:
        assert ended(other, answer)["state"] == "succeeded"


def test_a_pod_that_is_killed_runs_once_more(store, cluster, kubelet, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        until(lambda: build_of(server, answer)["state"] == "running", "it runs")
        kubelet.processes[0].kill()
        status = ended(server, answer)
        assert (status["state"], status["attempts"], status["version"]) == ("succeeded", 2, 1), status
        assert any("it runs once more" in line for line in status["log"])
        assert set(server.index()) == {("m", "1")}


def test_a_pod_that_is_told_to_go_gives_its_build_back(store, cluster, kubelet, tmp_path):
    """A node that is drained: that is not a try of the build."""
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        until(lambda: build_of(server, answer)["state"] == "running", "it runs")
        kubelet.processes[0].terminate()
        assert kubelet.processes[0].wait(30) == 128 + signal.SIGTERM
        status = ended(server, answer)
        assert (status["state"], status["attempts"], status["version"]) == ("succeeded", 1, 1), status


def test_cancelled_its_job_is_deleted_and_nothing_is_published(store, cluster, kubelet, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        assert kubelet.begun.acquire(timeout=60)
        url = f"{server.url}{answer.headers['location']}"
        cancelled = httpx.delete(url, headers=ADMIN, timeout=30)
        assert cancelled.status_code == 200, cancelled.text
        assert cancelled.json()["state"] == "cancelled"
        until(lambda: not cluster.jobs, "its Job is deleted")
        kubelet.processes[0].wait(30)
        assert ended(server, answer)["state"] == "cancelled"
        assert httpx.delete(url, headers=ADMIN).status_code == 400
        assert not is_in_store(store, "m/1/")
        deletes = [one for one in cluster.requests if one.method == "DELETE"]
        assert all("Background" in (one.query.get("propagationPolicy", ""), str(one.body)) for one in deletes)
        status = ended(server, send(server, "m", model(3.0), FP32))
        assert (status["state"], status["version"]) == ("succeeded", 1), "what was cancelled has left nothing"


def test_replicas_tell_the_same_and_count_an_end_once(store, cluster, kubelet, tmp_path):
    def counted(server: Server) -> float:
        text = httpx.get(f"{server.url}/metrics").text
        name = 'bitserve_build_duration_seconds_count{outcome="succeeded"}'
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    with serving(store, cluster, tmp_path / "one") as one, serving(store, cluster, tmp_path / "two") as two:
        answers = [send(server, name, model(2.0), FP32) for server, name in ((one, "m"), (two, "n"))]
        for server in (two, one):
            for answer, name in zip(answers, "mn", strict=True):
                assert ended(server, answer)["state"] == "succeeded"
                assert server.state(name) == "READY"
        assert len(cluster.jobs) == 2, "one each, whoever looks"
        shown = [httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json() for server in (one, two)]
        assert shown[0] == shown[1]
        until(lambda: counted(one) + counted(two) == 2, "both are counted")


def test_a_job_whose_time_is_over_takes_nothing_of_its_build_along(store, cluster, kubelet, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        assert ended(server, answer)["state"] == "succeeded"
        (job,) = cluster.jobs
        until(lambda: cluster.job(job)["status"].get("succeeded") == 1, "the Job has ended")
        cluster.expire(job)
    with serving(store, cluster, tmp_path / "two") as server:
        assert build_of(server, answer)["state"] == "succeeded"
        assert not cluster.jobs
