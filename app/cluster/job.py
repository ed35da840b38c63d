"""The Job that carries out a build, made from the pod of the server that asks for it. Nothing is asked or changed here.

It has the server's image, settings, secrets, volumes for scratch and CPU: a plan is for as many threads as were there
when it was made, and the servers that will read it have these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from app.builds.shared.name import job_name

__all__ = ["BUILD_LABEL", "COMPONENT", "JobOptions", "job_of", "selector_of"]

Object = dict[str, Any]
COMPONENT = "build"
"""Of `app.kubernetes.io/component`: a Service and policies of servers leave these pods alone."""
BUILD_LABEL, MODEL_ANNOTATION = "bitserve/build", "bitserve/model"
_NAME, _INSTANCE, _COMPONENT = (f"app.kubernetes.io/{part}" for part in ("name", "instance", "component"))
_GPU = "nvidia.com/gpu"
_KEPT_S = 3600
"""A finished Job and its log; how the build ended is in the store."""
_RETRIES = 1
_WAITS_S = 3600
"""For a node to be there, beside the time that its tries may take."""
_LONGEST_S = 7 * 86_400
_BESIDE_BYTES = 2**30
"""What the process takes that watches the compile, fetches and publishes."""
_LEAVES_S = 30
_CONTAINER, _SERVER = "build", "server"
_OF_POD = ("securityContext", "serviceAccountName", "imagePullSecrets", "nodeSelector", "runtimeClassName")
_OF_CONTAINER = ("image", "imagePullPolicy", "envFrom", "securityContext")
_ROLE = (
    "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
)  # fmt: skip
_NOT_THEIRS = frozenset({"BITSERVE_ADMIN_TOKEN", "BITSERVE_BUILD_EXECUTOR", "BITSERVE_POD_NAME", *_ROLE})
"""A build answers nobody; and what gives a pod a role in the cloud gives it to this one as well."""
_SCRATCH = ("emptyDir", "configMap", "secret", "ephemeral")


class JobOptions(NamedTuple):
    """`build_memory_bytes` and `build_timeout_s` are what one compile may take; `image` empty: the server's."""

    build_memory_bytes: int
    build_timeout_s: float
    image: str = ""
    gpu_selector: Mapping[str, str] = {}
    gpu_runtime_class: str = ""
    """Of pods that get a GPU which the server's has not; empty: the nodes' own."""


def selector_of(pod: Object) -> str:
    """Of all Jobs of this pod's servers."""
    labels = _labels_of(pod)
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels))


def _labels_of(pod: Object) -> dict[str, str]:
    theirs = pod["metadata"].get("labels", {})
    return {key: theirs[key] for key in (_NAME, _INSTANCE) if key in theirs} | {_COMPONENT: COMPONENT}


def job_of(pod: Object, build: str, model: str, targets: Sequence[str], options: JobOptions) -> Object:
    """`targets` are those that the build's spec names."""
    labels = {**_labels_of(pod), BUILD_LABEL: build}
    tries_s = (_RETRIES + 1) * round(min(options.build_timeout_s, _LONGEST_S))
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_name(build), "labels": labels, "annotations": {MODEL_ANNOTATION: model}},
        "spec": {
            "backoffLimit": _RETRIES,
            "ttlSecondsAfterFinished": _KEPT_S,
            "activeDeadlineSeconds": _WAITS_S + tries_s,
            # a node that is drained is no failure of the build
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
            },
            "template": {"metadata": {"labels": labels}, "spec": _pod_of(pod["spec"], build, targets, options)},
        },
    }


def _pod_of(server: Object, build: str, targets: Sequence[str], options: JobOptions) -> Object:
    """By a list of what is taken over: the API and what it admits add much to a pod that is not for another."""
    container = _container_of(server)
    volumes, mounts = _volumes(server, container)
    spec = {key: server[key] for key in _OF_POD if server.get(key)}
    made = {key: container[key] for key in _OF_CONTAINER if container.get(key)}
    if options.image:
        made["image"] = options.image
    spec |= {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _LEAVES_S,
        "tolerations": _tolerations(server),
        "containers": [
            made
            | {
                "name": _CONTAINER,
                "args": ["build", build],
                "env": [one for one in container.get("env", []) if one["name"] not in _NOT_THEIRS],
                "resources": _resources(container.get("resources", {}), options),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if "tensorrt" in targets and not _has_gpu(container):
        _add_gpu(spec, options)
    elif nodes := server.get("affinity", {}).get("nodeAffinity"):  # a plan is for the kind of node that servers have
        spec["affinity"] = {"nodeAffinity": nodes}
    return spec


def _container_of(server: Object) -> Object:
    """By its name: what a mesh puts into a pod may stand before it."""
    found: list[Object] = server["containers"]
    return next((one for one in found if one["name"] == _SERVER), found[0])


def _tolerations(server: Object) -> list[Object]:
    """But for those that the API gives to every pod."""
    given = "node.kubernetes.io/"
    return [one for one in server.get("tolerations", []) if not str(one.get("key", "")).startswith(given)]


def _has_gpu(container: Object) -> bool:
    return _GPU in container.get("resources", {}).get("limits", {})


def _add_gpu(spec: Object, options: JobOptions) -> None:
    """TensorRT builds on a GPU, of the kind that the plan is for."""
    resources = spec["containers"][0]["resources"]
    for kind in ("requests", "limits"):
        resources[kind] = {**resources.get(kind, {}), _GPU: "1"}
    spec["nodeSelector"] = {**spec.get("nodeSelector", {}), **options.gpu_selector}
    if options.gpu_runtime_class:
        spec["runtimeClassName"] = options.gpu_runtime_class
    spec["tolerations"] = [*spec["tolerations"], {"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}]


def _resources(server: Object, options: JobOptions) -> Object:
    """All memory is asked for at once: a compile is ended for what it takes too much of, not its pod."""
    memory = f"{-(-(options.build_memory_bytes + _BESIDE_BYTES) // 2**20)}Mi"
    return {kind: {**server.get(kind, {}), "memory": memory} for kind in ("requests", "limits")}


def _volumes(server: Object, container: Object) -> tuple[list[Object], list[Object]]:
    """Scratch and mounted files; in place of a claim, which a pod on another node cannot have, an empty folder."""
    by_name = {volume["name"]: volume for volume in server.get("volumes", [])}
    volumes, mounts = [], []
    for mount in container.get("volumeMounts", []):
        volume = by_name.get(mount["name"], {})
        if "persistentVolumeClaim" in volume:
            volume = {"name": volume["name"], "emptyDir": {}}
        if any(kind in volume for kind in _SCRATCH):  # no tokens: their pods get their own
            volumes.append(volume)
            mounts.append(mount)
    return list({volume["name"]: volume for volume in volumes}.values()), mounts
