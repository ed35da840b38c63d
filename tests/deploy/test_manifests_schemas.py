"""Every validator passes what is shipped, and finds mistakes that are planted into it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.support.builds import build_jobs
from tests.deploy.support.render import (
    DEPLOY,
    FLAVOURS,
    KSERVE,
    Object,
    helm_template,
    kustomize,
    kustomize_with,
    of_kind,
    overlay,
    values_file,
)
from tests.deploy.support.schemas import VERSIONS, builtin_findings, is_builtin
from tests.deploy.support.schemas_checkov import SKIPPED, checkov_findings
from tests.deploy.support.schemas_crds import crd_findings, crds_folder, strict
from tests.deploy.support.schemas_pod_security import CONTROLS, restricted_findings
from tests.deploy.support.schemas_published import published_findings

pytestmark = pytest.mark.timeout(600)  # tools are installed on first use

Plant = Callable[[Any], None]
"""A mistake, made in a deployment's pod spec, or in an object."""


def shipped() -> list[Object]:
    found = [one for flavour in FLAVOURS for one in kustomize(overlay(flavour)) + helm_template(values_file(flavour))]
    monitored = kustomize_with(DEPLOY / "kubernetes" / "components" / "monitoring", flavour="s3", namespace="default")
    return found + kustomize(KSERVE) + monitored


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return shipped()


def first(objects: list[Object], kind: str) -> Object:
    return copy.deepcopy(of_kind(objects, kind)[0])


def broken(objects: list[Object], kind: str, plant: Plant) -> list[Object]:
    one = first(objects, kind)
    plant(one)
    return [one]


def pod_of(one: Object) -> Any:
    return one["spec"]["template"]["spec"]


def put(*path: Any, value: Any) -> Plant:
    """Set one field, its parents as they are; a missing one becomes an object."""

    def plant(one: Any) -> None:
        for key in path[:-1]:
            one = one.setdefault(key, {}) if isinstance(one, dict) else one[key]
        one[path[-1]] = value

    return plant


def in_pod(plant: Plant) -> Plant:
    return lambda one: plant(pod_of(one))


# -- kinds of Kubernetes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_shipped_fits_kubernetes(objects: list[Object], version: str) -> None:
    assert builtin_findings(objects, version) == []
    assert any(is_builtin(one) for one in objects)


@pytest.mark.parametrize(
    ("kind", "plant", "said"),
    [
        ("Deployment", put("spec", "replicas", value="two"), "spec.replicas"),
        ("Deployment", put("spec", "replica", value=2), "replica"),
        ("Deployment", in_pod(put("containers", 0, "readynessProbe", value={})), "readynessProbe"),
        ("Deployment", in_pod(put("containers", 0, "lifecycle", "preStop", "sleep", "second", value=1)), "second"),
        ("Service", put("spec", "ports", 0, "port", value="http"), "port"),
        ("NetworkPolicy", put("spec", "ingres", value=[]), "ingres"),
        ("HorizontalPodAutoscaler", put("spec", "metrics", 0, "pods", "target", "averageUs", value=1), "averageUs"),
        ("PodDisruptionBudget", put("kind", value="PodDisruptionBudgets"), "no such kind"),
    ],
)
def test_a_mistake_in_a_kind_of_kubernetes_is_found(objects: list[Object], kind: str, plant: Plant, said: str) -> None:
    for version in VERSIONS:
        found = builtin_findings(broken(objects, kind, plant), version)
        assert len(found) == 1
        assert said in found[0]


# -- custom resources ------------------------------------------------------------------------------------------------


@pytest.fixture
def crds() -> Path:
    folder = crds_folder()
    if folder is None:
        pytest.skip("BITSERVE_CRDS names no folder of CustomResourceDefinitions; they are not part of this project")
    return folder


def test_what_is_shipped_fits_its_definitions(objects: list[Object], crds: Path) -> None:
    custom = [one for one in objects if not is_builtin(one)]
    assert {one["kind"] for one in custom} == {
        "ScaledObject", "ServingRuntime", "InferenceService", "ServiceMonitor", "PrometheusRule",
    }  # fmt: skip
    assert crd_findings(custom, crds) == []


@pytest.mark.parametrize(
    ("kind", "plant", "said"),
    [
        ("ScaledObject", put("spec", "minReplicaCount", value="two"), "spec.minReplicaCount"),
        ("ScaledObject", put("spec", "minReplicas", value=2), "minReplicas"),
        ("ScaledObject", put("spec", "triggers", 0, "metadata", "threshold", value=4), "spec.triggers.0.metadata"),
        ("ScaledObject", put("spec", "triggers", 0, "metricTyp", value="Value"), "metricTyp"),
        ("ServingRuntime", put("spec", "containers", 0, "readyProbe", value={}), "readyProbe"),
        ("ServingRuntime", put("spec", "securityContext", value={}), "securityContext"),
        ("InferenceService", put("spec", "predictor", "model", "storageUrl", value="s3://x"), "storageUrl"),
        ("ServiceMonitor", put("spec", "endpoints", 0, "scrapeInterval", value="15s"), "scrapeInterval"),
        ("ServiceMonitor", put("spec", "endpoints", 0, "interval", value="15"), "spec.endpoints.0.interval"),
        ("PrometheusRule", put("spec", "groups", 0, "rules", 0, "annotation", value={}), "annotation"),
        ("InferenceService", put("apiVersion", value="serving.kserve.io/v1"), "no definition"),
    ],
)
def test_a_mistake_in_a_custom_resource_is_found(
    objects: list[Object], crds: Path, kind: str, plant: Plant, said: str
) -> None:
    found = crd_findings(broken(objects, kind, plant), crds)
    assert len(found) == 1
    assert said in found[0]


def test_definitions_are_taken_strictly_but_where_they_are_open() -> None:
    schema = {
        "type": "object",
        "properties": {
            "port": {"x-kubernetes-int-or-string": True},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"a": {}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"b": {}}}},
            "maybe": {"type": "string", "nullable": True},
        },
    }
    made = strict(schema)
    assert made["additionalProperties"] is False
    assert made["properties"]["port"] == {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert "additionalProperties" not in made["properties"]["open"]
    assert made["properties"]["map"]["additionalProperties"]["additionalProperties"] is False
    assert made["properties"]["maybe"] == {"type": ["string", "null"]}


def test_a_definition_of_ones_own_is_used(tmp_path: Path) -> None:
    spec = {"type": "object", "properties": {"size": {"type": "integer"}}}
    version = {"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}
    crd = {"spec": {"group": "example.com", "names": {"kind": "Thing"}, "versions": [version]}}
    (tmp_path / "thing.yaml").write_text(yaml.safe_dump(crd))
    thing = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "x"}}
    assert crd_findings([{**thing, "spec": {"size": 1}}], tmp_path) == []
    assert len(crd_findings([{**thing, "spec": {"size": "1", "sizes": 1}}], tmp_path)) == 2


def test_published_types_take_what_is_shipped_and_find_wrong_types(objects: list[Object]) -> None:
    assert published_findings(objects) == []
    for kind, plant in (
        ("ScaledObject", put("spec", "minReplicaCount", value="two")),
        ("ScaledObject", put("spec", "triggers", value={})),
        ("ScaledObject", put("spec", "scaleTargetRef", value={})),
        ("ServiceMonitor", put("spec", "endpoints", 0, "interval", value="15")),
        ("PrometheusRule", put("spec", "groups", 0, "rules", value={})),
    ):
        assert len(published_findings(broken(objects, kind, plant))) == 1


# -- PodSecurity -----------------------------------------------------------------------------------------------------


def test_what_is_shipped_is_restricted(objects: list[Object]) -> None:
    assert restricted_findings(objects) == []


CONTEXT = ("containers", 0, "securityContext")
MISTAKES: list[tuple[str, Plant]] = [
    ("HostProcess", put("securityContext", "windowsOptions", value={"hostProcess": True})),
    ("Host Namespaces", put("hostNetwork", value=True)),
    ("Host Namespaces", put("hostPID", value=True)),
    ("Privileged Containers", put(*CONTEXT, "privileged", value=True)),
    ("Host Ports", put("containers", 0, "ports", 0, "hostPort", value=8000)),
    ("Host Probes / Lifecycle Hooks", put("containers", 0, "livenessProbe", "httpGet", "host", value="10.0.0.1")),
    ("Host Probes / Lifecycle Hooks",
     put("containers", 0, "lifecycle", "postStart", value={"tcpSocket": {"host": "x"}})),
    ("AppArmor", put("securityContext", "appArmorProfile", value={"type": "Unconfined"})),
    ("SELinux", put(*CONTEXT, "seLinuxOptions", value={"type": "spc_t"})),
    ("/proc Mount Type", put(*CONTEXT, "procMount", value="Unmasked")),
    ("Sysctls", put("securityContext", "sysctls", value=[{"name": "net.core.somaxconn", "value": "1024"}])),
    ("Volume Types", put("volumes", 0, value={"name": "models", "hostPath": {"path": "/models"}})),
    ("Volume Types", put("volumes", 1, value={"name": "cache", "nfs": {"server": "x", "path": "/"}})),
    ("Privilege Escalation", put(*CONTEXT, "allowPrivilegeEscalation", value=True)),
    ("Privilege Escalation", put(*CONTEXT, value={"capabilities": {"drop": ["ALL"]}})),
    ("Running as Non-root", put("securityContext", "runAsNonRoot", value=False)),
    ("Running as Non-root", put(*CONTEXT, "runAsNonRoot", value=False)),
    ("Running as Non-root user", put("securityContext", "runAsUser", value=0)),
    ("Seccomp", put("securityContext", "seccompProfile", value={"type": "Unconfined"})),
    ("Seccomp", put("securityContext", value={"runAsNonRoot": True})),
    ("Capabilities", put(*CONTEXT, "capabilities", "add", value=["NET_ADMIN"])),
    ("Capabilities", put(*CONTEXT, "capabilities", "drop", value=["NET_RAW"])),
    ("Capabilities",
     put("initContainers", value=[{"name": "copy", "securityContext": {"allowPrivilegeEscalation": False}}])),
]  # fmt: skip


@pytest.mark.parametrize(("control", "plant"), MISTAKES)
def test_a_pod_that_would_not_be_admitted_is_found(objects: list[Object], control: str, plant: Plant) -> None:
    found = restricted_findings(broken(objects, "Deployment", in_pod(plant)))
    assert [one.split(": ")[1] for one in found] == [control], found


def test_every_control_has_a_mistake() -> None:
    assert {control for control, _ in MISTAKES} == set(CONTROLS)


def test_what_restricted_allows_is_not_found(objects: list[Object]) -> None:
    def allowed(pod: Any) -> None:
        put(*CONTEXT, "capabilities", "add", value=["NET_BIND_SERVICE"])(pod)
        put("volumes", 0, value={"name": "models", "csi": {"driver": "x"}})(pod)
        put("securityContext", "sysctls", value=[{"name": "net.ipv4.tcp_syncookies", "value": "1"}])(pod)

    assert restricted_findings(broken(objects, "Deployment", in_pod(allowed))) == []


# -- checkov ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_checkov_passes_an_overlay(flavour: str) -> None:
    assert checkov_findings(kustomize(overlay(flavour))) == []


@pytest.mark.parametrize("flavour", ["s3", "keda", "jobs"])
def test_checkov_passes_the_jobs_of_a_server_with_a_store(flavour: str) -> None:
    """With the policies that come with them."""
    jobs = build_jobs(kustomize(overlay(flavour)))
    assert checkov_findings([*of_kind(kustomize(overlay("jobs")), "NetworkPolicy"), *jobs]) == []


def test_checkov_finds_jobs_that_no_policy_is_of() -> None:
    objects = kustomize(overlay("s3"))
    found = checkov_findings([*objects, *build_jobs(objects)])
    assert {word for one in found for word in one.split() if word.startswith("CKV")} == {"CKV2_K8S_6"}


def test_checkov_passes_the_right_to_make_jobs() -> None:
    """But for the pod's token, which it then needs: the overlay says so beside it."""
    found = checkov_findings(helm_template(values_file("jobs")))
    assert {one.split()[1] for one in found} == {"CKV_K8S_38"}, found


def test_checkov_finds_mistakes(objects: list[Object]) -> None:
    def careless(pod: Any) -> None:
        put(*CONTEXT, "privileged", value=True)(pod)
        put("containers", 0, "livenessProbe", value=None)(pod)
        put("hostNetwork", value=True)(pod)

    found = " ".join(checkov_findings(broken(objects, "Deployment", in_pod(careless))))
    assert all(check in found for check in ("CKV_K8S_16", "CKV_K8S_8", "CKV_K8S_19")), found


def test_checks_that_are_left_out_have_a_reason() -> None:
    assert all(len(reason) > 20 for reason in SKIPPED.values())
    assert len(SKIPPED) <= 4
