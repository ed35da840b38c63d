"""The Job of a build, made of a server's pod as the API has it: what is taken over, what is not, and where GPUs are."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from app.cluster.job import BUILD_LABEL, COMPONENT, JobOptions, job_name, job_of, selector_of
from tests.deploy.support.builds import BUILD, as_admitted, server_pod
from tests.deploy.support.render import Object, helm_template, kustomize, of_kind, overlay
from tests.deploy.support.schemas import VERSIONS, builtin_findings

pytestmark = pytest.mark.timeout(600)  # tools are installed on first use

GIB = 2**30
OPTIONS = JobOptions(2 * GIB, 600.0, gpu_selector={"nvidia.com/gpu.present": "true"})
STORE = ("models.url=s3://bucket/models", "tokens.existingSecret=mine", "builds.executor=kubernetes")
GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def pod_of(objects: list[Object]) -> Any:
    (deployment,) = of_kind(objects, "Deployment")
    return server_pod(deployment)


@pytest.fixture(scope="module")
def rendered() -> dict[str, Any]:
    return {
        "cpu": pod_of(kustomize(overlay("jobs"))),
        "gpu": pod_of(helm_template(sets=(*STORE, "gpu.enabled=true"))),
        "volume": pod_of(kustomize(overlay("cpu"))),
    }


@pytest.fixture
def pods(rendered: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(rendered)


def made(pod: Object, *targets: str, options: JobOptions = OPTIONS) -> Any:
    job = job_of(pod, BUILD, "letters", targets or ("openvino",), options)
    assert [found for version in VERSIONS for found in builtin_findings([job], version)] == []
    return job


def spec_of(pod: Object, *targets: str, options: JobOptions = OPTIONS) -> Any:
    return made(pod, *targets, options=options)["spec"]["template"]["spec"]


def container_of(pod: Object, *targets: str, options: JobOptions = OPTIONS) -> Any:
    (container,) = spec_of(pod, *targets, options=options)["containers"]
    return container


# -- what the API has put in -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["cpu", "gpu", "volume"])
def test_what_the_api_adds_to_a_pod_is_not_taken_over(pods: dict[str, Any], flavour: str) -> None:
    job = made(pods[flavour])
    text, spec = json.dumps(job), job["spec"]["template"]["spec"]
    assert not {
        "nodeName", "priority", "priorityClassName", "preemptionPolicy", "schedulerName", "dnsPolicy", "serviceAccount",
        "topologySpreadConstraints", "initContainers",
    } & set(spec)  # fmt: skip
    for word in ("kube-api-access", "/var/run/secrets", "node.kubernetes.io/", "pod-template-hash", "resourceVersion"):
        assert word not in text, word
    (container,) = spec["containers"]
    assert not {one for one in container if one.endswith("Probe")} | {"ports", "lifecycle", "command"} & set(container)
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)


def test_the_pod_of_these_tests_has_all_of_it(pods: dict[str, Any]) -> None:
    text, spec = json.dumps(pods["cpu"]), pods["cpu"]["spec"]
    for word in ("kube-api-access", "node.kubernetes.io/not-ready", "pod-template-hash", "/var/run/secrets"):
        assert word in text
    assert {"nodeName", "priority", "schedulerName", "dnsPolicy", "serviceAccount"} <= set(spec)


def test_what_gives_a_pod_its_role_in_the_cloud_is_left_to_give_it_to_the_job(pods: dict[str, Any]) -> None:
    server = pods["cpu"]["spec"]["containers"][0]
    for name in ("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                 "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):  # fmt: skip
        server["env"].append({"name": name, "value": "x"})
    pods["cpu"]["spec"]["volumes"].append({"name": "aws-iam-token", "projected": {"sources": []}})
    server["volumeMounts"].append({"name": "aws-iam-token", "mountPath": "/var/run/secrets/eks.amazonaws.com"})
    spec = spec_of(pods["cpu"])
    assert [one["name"] for one in spec["containers"][0]["env"]] == ["BITSERVE_PLAN_KEY"]
    assert [one["name"] for one in spec["volumes"]] == ["cache", "tmp"]
    assert spec["serviceAccountName"] == "bitserve"


def test_a_container_that_a_mesh_has_put_first_is_not_the_server(pods: dict[str, Any]) -> None:
    containers = pods["cpu"]["spec"]["containers"]
    containers.insert(0, {"name": "proxy", "image": "proxy:1"})
    assert container_of(pods["cpu"])["image"] == "bitserve:0.1.0"
    containers[:] = [{**containers[1], "name": "kserve-container"}]
    assert container_of(pods["cpu"])["image"] == "bitserve:0.1.0"


# -- what is taken over ----------------------------------------------------------------------------------------------


def test_settings_secrets_and_scratch_are_the_servers(pods: dict[str, Any]) -> None:
    server, container = pods["cpu"]["spec"]["containers"][0], container_of(pods["cpu"])
    for key in ("envFrom", "image", "imagePullPolicy", "securityContext"):
        assert container[key] == server[key]
    assert container["args"] == ["build", BUILD]
    assert [(one["name"], one["mountPath"]) for one in container["volumeMounts"]] == [
        ("cache", "/cache"), ("tmp", "/tmp"),
    ]  # fmt: skip
    assert spec_of(pods["cpu"])["securityContext"] == pods["cpu"]["spec"]["securityContext"]


@pytest.mark.parametrize("flavour", ["cpu", "gpu", "volume"])
def test_the_admin_token_is_not_a_builds(pods: dict[str, Any], flavour: str) -> None:
    assert "BITSERVE_ADMIN_TOKEN" in json.dumps(pods[flavour])
    text = json.dumps(made(pods[flavour]))
    assert "ADMIN_TOKEN" not in text
    assert "admin-token" not in text
    assert "plan-key" in text, "its plans would be signed with a key of its own"


def test_memory_is_that_of_a_compile_and_what_watches_it_and_cpu_is_the_servers(pods: dict[str, Any]) -> None:
    server, resources = pods["cpu"]["spec"]["containers"][0]["resources"], container_of(pods["cpu"])["resources"]
    for kind in ("requests", "limits"):
        assert resources[kind] == {"cpu": server[kind]["cpu"], "memory": "3072Mi"}
    odd = JobOptions(2 * GIB + 1, 600.0)
    assert container_of(pods["cpu"], options=odd)["resources"]["limits"]["memory"] == "3073Mi"


def test_a_claim_of_a_volume_becomes_an_empty_folder(pods: dict[str, Any]) -> None:
    assert "persistentVolumeClaim" in json.dumps(pods["volume"])
    spec = spec_of(pods["volume"])
    assert {one["name"]: one for one in spec["volumes"]}["models"] == {"name": "models", "emptyDir": {}}
    assert "persistentVolumeClaim" not in json.dumps(spec)


def test_an_image_of_its_own_replaces_the_servers(pods: dict[str, Any]) -> None:
    container = container_of(pods["cpu"], options=OPTIONS._replace(image="bitserve-gpu:0.1.0"))
    assert container["image"] == "bitserve-gpu:0.1.0"


def test_nodes_are_of_the_kind_that_servers_have(pods: dict[str, Any]) -> None:
    term = {"matchExpressions": [{"key": "cpu", "operator": "In", "values": ["icelake"]}]}
    nodes = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    mine = {"key": "team", "operator": "Equal", "value": "search", "effect": "NoSchedule"}
    pods["cpu"]["spec"] |= {"nodeSelector": {"disk": "ssd"}, "affinity": {"nodeAffinity": nodes, "podAffinity": {}}}
    pods["cpu"]["spec"]["tolerations"].append(mine)
    spec = spec_of(pods["cpu"])
    assert (spec["nodeSelector"], spec["affinity"]) == ({"disk": "ssd"}, {"nodeAffinity": nodes})
    assert spec["tolerations"] == [mine]
    assert "affinity" not in spec_of(pods["cpu"], "tensorrt"), "servers on CPUs keep to nodes that have no GPU"


# -- names and labels ------------------------------------------------------------------------------------------------


def test_labels_find_it_and_are_no_servers(pods: dict[str, Any]) -> None:
    job = made(pods["cpu"])
    labels = job["metadata"]["labels"]
    assert labels == job["spec"]["template"]["metadata"]["labels"]
    assert labels == {
        "app.kubernetes.io/name": "bitserve", "app.kubernetes.io/instance": "bitserve",
        "app.kubernetes.io/component": COMPONENT, BUILD_LABEL: BUILD,
    }  # fmt: skip
    pairs = dict(pair.split("=") for pair in selector_of(pods["cpu"]).split(","))
    assert pairs.items() <= labels.items()
    assert pods["cpu"]["metadata"]["labels"]["app.kubernetes.io/component"] != COMPONENT


def test_names_and_values_of_labels_fit(pods: dict[str, Any]) -> None:
    pods["cpu"]["metadata"]["labels"]["app.kubernetes.io/instance"] = "r" * 63
    model = "m" * 500
    job = job_of(pods["cpu"], BUILD, model, ("openvino",), OPTIONS)
    assert len(job_name(BUILD)) <= 63, "the API makes a label of it"
    assert all(len(value) <= 63 for value in job["metadata"]["labels"].values())
    assert job["metadata"]["annotations"] == {"bitserve/model": model}, "no label: it may be longer"


def test_a_pod_of_few_labels_is_enough() -> None:
    pod = as_admitted({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "bitserve:0.1.0"}]}})
    assert made(pod)["metadata"]["labels"] == {"app.kubernetes.io/component": COMPONENT, BUILD_LABEL: BUILD}


def test_its_time_is_that_of_two_tries_and_a_wait_for_a_node(pods: dict[str, Any]) -> None:
    spec = made(pods["cpu"])["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (1, 4800, 3600)
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "podFailurePolicy asks for it"


# -- GPUs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [("openvino",), ("tensorrt",), ("openvino", "tensorrt-rtx")])
def test_the_job_of_a_server_with_a_gpu_has_one_as_well(pods: dict[str, Any], targets: tuple[str, ...]) -> None:
    spec = spec_of(pods["gpu"], *targets, options=OPTIONS._replace(gpu_selector={"gpu": "other"}))
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}, "the server's own, not another"
    assert spec["tolerations"] == [GPU]
    for kind in ("requests", "limits"):
        assert spec["containers"][0]["resources"][kind]["nvidia.com/gpu"] == 1


def test_the_job_of_a_server_without_a_gpu_gets_one_for_tensorrt(pods: dict[str, Any]) -> None:
    pods["cpu"]["spec"]["nodeSelector"] = {"disk": "ssd", "pool": "cpus"}
    selector = {"nvidia.com/gpu.product": "H100", "pool": "gpus"}
    spec = spec_of(pods["cpu"], "openvino", "tensorrt", options=OPTIONS._replace(gpu_selector=selector))
    for kind in ("requests", "limits"):
        assert spec["containers"][0]["resources"][kind]["nvidia.com/gpu"] == "1"
    assert spec["nodeSelector"] == {"disk": "ssd", "pool": "gpus", "nvidia.com/gpu.product": "H100"}
    assert spec["tolerations"] == [GPU]


@pytest.mark.parametrize("targets", [("openvino",), ("tensorrt-rtx",), ("openvino", "tensorrt-rtx"), ()])
def test_the_job_of_a_server_without_a_gpu_needs_none_for_others(
    pods: dict[str, Any], targets: tuple[str, ...]
) -> None:
    job = job_of(pods["cpu"], BUILD, "letters", targets, OPTIONS)
    assert "nvidia" not in json.dumps(job)
    assert job["spec"]["template"]["spec"]["tolerations"] == []
