"""What the API fills in of a Job that it accepts, and of a pod."""

from __future__ import annotations

import copy
import uuid
from typing import Any

from tests.support.kubernetes_objects import Object, now

__all__ = ["TRACKING", "identified", "job_as_stored", "pod_as_stored"]

TRACKING = "batch.kubernetes.io/job-tracking"
"""The finalizer that keeps a pod until its Job has counted it."""
_PREFIX = "batch.kubernetes.io/"
_VOLUMES: dict[str, Object] = {
    "secret": {"defaultMode": 420}, "configMap": {"defaultMode": 420}, "projected": {"defaultMode": 420},
    "downwardAPI": {"defaultMode": 420},
}  # fmt: skip


def identified(metadata: Object, namespace: str) -> Object:
    """Metadata as of an object that was just made; its resourceVersion comes when it is stored."""
    own = {"namespace": namespace, "uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": now()}
    return {**metadata, **own}


def job_as_stored(sent: Object, namespace: str) -> Object:
    """The Job with what the API adds."""
    job = copy.deepcopy(sent)
    metadata = job["metadata"] = identified(job["metadata"], namespace)
    spec = job["spec"]
    _default(spec, parallelism=1, completions=1, backoffLimit=6, completionMode="NonIndexed", suspend=False)
    _default(spec, podReplacementPolicy="Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed")
    for rule in spec.get("podFailurePolicy", {}).get("rules", ()):
        for condition in rule.get("onPodConditions", ()):
            _default(condition, status="True")
    if not spec.get("manualSelector"):
        spec["selector"] = {"matchLabels": {f"{_PREFIX}controller-uid": metadata["uid"]}}
    about = spec["template"].setdefault("metadata", {})
    own = {"controller-uid": metadata["uid"], "job-name": metadata["name"]}
    labels = {**(about.get("labels") or {}), **own, **{f"{_PREFIX}{key}": value for key, value in own.items()}}
    about["labels"] = labels
    if not metadata.get("labels"):  # the API takes those of the template
        metadata["labels"] = dict(labels)
    _default_pod(spec["template"]["spec"])
    job["status"] = {}
    return job


def pod_as_stored(pod: Object, namespace: str) -> Object:
    """A pod with what the API adds; it has no status yet."""
    made = copy.deepcopy(pod)
    made["metadata"] = identified(made["metadata"], namespace)
    del made["metadata"]["generation"]  # pods have one since 1.34 only
    spec = made["spec"]
    _default_pod(spec)
    _default(spec, serviceAccountName="default", enableServiceLinks=True, preemptionPolicy="PreemptLowerPriority")
    _default(spec, restartPolicy="Always", priority=0, serviceAccount=spec["serviceAccountName"])
    spec.setdefault("tolerations", []).extend(
        {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
        for what in ("not-ready", "unreachable")
    )
    return made


def _default(one: Object, **values: Any) -> None:
    for key, value in values.items():
        one.setdefault(key, value)


def _default_pod(spec: Object) -> None:
    _default(spec, dnsPolicy="ClusterFirst", schedulerName="default-scheduler", securityContext={})
    _default(spec, terminationGracePeriodSeconds=30)
    if "serviceAccountName" in spec:  # the field's old name stays in step
        _default(spec, serviceAccount=spec["serviceAccountName"])
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        _default_container(container)
    for volume in spec.get("volumes", ()):
        for kind, values in _VOLUMES.items():
            if kind in volume:
                _default(volume[kind], **values)


def _default_container(container: Object) -> None:
    _default(container, terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File", resources={})
    image = container["image"].rpartition("/")[2]
    latest = "@" not in image and (":" not in image or image.endswith(":latest"))
    _default(container, imagePullPolicy="Always" if latest else "IfNotPresent")
    resources = container["resources"]
    if resources.get("limits"):  # what is limited and not requested is requested as limited
        resources["requests"] = {**resources["limits"], **resources.get("requests", {})}
    for port in container.get("ports", ()):
        _default(port, protocol="TCP")
    for variable in container.get("env", ()):
        if "fieldRef" in variable.get("valueFrom", {}):
            _default(variable["valueFrom"]["fieldRef"], apiVersion="v1")
