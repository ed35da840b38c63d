"""Names, sizes and times in manifests against the code; each rule finds a mistake that is planted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.deploy.support.render import (
    FLAVOURS,
    KSERVE,
    Object,
    helm_template,
    kustomize,
    of_kind,
    overlay,
    values_file,
)
from tests.deploy.support.schemas_names import environment, name_findings, server_pods
from tests.deploy.support.schemas_sizes import quantity, size_findings

pytestmark = pytest.mark.timeout(600)  # tools are installed on first use

Plant = Callable[[list[Object]], None]


def renderings() -> list[list[Object]]:
    ours = [kustomize(overlay(flavour)) for flavour in FLAVOURS]
    return [*ours, *(helm_template(values_file(flavour)) for flavour in FLAVOURS), kustomize(KSERVE)]


@pytest.fixture(scope="module")
def shipped() -> list[list[Object]]:
    return renderings()


@pytest.fixture(scope="module")
def whole(shipped: list[list[Object]]) -> list[Object]:
    """Objects of every kind, without a name twice: the overlay gpu, and an autoscaler."""
    return [*shipped[FLAVOURS.index("gpu")], *of_kind(shipped[FLAVOURS.index("s3")], "HorizontalPodAutoscaler")]


def one_of(objects: list[Object], kind: str) -> Any:
    (found,) = of_kind(objects, kind)
    return found


def pod_of(objects: list[Object]) -> Any:
    return one_of(objects, "Deployment")["spec"]["template"]["spec"]


def server_of(objects: list[Object]) -> Any:
    return pod_of(objects)["containers"][0]


def setting(name: str, value: str | None) -> Plant:
    def plant(objects: list[Object]) -> None:
        data = one_of(objects, "ConfigMap")["data"]
        data.pop(name, None)
        if value is not None:
            data[name] = value

    return plant


def test_all_names_fit(shipped: list[list[Object]]) -> None:
    assert [found for objects in shipped for found in name_findings(objects)] == []


def test_all_sizes_fit(shipped: list[list[Object]]) -> None:
    assert [found for objects in shipped for found in size_findings(objects)] == []


def test_no_pod_is_set_by_the_name_of_a_service(shipped: list[list[Object]]) -> None:
    for objects in shipped:
        for where, spec, container in server_pods(objects):
            assert environment(container, objects)["BITSERVE_PORT"] == "8000", where
            if "protocolVersions" not in spec:  # a ServingRuntime has no such field; its variable stands before
                assert spec["enableServiceLinks"] is False, where


def without(kind: str) -> Plant:
    return lambda objects: objects.remove(one_of(objects, kind))


NAMES: dict[str, tuple[Plant, str]] = {
    "a variable that is no setting": (setting("BITSERVE_QUEUE_ROWS", "4"), "BITSERVE_QUEUE_ROWS is no setting"),
    "a variable of nobody": (setting("AWS_REGON", "eu-west-1"), "AWS_REGON is no setting"),
    "a value that the server refuses": (setting("BITSERVE_LOG_LEVEL", "loud"), "setting log_level"),
    "no port, which a Service would set": (setting("BITSERVE_PORT", None), "BITSERVE_PORT is not set"),
    "another port": (setting("BITSERVE_PORT", "8080"), "it listens on 8080"),
    "a probe of another port": (
        lambda o: server_of(o)["readinessProbe"]["httpGet"].update(port="metrics"), "readinessProbe asks port metrics"),
    "a service of another port": (
        lambda o: one_of(o, "Service")["spec"]["ports"][0].update(targetPort=8080), "no container has port 8080"),
    "a policy of another port": (
        lambda o: one_of(o, "NetworkPolicy")["spec"]["ingress"][0]["ports"][0].update(port="web"),
        "no container has port web"),
    "another tag": (lambda o: server_of(o).update(image="bitserve:latest"), "image of version latest"),
    "another image": (lambda o: server_of(o).update(image="bitsrv:0.1.0"), "image bitsrv is none of"),
    "the key of another setting": (
        lambda o: server_of(o)["env"][0]["valueFrom"]["secretKeyRef"].update(key="token"), "is read from key token"),
    "a key of no setting": (
        lambda o: one_of(o, "Secret").update(stringData={"admin": "x"}), "key admin is no setting's"),
    "another user": (lambda o: pod_of(o)["securityContext"].update(runAsUser=1000), "it runs as 1000:10001"),
    "a selector of no pod": (
        lambda o: one_of(o, "Service")["spec"]["selector"].update({"app.kubernetes.io/name": "x"}), "selects no pod"),
    "a selector of every pod": (
        lambda o: one_of(o, "PodDisruptionBudget")["spec"].update(selector={"matchLabels": {}}), "selects no pod"),
    "no claim": (without("PersistentVolumeClaim"), "PersistentVolumeClaim bitserve-models is not there"),
    "no class": (without("PriorityClass"), "PriorityClass bitserve is not there"),
    "no account": (without("ServiceAccount"), "ServiceAccount bitserve is not there"),
    "an autoscaler of another": (
        lambda o: one_of(o, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"].update(name="server"),
        "Deployment server is not there"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", NAMES)
def test_a_name_that_does_not_fit_is_found(whole: list[Object], mistake: str) -> None:
    plant, said = NAMES[mistake]
    objects = copy.deepcopy(whole)
    assert name_findings(objects) == []
    plant(objects)
    assert any(said in found for found in name_findings(objects)), name_findings(objects)


SIZES: dict[str, tuple[Plant, str]] = {
    "a drain longer than the grace": (setting("BITSERVE_DRAIN_S", "50"), "ended after 60 s"),
    "a grace of Kubernetes' own": (lambda o: pod_of(o).pop("terminationGracePeriodSeconds"), "ended after 30 s"),
    "a longer preStop": (
        lambda o: server_of(o)["lifecycle"]["preStop"]["sleep"].update(seconds=40), "drain_s and the end take"),
    "a build larger than the pod": (
        setting("BITSERVE_BUILD_MEMORY_BYTES", None), "bytes of memory"),
    "less memory": (lambda o: server_of(o)["resources"]["limits"].update(memory="2Gi"), "bytes of memory"),
    "builds larger than the volume": (setting("BITSERVE_MAX_BUILDS_BYTES", None), "volume models"),
    "a smaller volume": (
        lambda o: one_of(o, "PersistentVolumeClaim")["spec"]["resources"]["requests"].update(storage="3Gi"),
        "volume models"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", SIZES)
def test_a_size_that_does_not_fit_is_found(whole: list[Object], mistake: str) -> None:
    plant, said = SIZES[mistake]
    objects = copy.deepcopy(whole)
    assert size_findings(objects) == []
    plant(objects)
    assert any(said in found for found in size_findings(objects)), size_findings(objects)


def test_a_mirror_that_does_not_fit_is_found(shipped: list[list[Object]]) -> None:
    objects = copy.deepcopy(shipped[FLAVOURS.index("s3")])
    setting("BITSERVE_MAX_MIRROR_BYTES", "21474836480")(objects)
    assert ["volume cache" in found for found in size_findings(objects)] == [True]


def test_kserve_gives_a_drain_its_time(shipped: list[list[Object]]) -> None:
    objects = copy.deepcopy(shipped[-1])
    one_of(objects, "InferenceService")["spec"]["predictor"]["terminationGracePeriodSeconds"] = 20
    assert ["ended after 20 s" in found for found in size_findings(objects)] == [True]
    one_of(objects, "InferenceService")["spec"]["predictor"]["model"]["runtime"] = "other"
    assert name_findings(objects) == ["InferenceService/letters: ServingRuntime other is not there"]


@pytest.mark.parametrize(
    ("text", "size"), [("1024", 1024), ("2k", 2000), ("4Gi", 2**32), ("1Ti", 2**40), ("5M", 5_000_000)]
)
def test_quantities(text: str, size: int) -> None:
    assert quantity(text) == size


def test_limits_of_the_chart_follow_its_values() -> None:
    objects = helm_template(sets=("drainSeconds=100", "preStopSeconds=20"))
    assert size_findings(objects) == []
    assert pod_of(objects)["terminationGracePeriodSeconds"] == 140
    assert size_findings(helm_template(sets=("settings.build_memory_bytes=8589934592",)))
