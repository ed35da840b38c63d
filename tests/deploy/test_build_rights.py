"""What builds as Jobs may ask of the API, and their pods of the network; each rule finds a mistake that is planted."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from app.cluster.api import RIGHTS
from app.cluster.job import COMPONENT
from tests.deploy.support.builds import build_jobs
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
from tests.deploy.support.schemas_builds import build_findings, job_findings
from tests.deploy.support.schemas_checkov import checkov_findings
from tests.support.servers import ROOT

pytestmark = pytest.mark.timeout(600)  # tools are installed on first use

Plant = Callable[[list[Object]], object]
VERBS = {"create": "create", "read": "get", "list": "list", "delete": "delete", "patch": "patch", "replace": "update"}
RESOURCES = {"job": ("batch", "jobs"), "pod": ("", "pods"), "pod_log": ("", "pods/log")}


@pytest.fixture(scope="module")
def rendered() -> list[Object]:
    return kustomize(overlay("jobs"))


@pytest.fixture
def objects(rendered: list[Object]) -> list[Object]:
    return copy.deepcopy(rendered)


def named(objects: list[Object], kind: str, name: str) -> Any:
    (found,) = [one for one in of_kind(objects, kind) if one["metadata"]["name"] == name]
    return found


def asked_for(source: str) -> dict[tuple[str, str], set[str]]:
    """By which methods of the client a source calls. AssertionError where one is not of a namespace."""
    found: dict[tuple[str, str], set[str]] = {}
    for call in re.finditer(r"self\._(?:batch|core)\.(\w+)((?:[^()]|\([^()]*\))*)", source):
        match = re.fullmatch(r"([a-z]+)_namespaced_(\w+)", call[1])
        assert match, call[1]
        verbs = found.setdefault(RESOURCES[match[2]], set())
        verbs.add("watch" if "watch=True" in call[2] else VERBS[match[1]])
    return found


def test_rights_are_what_the_code_asks_for() -> None:
    folder = ROOT / "app" / "cluster"
    source = (folder / "api.py").read_text()
    assert asked_for(source) == {what: set(verbs) for what, verbs in RIGHTS.items()}
    others = [path.name for path in folder.glob("*.py") if "_namespaced_" in path.read_text()]
    assert others == ["api.py"]
    with_more = source + "await self._core.replace_namespaced_pod(name)\n"
    assert asked_for(with_more)["", "pods"] == {"get", "list", "update"}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("render", ["kustomize", "chart"])
def test_all_that_is_shipped_holds(flavour: str, render: str) -> None:
    objects = kustomize(overlay(flavour)) if render == "kustomize" else helm_template(values_file(flavour))
    assert build_findings(objects) == []
    jobs = list(build_jobs(objects))
    assert bool(jobs) is (flavour not in ("cpu", "gpu")), "these have no store"
    assert all(job_findings(job, objects) == [] for job in jobs)


def test_kserve_has_no_rights() -> None:
    assert build_findings(kustomize(KSERVE)) == []


def test_jobs_of_servers_with_gpus_hold() -> None:
    objects = helm_template(values_file("gpu"), values_file("jobs"))
    assert build_findings(objects) == []
    (job, *_) = build_jobs(objects)
    assert job["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"
    assert checkov_findings([*of_kind(objects, "NetworkPolicy"), *build_jobs(objects)]) == []


def rules(objects: list[Object]) -> Any:
    return named(objects, "Role", "bitserve-build-jobs")["rules"]


def policy(objects: list[Object], name: str) -> Any:
    return named(objects, "NetworkPolicy", name)["spec"]


def pod(objects: list[Object]) -> Any:
    return named(objects, "Deployment", "bitserve")["spec"]["template"]["spec"]


def config(objects: list[Object]) -> Any:
    return named(objects, "ConfigMap", "bitserve")["data"]


MISTAKES: dict[str, tuple[Plant, str]] = {
    "a verb that is not asked for": (
        lambda o: rules(o)[1]["verbs"].append("watch"), "a right to watch pods, which nothing asks for"),
    "a verb that is missing": (
        lambda o: rules(o)[0]["verbs"].remove("delete"), "no right to delete batch/jobs, which the server asks for"),
    "secrets": (lambda o: rules(o)[1]["resources"].append("secrets"), "a right to get secrets"),
    "every verb": (lambda o: rules(o)[0].update(verbs=["*"]), "a right to * batch/jobs"),
    "no role": (lambda o: o.remove(named(o, "Role", "bitserve-build-jobs")), "no right to get pods/log"),
    "a role of all namespaces": (
        lambda o: o.append({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                            "metadata": {"name": "x"}, "rules": []}), "rights beyond the namespace"),
    "rights without Jobs": (
        lambda o: config(o).pop("BITSERVE_BUILD_EXECUTOR"), "a right to create batch/jobs, which nothing asks for"),
    "rights of another": (
        lambda o: named(o, "RoleBinding", "bitserve-build-jobs")["subjects"][0].update(name="default"),
        "it is given to [('ServiceAccount', 'default')]"),
    "an account of another namespace": (
        lambda o: named(o, "RoleBinding", "bitserve-build-jobs")["subjects"][0].update(namespace="other"),
        "it is given to []"),
    "no token": (lambda o: pod(o).update(automountServiceAccountToken=False), "it needs a token of the API"),
    "a token without need": (
        lambda o: config(o).pop("BITSERVE_BUILD_EXECUTOR"), "it has a needless token of the API"),
    "no way to the API": (
        lambda o: o.remove(named(o, "NetworkPolicy", "bitserve-build-jobs")),
        "servers do not reach the API by port 6443 TCP"),
    "no policy of builds": (
        lambda o: o.remove(named(o, "NetworkPolicy", "bitserve-builds")), "no policy keeps pods of labels"),
    "a policy of other pods": (
        lambda o: policy(o, "bitserve-builds")["podSelector"]["matchLabels"].update(
            {"app.kubernetes.io/component": "builder"}), "no policy keeps pods of labels"),
    "builds that are asked": (
        lambda o: policy(o, "bitserve-builds").update(ingress=[{"ports": [{"port": "http", "protocol": "TCP"}]}]),
        "pods that build are asked by nobody"),
    "builds without names": (
        lambda o: policy(o, "bitserve-builds")["egress"].pop(0), "builds do not reach port 53 UDP"),
    "a store of another port": (
        lambda o: config(o).update(AWS_ENDPOINT_URL="https://store.example:9000"), "builds do not reach port 9000 TCP"),
    "builds that reach more": (
        lambda o: policy(o, "bitserve-builds")["egress"][1]["ports"].append({"port": 22, "protocol": "TCP"}),
        "builds reach port 22 TCP, servers do not"),
    "a Service of builds": (
        lambda o: named(o, "Service", "bitserve")["spec"]["selector"].pop("app.kubernetes.io/component"),
        "Service/bitserve: it selects pods that build"),
    "a root user": (lambda o: pod(o)["securityContext"].update(runAsUser=0), "Running as Non-root user"),
    "an image that is none": (lambda o: config(o).update(BITSERVE_BUILD_IMAGE="builder:1"), "image builder is none of"),
    "a volume too small": (
        lambda o: named(o, "Deployment", "bitserve")["spec"]["template"]["spec"]["volumes"][0]["emptyDir"].update(
            sizeLimit="8Gi"), "volume cache has"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(objects: list[Object], mistake: str) -> None:
    plant, said = MISTAKES[mistake]
    plant(objects)
    found = build_findings(objects)
    assert any(said in one for one in found), found


JOB_MISTAKES: dict[str, tuple[Callable[[Any], object], str]] = {
    "less memory": (
        lambda job: job["containers"][0]["resources"]["limits"].update(memory="3071Mi"), "limits of 3220176896 bytes"),
    "memory that others may have": (
        lambda job: job["containers"][0]["resources"]["requests"].update(memory="1Gi"), "requests of 1073741824 bytes"),
    "an admin token": (
        lambda job: job["containers"][0]["env"].append({"name": "BITSERVE_ADMIN_TOKEN", "value": "x"}),
        "it has the admin token"),
    "a token of the API": (lambda job: job.pop("automountServiceAccountToken"), "a needless token of the API"),
    "a field that is none": (lambda job: job.update(restartPolice="Never"), "restartPolice"),
    "a capability": (
        lambda job: job["containers"][0]["securityContext"].pop("capabilities"), "must drop ALL"),
    "a variable that is no setting": (
        lambda job: job["containers"][0]["env"].append({"name": "BITSERVE_BUILD_GPUS", "value": "1"}),
        "variable BITSERVE_BUILD_GPUS is no setting"),
    "a key of another": (
        lambda job: job["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"].update(key="key"),
        "is read from key key"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", JOB_MISTAKES)
def test_a_mistake_of_a_job_is_found(objects: list[Object], mistake: str) -> None:
    plant, said = JOB_MISTAKES[mistake]
    job: Any = next(build_jobs(objects))
    plant(job["spec"]["template"]["spec"])
    found = job_findings(job, objects)
    assert any(said in one for one in found), found


def test_a_label_that_is_too_long_is_found(objects: list[Object]) -> None:
    job: Any = next(build_jobs(objects))
    job["spec"]["template"]["metadata"]["labels"]["bitserve/build"] = "b" * 64
    assert "a label is longer than 63 characters" in " ".join(job_findings(job, objects))


def test_the_policy_of_builds_is_of_the_codes_component(objects: list[Object]) -> None:
    labels = policy(objects, "bitserve-builds")["podSelector"]["matchLabels"]
    assert labels["app.kubernetes.io/component"] == COMPONENT
