"""Both ways to deploy render, and give the same; the chart refuses what cannot work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from tests.deploy.support.render import (
    CHART,
    DEPLOY,
    FLAVOURS,
    KSERVE,
    Object,
    RenderError,
    comparable,
    helm_lint,
    helm_template,
    identity,
    kustomize,
    kustomize_with,
    of_kind,
    overlay,
    pod_specs,
    values_file,
)
from tests.deploy.support.schemas import VERSIONS, builtin_findings
from tests.deploy.support.schemas_builds import build_findings
from tests.deploy.support.schemas_names import name_findings, version
from tests.deploy.support.schemas_pod_security import restricted_findings

pytestmark = pytest.mark.timeout(600)  # tools are installed on first use

BUILT = {"Deployment", "Service", "ConfigMap", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget"}
MORE = {
    "cpu": ("Secret", "PersistentVolumeClaim"),
    "gpu": ("Secret", "PersistentVolumeClaim", "PriorityClass"),
    "s3": ("HorizontalPodAutoscaler",),
    "keda": ("ScaledObject",),
    "jobs": ("HorizontalPodAutoscaler", "Role", "RoleBinding", "NetworkPolicy", "NetworkPolicy"),
}
OF_OTHER_VALUES = frozenset(
    {
        "host", "port", "repository", "cache", "mirror", "max_mirror_bytes", "drain_s", "admin_token", "plan_key",
        "build_executor", "build_image", "build_gpu_selector", "build_gpu_runtime_class", "pod_name",
    }
)  # fmt: skip
"""Settings that the chart makes of values of its own."""
STORE = ("models.url=s3://bucket/models", "tokens.existingSecret=mine")
JOBS = (*STORE, "builds.executor=kubernetes")
TOKENS = ("tokens.adminToken=a-token-of-mine", "tokens.planKey=0123456789abcdef")


def deployment(objects: list[Object]) -> Object:
    (found,) = of_kind(objects, "Deployment")
    return found


def container(objects: list[Object]) -> Any:
    (found,) = deployment(objects)["spec"]["template"]["spec"]["containers"]
    return found


def config(objects: list[Object]) -> Any:
    (found,) = of_kind(objects, "ConfigMap")
    return found["data"]


def refused(*sets: str) -> str:
    with pytest.raises(RenderError) as error:
        helm_template(sets=sets)
    return str(error.value)


# -- kustomize, and the chart beside it ------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_overlay_has_what_it_should(flavour: str) -> None:
    kinds = [one["kind"] for one in kustomize(overlay(flavour))]
    assert sorted(kinds) == sorted([*BUILT, *MORE[flavour]])


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_chart_gives_the_same(flavour: str) -> None:
    ours, theirs = comparable(kustomize(overlay(flavour))), comparable(helm_template(values_file(flavour)))
    assert set(ours) == set(theirs)
    for one, made in ours.items():
        assert made == theirs[one], one


def test_the_defaults_of_the_chart_are_the_overlay_cpu() -> None:
    assert comparable(helm_template()) == comparable(kustomize(overlay("cpu")))


def test_a_field_that_differs_is_seen() -> None:
    ours, theirs = (
        helm_template(values_file("cpu")),
        helm_template(values_file("cpu"), sets=("resources.limits.cpu=3",)),
    )
    assert comparable(ours) != comparable(theirs)
    assert set(comparable(ours)) == set(comparable(theirs))


def test_labels_of_a_selector_are_compared() -> None:
    assert comparable(helm_template()) != comparable(helm_template(sets=("nameOverride=other",)))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_chart_passes_lint(flavour: str) -> None:
    helm_lint(values_file(flavour))


def test_lint_finds_a_broken_template(tmp_path: Path) -> None:
    broken = Path(shutil.copytree(CHART, tmp_path / "bitserve"))
    (broken / "templates" / "service.yaml").write_text("kind: Service\n  port: {{ .Values.service.port }}\n")
    with pytest.raises(RenderError, match=r"service\.yaml"):
        helm_lint(chart=broken)


def test_an_overlay_with_a_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nothing.yaml]\n")
    with pytest.raises(RenderError, match=r"nothing\.yaml"):
        kustomize(tmp_path)


# -- one volume, or a store ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["cpu", "gpu"])
def test_one_volume_means_one_pod_and_never_two_at_once(flavour: str) -> None:
    objects = kustomize(overlay(flavour))
    (claim,) = of_kind(objects, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    spec = deployment(objects)["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert config(objects)["BITSERVE_CACHE"].startswith("/models/"), "plans go with the pod"


@pytest.mark.parametrize("flavour", ["s3", "keda", "jobs"])
def test_with_a_store_replicas_are_the_autoscalers(flavour: str) -> None:
    objects = kustomize(overlay(flavour))
    spec = deployment(objects)["spec"]
    assert "replicas" not in spec, "applying again would set the number that the autoscaler has chosen"
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert all("persistentVolumeClaim" not in volume for volume in spec["template"]["spec"]["volumes"])
    named = {one["name"]: one["valueFrom"] for one in container(objects)["env"]}
    token = named["BITSERVE_ADMIN_TOKEN"]["secretKeyRef"]
    assert token == {"name": "bitserve-tokens", "key": "admin-token", "optional": False}, "each would make its own"


def test_no_token_is_shipped() -> None:
    for flavour in FLAVOURS:
        for rendered in (kustomize(overlay(flavour)), helm_template(values_file(flavour))):
            assert all("data" not in s and "stringData" not in s for s in of_kind(rendered, "Secret"))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_pod_has_no_rights_unless_it_builds_in_jobs(flavour: str) -> None:
    objects = kustomize(overlay(flavour))
    has_rights = flavour == "jobs"
    assert bool(of_kind(objects, "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")) is has_rights
    assert [spec["automountServiceAccountToken"] for _, spec in pod_specs(objects)] == [has_rights]
    assert ("BITSERVE_BUILD_EXECUTOR" in config(objects)) is has_rights


def test_rights_are_those_of_the_namespace_that_is_named() -> None:
    """Of the account, too: the API refuses a subject without one."""
    for objects in (
        kustomize_with(flavour="jobs", namespace="models"),
        kustomize_with(DEPLOY / "kubernetes" / "components" / "build-jobs", flavour="keda", namespace="models"),
    ):
        (binding,) = of_kind(objects, "RoleBinding")
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "bitserve", "namespace": "models"}]
        assert {one["metadata"]["namespace"] for one in objects} == {"models"}


def test_kserve_takes_its_models_from_the_storage_initializer() -> None:
    runtime, service = kustomize(KSERVE)
    env = {one["name"]: one["value"] for one in runtime["spec"]["containers"][0]["env"]}
    assert env["BITSERVE_REPOSITORY"] == "/mnt/models"
    assert not env["BITSERVE_CACHE"].startswith("/mnt/models"), "it is mounted read-only"
    assert runtime["spec"]["protocolVersions"] == ["v2"]
    known = [(one["name"], one["version"]) for one in runtime["spec"]["supportedModelFormats"]]
    model = service["spec"]["predictor"]["model"]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in known


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("gpu.enabled=yes", "gpu.enabled"),
        ("replicas=none", "replicas"),
        ("replica=2", "replica"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("service.port=80000", "service.port"),
        ("models.url=bucket/models", "models.url"),
        ("models.volume.size=ten", "models.volume.size"),
        ("resources.limits.memory=much", "memory"),
        ("settings.max_queue_row=2", "max_queue_row"),
        ("settings.port=80", "settings"),
        ("tokens.planKey=short", "planKey"),
        ("keda.minReplicas=-1", "minReplicas"),
        ("drainSeconds=30s", "drainSeconds"),
        ("builds.executor=nomad", "executor"),
        ("builds.gpuSelector.gpu=a\\,b", "gpuSelector"),
        ("builds.image=a b", "image"),
        ("settings.build_executor=kubernetes", "settings"),
    ],
)
def test_wrong_values_are_refused(word: str, said: str) -> None:
    message = refused(word)
    assert "don't meet the specifications of the schema" in message
    assert said in message


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("replicas=2",), "set models.url"),
        (("autoscaling.enabled=true",), "set models.url"),
        (("builds.executor=kubernetes",), "set models.url"),
        (("models.url=s3://bucket/models",), "tokens.existingSecret"),
        ((*STORE, "autoscaling.enabled=true", "keda.enabled=true"), "one of them"),
    ],
)
def test_what_could_not_work_is_said(sets: tuple[str, ...], said: str) -> None:
    assert said in refused(*sets)


def test_the_schema_knows_every_setting() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    listed = set(schema["properties"]["settings"]["propertyNames"]["enum"])
    assert listed == set(Settings.model_fields) - OF_OTHER_VALUES


def test_settings_become_variables_that_the_server_reads_as_they_were_meant() -> None:
    sets = ("settings.max_queue_rows=30000000", "settings.watch_s=0.5", "settings.metrics=false")
    data = config(helm_template(sets=(*sets, "settings.log_level=debug", "settings.max_held_bytes=1048576")))
    fields = {name.removeprefix("BITSERVE_").lower(): value for name, value in data.items()}
    made = Settings(**fields)
    assert (made.max_queue_rows, made.watch_s, made.metrics) == (30_000_000, 0.5, False)
    assert (made.log_level, made.max_held_bytes) == ("debug", 1_048_576)


def test_what_builds_are_made_of_is_set_by_their_own_values() -> None:
    no_default = "builds.gpuSelector.nvidia\\.com/gpu\\.present=null"
    data = config(helm_template(sets=(*JOBS, no_default, "builds.gpuSelector.gpu=h100", "builds.image=bitserve-gpu:1")))
    made = Settings(**{name.removeprefix("BITSERVE_").lower(): v for name, v in data.items() if name[:3] != "AWS"})
    assert (made.build_executor, made.build_image, made.gpu_selector) == (
        "kubernetes", "bitserve-gpu:1", {"gpu": "h100"},
    )  # fmt: skip
    assert config(helm_template(sets=(*JOBS, no_default)))["BITSERVE_BUILD_GPU_SELECTOR"] == ""
    assert not {name for name in config(helm_template(sets=STORE)) if name.startswith("BITSERVE_BUILD_")} - {
        "BITSERVE_BUILD_MEMORY_BYTES"
    }


@pytest.mark.parametrize(
    "sets",
    [
        (*JOBS, "models.endpoint=https://store.example:9000", "networkPolicy.storePorts={9000}", "replicas=3"),
        (*JOBS, "gpu.enabled=true", "builds.gpuSelector.gpu=h100", "networkPolicy.enabled=false"),
        (*STORE, "models.endpoint=https://store.example:9000", "networkPolicy.storePorts={9000}", "replicas=3"),
        ("gpu.enabled=true", "gpu.count=2", "gpu.runtimeClassName=", "priorityClass.name=mine"),
        ("models.volume.existingClaim=mine", "models.volume.storageClassName=fast", "podAnnotations.team=search"),
        ("nodeSelector.disk=ssd", "image.pullSecrets[0].name=registry", "serviceAccount.annotations.role=x"),
        ("networkPolicy.enabled=false", "podDisruptionBudget.enabled=false", "service.type=LoadBalancer"),
        (*STORE, "keda.enabled=true", "keda.moreTriggers[0].type=cron", "image.tag=" + version()),
    ],
)
def test_other_values_give_manifests_that_hold_as_well(sets: tuple[str, ...]) -> None:
    objects = helm_template(sets=sets)
    assert [found for one in VERSIONS for found in builtin_findings(objects, one)] == []
    assert restricted_findings(objects) == []
    assert build_findings(objects) == []
    of_the_user = {"PersistentVolumeClaim mine is not there", "PriorityClass mine is not there"}
    assert {found.partition(": ")[2] for found in name_findings(objects)} <= of_the_user


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ((), "logs deployment/bitserve | grep 'admin token'"),
        (TOKENS, "with that token in BITSERVE_ADMIN_TOKEN"),
        (STORE, "Models come from s3://bucket/models"),
        (JOBS, "get jobs -l app.kubernetes.io/instance=bitserve,app.kubernetes.io/component=build"),
        ((*STORE, "keda.enabled=true", "keda.minReplicas=0"), "requests fail until one is started"),
    ],
)
def test_notes_say_what_to_do_next(tmp_path: Path, sets: tuple[str, ...], said: str) -> None:
    """Helm shows them after an install alone, so here they are a template like any other."""
    chart = Path(shutil.copytree(CHART, tmp_path / "bitserve"))
    notes = (chart / "templates" / "NOTES.txt").read_text()
    text = "".join(f"    {line}\n" for line in notes.splitlines())
    head = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata:\n  text: |\n"
    (chart / "templates" / "notes.yaml").write_text(head + text)
    shown = [one["data"]["text"] for one in helm_template(sets=sets, chart=chart) if one["metadata"]["name"] == "notes"]
    assert said in shown[0]


def test_two_releases_share_no_name() -> None:
    ours, theirs = (
        {identity(one) for one in helm_template(sets=(f"fullnameOverride={name}", "builds.executor=kubernetes", *more))}
        for name, more in (("first", ("models.url=s3://bucket/models", *TOKENS)), ("second", STORE))
    )
    assert not ours & theirs
