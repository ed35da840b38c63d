"""Builds as Jobs where something goes wrong: in the cluster, its API, or the rights that the server has in it."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.cluster.kubelet import serving
from tests.store.test_servers import FP32, model, wait_scale
from tests.support.servers import ADMIN, Server, until
from tests.support.uploads import build_of, ended, send

pytestmark = pytest.mark.timeout(300)


def log_of(server: Server, answer: httpx.Response) -> str:
    return "\n".join(build_of(server, answer)["log"])


def the_job(cluster: Any) -> Any:
    (job,) = until(lambda: cluster.jobs, "a Job is made")
    return job


def followed(cluster: Any) -> None:
    until(lambda: cluster.watching, "Jobs are watched")


# -- the Job and its pods --------------------------------------------------------------------------------------------


def test_a_build_that_takes_too_much_memory_twice_fails_and_says_so(store, cluster, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        job = the_job(cluster)
        for _ in range(2):
            pod = cluster.run_pod(job)
            cluster.set_log(pod, "starting\nthe last thing it said\n")
            cluster.fail_pod(job, reason="OOMKilled", exit_code=137)
        status = ended(server, answer)
        assert status["state"] == "failed"
        said = "its Job has failed (BackoffLimitExceeded); its pod ended by OOMKilled, exit code 137; the last thing"
        assert status["error"].startswith(said), status["error"]


def test_a_build_past_its_deadline_fails(store, cluster, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        cluster.run_pod(the_job(cluster))
        cluster.deadline(the_job(cluster))
        assert "its Job has failed (DeadlineExceeded)" in ended(server, answer)["error"]


def test_a_job_that_ends_without_a_word_of_its_build_is_a_failure(store, cluster, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        cluster.succeed(the_job(cluster))
        assert ended(server, answer)["error"] == "its Job has completed and left no result"


def test_why_a_pod_waits_is_in_the_builds_log_and_events(store, cluster, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        cluster.unschedulable(the_job(cluster), "0/3 nodes are available: 3 Insufficient cpu.")
        until(lambda: "0/3 nodes are available: 3 Insufficient cpu." in log_of(server, answer), "it is told")
        assert build_of(server, answer)["state"] == "queued"
        events = f"{server.url}{answer.headers['location']}/events"
        with httpx.stream("GET", events, headers=ADMIN, timeout=60) as stream:
            assert any("Insufficient cpu" in line for line in stream.iter_lines())
        text = httpx.get(f"{server.url}/metrics").text
        assert "bitserve_builds_waiting 1.0" in text
        assert "bitserve_builds_running 0.0" in text
        assert httpx.delete(f"{server.url}{answer.headers['location']}", headers=ADMIN).status_code == 200


def test_a_job_that_is_deleted_by_hand_before_it_ran_is_made_again(store, cluster, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        first = the_job(cluster)
        cluster.delete_job(first)
        until(lambda: cluster.jobs and cluster.jobs[0]["metadata"]["uid"] != first["metadata"]["uid"], "made again")
        assert build_of(server, answer)["state"] == "queued"


def test_why_there_is_no_pod_is_where_the_log_says(store, cluster, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        name = the_job(cluster)["metadata"]["name"]
        until(
            lambda: f"its Job has no pod yet: `kubectl describe job {name}` tells why" in log_of(server, answer), "so"
        )


# -- the API ---------------------------------------------------------------------------------------------------------


def test_while_the_api_is_away_uploads_are_taken_and_their_jobs_made_later(store, cluster, kubelet, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        followed(cluster)
        cluster.stop()
        answer = send(server, "m", model(2.0), FP32)
        assert answer.status_code == 202, answer.text
        until(lambda: "it waits" in log_of(server, answer), "it says why", 90)
        asked_s = time.monotonic()
        assert httpx.get(f"{server.url}/v2/builds", headers=ADMIN).status_code == 200
        assert time.monotonic() - asked_s < 5, "no answer waits for the cluster"
        cluster.start()
        assert ended(server, answer)["state"] == "succeeded"
        wait_scale(server, 2.0)


def test_a_build_that_is_cancelled_while_the_api_is_away_loses_its_job_later(store, cluster, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        cluster.run_pod(the_job(cluster))
        cluster.stop()
        cancelled = httpx.delete(f"{server.url}{answer.headers['location']}", headers=ADMIN, timeout=10)
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        cluster.start()
        until(lambda: not cluster.jobs, "its Job is deleted", 90)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_api_without_time_is_asked_again(status, store, cluster, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        followed(cluster)
        cluster.fail_next(2, status=status, retry_after_s=1 if status == 429 else None, only="POST")
        begun_s = time.monotonic()
        send(server, "m", model(2.0), FP32)
        the_job(cluster)
        posts = [one for one in cluster.requests if one.method == "POST"]
        assert len(posts) == 3
        if status == 429:
            assert time.monotonic() - begun_s >= 2, "as late as it was told to"


@pytest.mark.parametrize("served", [True, False])
def test_a_lost_answer_makes_no_second_job(served, store, cluster, kubelet, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        followed(cluster)
        cluster.drop_next(1, served=served, only="POST")
        answer = send(server, "m", model(2.0), FP32)
        assert ended(server, answer)["state"] == "succeeded"
        assert len(cluster.jobs) == 1
        assert len(kubelet.processes) == 1


@pytest.mark.parametrize("how", ["lost", "mid_line", "end"])
def test_a_watch_that_is_cut_is_begun_again_where_it_was(how, store, cluster, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        followed(cluster)
        answer = send(server, "m", model(2.0), FP32)
        job = the_job(cluster)
        lists = sum(one.method == "GET" and one.path.endswith("/jobs") and "watch" not in one.query
                    for one in cluster.requests)  # fmt: skip
        cluster.cut_watches(how)
        for _ in range(2):
            cluster.fail_pod(job, reason="Error", exit_code=1)
        assert ended(server, answer)["state"] == "failed"
        assert lists == sum(one.method == "GET" and one.path.endswith("/jobs") and "watch" not in one.query
                            for one in cluster.requests), "it needed no list"  # fmt: skip


@pytest.mark.parametrize("over_http", [True, False])
def test_where_the_api_has_forgotten_jobs_are_listed_anew(over_http, store, cluster, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        followed(cluster)
        answer = send(server, "m", model(2.0), FP32)
        job = the_job(cluster)
        cluster.stop()
        for _ in range(2):
            cluster.fail_pod(job, reason="Error", exit_code=1)
        cluster.compact(over_http=over_http)
        cluster.start()
        assert ended(server, answer)["state"] == "failed"
        until(lambda: any("Jobs are listed anew" in line for line in server.log), "it has listed")
        followed(cluster)


def test_an_api_that_hangs_keeps_nobody_waiting(store, cluster, tmp_path):
    with serving(store, cluster, tmp_path / "one") as server:
        followed(cluster)
        cluster.hang_next(1000)
        answer = send(server, "m", model(2.0), FP32)
        assert answer.status_code == 202
        asked_s = time.monotonic()
        assert build_of(server, answer)["state"] == "queued"
        cancelled = httpx.delete(f"{server.url}{answer.headers['location']}", headers=ADMIN, timeout=10)
        assert cancelled.json()["state"] == "cancelled"
        assert time.monotonic() - asked_s < 5
        assert server.stop(25) == 0
        cluster.release()


# -- rights ----------------------------------------------------------------------------------------------------------


def test_without_the_right_to_make_jobs_builds_wait_and_say_so(store, cluster, kubelet, tmp_path):
    """A RoleBinding that is applied a minute late costs no build."""
    cluster.forbid("create", "jobs")
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        said = 'cannot create resource "jobs" in API group "batch"'
        until(lambda: said in log_of(server, answer), "it says why")
        assert build_of(server, answer)["state"] == "queued"
        cluster.allow("create", "jobs")
        assert ended(server, answer)["state"] == "succeeded"


def test_builds_of_a_model_come_one_after_another(store, cluster, kubelet, tmp_path):
    """The last that was sent is the one that serves."""
    with serving(store, cluster, tmp_path / "one") as server:
        answers = [send(server, "m", model(scale), FP32) for scale in (2.0, 3.0, 4.0)]
        other = send(server, "n", model(5.0), FP32)
        first = answers[0].headers["location"].rpartition("/")[2]
        until(lambda: f"it waits for build {first} of its model" in log_of(server, answers[1]), "it says why")
        assert [ended(server, answer)["version"] for answer in answers] == [1, 2, 3]
        assert ended(server, other)["version"] == 1
        wait_scale(server, 4.0)


def test_where_the_quota_is_used_up_a_build_waits(store, cluster, kubelet, tmp_path):
    cluster.job_quota = 0
    with serving(store, cluster, tmp_path / "one") as server:
        answer = send(server, "m", model(2.0), FP32)
        until(lambda: "exceeded quota" in log_of(server, answer), "it says why")
        assert build_of(server, answer)["state"] == "queued"
        cluster.job_quota = None
        assert ended(server, answer)["state"] == "succeeded"


def test_a_server_that_the_cluster_does_not_know_serves_and_says_so(store, cluster, tmp_path):
    """A wrong token, and no pod of its name: builds wait, all else works."""
    kubeconfig = cluster.kubeconfig(tmp_path)
    cluster.token = "another"
    with serving(store, cluster, tmp_path / "one", kubeconfig=kubeconfig) as server:
        answer = send(server, "m", model(2.0), FP32)
        until(lambda: any("builds wait" in line for line in server.log), "the log says so")
        assert "it waits for the cluster's API" in log_of(server, answer)
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
        cluster.token = "let-me-in"
        the_job(cluster)


def test_at_most_so_many_builds_wait(store, cluster, tmp_path):
    with serving(store, cluster, tmp_path / "one", "--max-queued-builds", "2") as server:
        followed(cluster)
        for scale in (1.0, 2.0):
            assert send(server, "m", model(scale), FP32).status_code == 202
        refused = send(server, "m", model(3.0), FP32)
        assert refused.status_code == 503
        assert "2 builds wait or arrive already; see setting max_queued_builds" in refused.json()["error"]
