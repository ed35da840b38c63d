"""What Jobs and pods say, in words; objects as the API gives them."""

from __future__ import annotations

from typing import Any

import pytest

from app.cluster.told import failure_of, has_finished, waits_for, why_pod_ended


def job(*conditions: tuple[str, str, str]) -> dict[str, Any]:
    found = [{"type": kind, "status": status, "reason": reason} for kind, status, reason in conditions]
    return {"metadata": {"name": "a"}, "status": {"conditions": found} if found else {}}


def pod(at: str = "2026-01-01T00:00:00Z", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p", "creationTimestamp": at}, "status": status}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


def terminated(reason: str, code: int) -> dict[str, Any]:
    return {"state": {"terminated": {"reason": reason, "exitCode": code}}}


@pytest.mark.parametrize(
    ("found", "finished"),
    [
        (job(), False),
        (job(("FailureTarget", "True", "BackoffLimitExceeded")), False),
        (job(("SuccessCriteriaMet", "True", "")), False),
        (job(("Failed", "False", "")), False),
        (job(("Failed", "True", "DeadlineExceeded")), True),
        (job(("Complete", "True", "")), True),
    ],
)
def test_a_job_has_finished_where_it_makes_no_more_pods(found: dict[str, Any], finished: bool) -> None:
    assert has_finished(found) is finished
    assert bool(failure_of(found, [])) is finished, "that it has completed is not its build's end"


def test_the_last_pod_and_its_last_line_say_why() -> None:
    pods = [
        pod("2026-01-01T00:02:00Z", phase="Failed", containerStatuses=[terminated("OOMKilled", 137)]),
        pod("2026-01-01T00:01:00Z", phase="Failed", containerStatuses=[terminated("Error", 1)]),
    ]
    said = failure_of(job(("Failed", "True", "BackoffLimitExceeded")), pods, "a line\nthe last\n\n")
    assert said == "its Job has failed (BackoffLimitExceeded); its pod ended by OOMKilled, exit code 137; the last"
    assert (
        failure_of(job(("Failed", "True", "BackoffLimitExceeded")), []) == "its Job has failed (BackoffLimitExceeded)"
    )
    assert len(failure_of(job(("Failed", "True", "x")), [], "y" * 10_000)) < 400


def test_a_pod_that_was_taken_away_did_not_end_by_itself() -> None:
    taken = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "evicted"}
    assert why_pod_ended(pod(phase="Failed", conditions=[taken])) == "its pod was taken away: evicted"
    assert why_pod_ended(pod(phase="Failed", reason="Evicted")) == "its pod ended: Evicted"
    assert why_pod_ended(pod(phase="Failed")) == "its pod ended: no reason given"
    assert why_pod_ended(pod(phase="Succeeded")) == why_pod_ended(pod(phase="Running")) == ""


def test_why_a_pod_waits() -> None:
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    assert waits_for([pod(phase="Pending", conditions=[unscheduled])]) == "its pod waits: Unschedulable: 0/3 nodes"
    pulling = pod(phase="Pending", containerStatuses=[waiting("ImagePullBackOff", "Back-off pulling image")])
    assert waits_for([pulling]) == "its pod waits: ImagePullBackOff: Back-off pulling image"
    assert waits_for([pod(phase="Pending", containerStatuses=[waiting("ContainerCreating")])]) == ""
    assert waits_for([pulling, pod("2026-01-02T00:00:00Z", phase="Running")]) == "", "the last one runs"
    assert waits_for([]) == ""
