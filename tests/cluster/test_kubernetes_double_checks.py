"""What the double holds against its client, and against itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.kubernetes import Kubernetes
from tests.support.kubernetes_samples import job

JOBS = "/apis/batch/v1/namespaces/models/jobs"


@pytest.fixture
def server() -> Iterator[Kubernetes]:
    with Kubernetes() as made:
        yield made


def call(server: Kubernetes, method: str, path: str = JOBS, **keys: Any) -> httpx.Response:
    return httpx.request(method, server.url + path, verify=False, timeout=20, **keys)


def changed(*where: Any, to: Any) -> dict[str, Any]:
    """A Job with one value that is another."""
    made = job()
    at: Any = made
    for step in where[:-1]:
        at = at[step]
    at[where[-1]] = to
    return made


POD = ("spec", "template", "spec")


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (changed("spec", "retries", to=3), "retries"),
        (changed("spec", "backoffLimit", to="three"), "backoffLimit"),
        (changed("spec", "backoffLimit", to=-1), "must be greater than or equal to 0"),
        (changed("spec", "selector", to={"matchLabels": {"a": "b"}}), "`selector` not auto-generated"),
        (changed("metadata", "name", to="Build_1"), "a lowercase RFC 1123 subdomain"),
        (changed("metadata", "name", to="b" * 64), "spec.template.labels"),
        (changed("metadata", "labels", to={"part": "b" * 64}), "must be no more than 63 characters"),
        (changed("metadata", "labels", to={"part": "a b"}), "a valid label must consist of"),
        (changed("metadata", "annotations", to={"part": "b" * 2**18}), "may not be more than 262144 bytes"),
        (changed(*POD, "restartPolicy", to="Always"), 'supported values: "OnFailure", "Never"'),
        (changed(*POD, "restartPolicy", to=None), 'Required value: valid values: "OnFailure", "Never"'),
        (changed(*POD, "containers", 0, "image", to=""), "containers[0].image: Required value"),
        (changed(*POD, "containers", 0, "imagePullPolicy", to="Often"), 'Unsupported value: "Often"'),
        (changed(*POD, "containers", 0, "resources", "limits", to={"cpu": "two"}), "quantities must match"),
        (changed(*POD, "containers", 0, "resources", "requests", to={"cpu": "2500m"}), "cpu limit of 2"),
        (changed(*POD, "containers", 0, "env", to=[{"name": "A=B"}]), "env[0].name"),
        (changed(*POD, "containers", 0, "volumeMounts", 0, "name", to="none"), 'Not found: "none"'),
    ],
)
def test_what_is_not_valid_is_refused_and_remembered(server, sent, said):
    answer = call(server, "POST", json=sent)
    assert (answer.status_code, answer.json()["reason"]) == (422, "Invalid")
    assert said in answer.json()["message"]
    assert answer.json()["details"]["causes"]
    assert any(said in found for found in server.take_findings())
    assert server.jobs == []


def test_what_would_not_be_admitted_is_remembered(server):
    sent = job()
    del sent["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    answer = call(server, "POST", json=sent)
    assert answer.status_code == 201
    assert 'would violate PodSecurity \\"restricted:latest' in answer.headers["warning"]
    assert any("allowPrivilegeEscalation" in found for found in server.take_findings())
    with pytest.raises(AssertionError, match="no such pod is admitted"):
        server.start_pod("build-1")


def test_findings_fail_a_test():
    with pytest.raises(AssertionError, match="a client sent"), Kubernetes() as server:
        call(server, "POST", json={"metadata": {}})


def test_what_the_double_makes_is_checked_too(server):
    pod = {"metadata": {"name": "bitserve-0"}, "spec": {**job()["spec"]["template"]["spec"], "restarts": 3}}
    server.put_pod(pod)
    call(server, "GET", "/api/v1/namespaces/models/pods")
    found = server.take_findings()
    assert any("Pod/bitserve-0 (Kubernetes 1.30)" in one and "restarts" in one for one in found)
    assert any("PodList (Kubernetes 1.34)" in one and "restarts" in one for one in found)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{no", "json parse error"),
        (b'{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}', "v1, Kind=Pod"),
        (b'{"metadata": {"name": "a", "namespace": "other"}}', "does not match the namespace sent"),
    ],
)
def test_what_is_no_job_of_the_namespace_is_a_bad_request(server, content, said):
    answer = call(server, "POST", content=content)
    assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")
    assert said in answer.json()["message"]


def test_options_of_a_delete_are_checked(server):
    call(server, "POST", json=job())
    answer = call(server, "DELETE", f"{JOBS}/build-1", json={"propagation": "Background"})
    assert (answer.status_code, len(server.jobs)) == (400, 1)
    assert server.take_findings() == ["a client sent: DeleteOptions: unknown field propagation"]
    assert call(server, "DELETE", f"{JOBS}/build-1?propagationPolicy=None").status_code == 422


def test_what_cannot_be_read_is_a_bad_request(server):
    for query in ("labelSelector=a+b", "fieldSelector=spec.suspend=true", "continue=x", "watch=1&resourceVersion=x"):
        answer = call(server, "GET", f"{JOBS}?{query}")
        assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest"), query
    for path in ("/apis/batch/v1/namespaces/models/pods", "/api/v1/namespaces/models/jobs", "/healthy"):
        assert call(server, "GET", path).status_code == 404


def test_lists_are_as_they_come_over_the_wire(server):
    call(server, "POST", json=job())
    answer = call(server, "GET").json()
    assert (answer["kind"], answer["apiVersion"]) == ("JobList", "batch/v1")
    assert sorted(answer["items"][0]) == ["metadata", "spec", "status"]
    (found,) = call(server, "GET", f"{JOBS}?fieldSelector=metadata.name=build-1").json()["items"]
    assert found == answer["items"][0]


def test_a_name_may_be_made_up(server):
    sent = job()
    sent["metadata"] = {"generateName": "build-"}
    one, another = (call(server, "POST", json=sent).json()["metadata"] for _ in range(2))
    assert one["name"].startswith("build-")
    assert one["name"] != another["name"]
    assert one["labels"]["job-name"] == one["name"], "the API takes labels of the template where there are none"
