"""Jobs that the servers of a rendering would make, from their pods as the API has them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from app.cluster.job import JobOptions, job_of
from tests.deploy.support.render import Object, of_kind
from tests.deploy.support.schemas_names import environment
from tests.deploy.support.schemas_sizes import settings_of
from tests.support.kubernetes_defaults import pod_as_stored

__all__ = ["BUILD", "as_admitted", "build_jobs", "builds_in_jobs", "server_pod"]

BUILD = "20260101-120000-000000-0123abcd"
_TARGETS = {BUILD: ("openvino",), f"{BUILD[:-1]}e": ("openvino", "tensorrt"), f"{BUILD[:-1]}f": ("tensorrt-rtx",)}
_TOKEN = "kube-api-access-x7k2p"


def as_admitted(pod: Object) -> Object:
    """With what the API, its admission and the scheduler add to a pod that runs."""
    made = pod_as_stored(pod, "default")
    made["metadata"].setdefault("labels", {})["pod-template-hash"] = "6b7d9c5f4"
    made["spec"] |= {"nodeName": "node-1", "priorityClassName": made["spec"].get("priorityClassName", "batch")}
    if made["spec"].get("automountServiceAccountToken", True):
        sources = [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]
        volume = {"name": _TOKEN, "projected": {"sources": sources, "defaultMode": 420}}
        made["spec"].setdefault("volumes", []).append(volume)
        mount = {"name": _TOKEN, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
        for container in made["spec"]["containers"]:
            container.setdefault("volumeMounts", []).append(mount)
    return made


def server_pod(deployment: Object) -> Object:
    """One that runs."""
    template = copy.deepcopy(deployment["spec"]["template"])
    name = f"{deployment['metadata']['name']}-6b7d9c5f4-x2x4z"
    return as_admitted({"metadata": {**template["metadata"], "name": name}, "spec": template["spec"]})


def builds_in_jobs(container: Object, objects: list[Object]) -> bool:
    """Whether the server is told to."""
    return environment(container, objects).get("BITSERVE_BUILD_EXECUTOR") == "kubernetes"


def build_jobs(objects: list[Object]) -> Iterator[Object]:
    """For each kind of target, one of each server with a store, whether it is told to make Jobs or not."""
    for deployment in of_kind(objects, "Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        settings = settings_of(container, objects)
        if settings.store is None:
            continue
        options = JobOptions(
            settings.build_memory_bytes, settings.build_timeout_s, settings.build_image or "", settings.gpu_selector
        )
        for build, targets in _TARGETS.items():
            yield job_of(server_pod(deployment), build, "letters", targets, options)
