"""What controllers and a kubelet write into the status of pods and Jobs. Each function gives a new object."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterable
from typing import Any

from tests.support.kubernetes_defaults import TRACKING, pod_as_stored
from tests.support.kubernetes_objects import Object, now, suffix

__all__ = [
    "DISRUPTIONS", "is_finished", "job_counted", "job_ended", "job_finished", "job_started", "job_verdict", "owned_by",
    "pod_ended", "pod_of", "pod_running", "pod_scheduled", "pod_unschedulable",
]  # fmt: skip

DISRUPTIONS = {"Evicted": "TerminationByKubelet", "Preempting": "PreemptionByScheduler", "NodeLost": "DeletionByPodGC"}
"""Reasons of a pod, and not of a container: the cluster ended it. Each with the reason of its DisruptionTarget."""
_NODE = "node-1"
_FINAL = ("Complete", "Failed")
Verdict = tuple[str, str]
"""Reason and message of a Job's end."""


def owned_by(pod: Object, job: Object) -> bool:
    return any(one["uid"] == job["metadata"]["uid"] for one in pod["metadata"].get("ownerReferences", ()))


def is_finished(job: Object) -> bool:
    return any(one["type"] in _FINAL and one["status"] == "True" for one in job["status"].get("conditions", ()))


def pod_of(job: Object) -> Object:
    """A new pod out of the Job's template: pending, and not yet on a node."""
    template, about = copy.deepcopy(job["spec"]["template"]), job["metadata"]
    base = f"{about['name'][:57]}-"
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": about["name"], "uid": about["uid"]}
    metadata: Object = {
        **{key: template["metadata"][key] for key in ("labels", "annotations") if key in template["metadata"]},
        "name": base + suffix(), "generateName": base, "finalizers": [TRACKING],
        "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
    }  # fmt: skip
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    return {
        **pod_as_stored(pod, about["namespace"]),
        "status": {"phase": "Pending", "qosClass": _qos(template["spec"])},
    }


def _qos(spec: Object) -> str:
    resources = [container.get("resources", {}) for container in spec["containers"]]
    if not any(one.get("limits") or one.get("requests") for one in resources):
        return "BestEffort"
    same = all(
        one.get("limits") == one.get("requests") and {"cpu", "memory"} <= set(one.get("limits", ()))
        for one in resources
    )
    return "Guaranteed" if same else "Burstable"


def pod_unschedulable(pod: Object, message: str) -> Object:
    """No node takes it."""
    made = copy.deepcopy(pod)
    made["spec"].pop("nodeName", None)
    condition = _condition("PodScheduled", False, "Unschedulable", message)
    made["status"] = {"phase": "Pending", "qosClass": made["status"]["qosClass"], "conditions": [condition]}
    return made


def pod_scheduled(pod: Object) -> Object:
    """A node makes its containers."""
    made = copy.deepcopy(pod)
    made["spec"]["nodeName"] = _NODE
    waiting = [_container(one, {"waiting": {"reason": "ContainerCreating"}}) for one in made["spec"]["containers"]]
    made["status"].update(
        hostIP="10.0.0.1", hostIPs=[{"ip": "10.0.0.1"}], startTime=now(), containerStatuses=waiting,
        conditions=[*_unready(made, "ContainersNotReady"), _condition("PodScheduled", True)],
    )  # fmt: skip
    return made


def pod_running(pod: Object) -> Object:
    made = copy.deepcopy(pod)
    running = [_container(one, {"running": {"startedAt": now()}}) for one in made["spec"]["containers"]]
    made["status"].update(
        phase="Running", podIP="10.1.0.7", podIPs=[{"ip": "10.1.0.7"}], containerStatuses=running,
        conditions=[
            _condition("PodReadyToStartContainers", True), _condition("Initialized", True), _condition("Ready", True),
            _condition("ContainersReady", True), _condition("PodScheduled", True),
        ],
    )  # fmt: skip
    return made


def pod_ended(pod: Object, reason: str, exit_code: int, message: str = "") -> Object:
    """Its containers have ended; 0 is success. One of DISRUPTIONS is said of the pod, any other of its containers."""
    made = copy.deepcopy(pod)
    metadata, status = made["metadata"], made["status"]
    metadata["finalizers"] = [one for one in metadata.get("finalizers", ()) if one != TRACKING]
    if not metadata["finalizers"]:  # its Job has counted it
        del metadata["finalizers"]
    of_pod = reason in DISRUPTIONS
    started = next((one["state"]["running"]["startedAt"] for one in status.get("containerStatuses", ())
                    if "running" in one["state"]), now())  # fmt: skip
    ended: Object = {"exitCode": exit_code, "reason": "Error" if of_pod else reason, "startedAt": started}
    ended.update(finishedAt=now(), **({"message": message} if message and not of_pod else {}))
    phase, why = ("Succeeded", "PodCompleted") if exit_code == 0 else ("Failed", "PodFailed")
    conditions = [*_unready(made, why), _condition("PodScheduled", True)]
    if of_pod:
        text = message or "The node was low on resource: memory."
        conditions.insert(0, _condition("DisruptionTarget", True, DISRUPTIONS[reason], text))
        status.update(reason=reason, message=text)
    containers = [_container(one, {"terminated": dict(ended)}) for one in made["spec"]["containers"]]
    status.update(phase=phase, conditions=conditions, containerStatuses=containers)
    return made


def _unready(pod: Object, reason: str) -> list[Object]:
    names = " ".join(one["name"] for one in pod["spec"]["containers"])
    message = f"containers with unready status: [{names}]" if reason == "ContainersNotReady" else ""
    initialized = _condition("Initialized", True, reason if reason == "PodCompleted" else "")
    started = _condition("PodReadyToStartContainers", False)
    return [started, initialized, *(_condition(kind, False, reason, message) for kind in ("Ready", "ContainersReady"))]


def _condition(kind: str, met: bool, reason: str = "", message: str = "") -> Object:
    texts = {key: text for key, text in (("reason", reason), ("message", message)) if text}
    return {"type": kind, "status": str(met), "lastProbeTime": None, "lastTransitionTime": now(), **texts}


def _container(container: Object, state: Object) -> Object:
    """The status of one container; ids are those of a container runtime, by form."""
    waits = "waiting" in state
    mark = "" if waits else f"containerd://{uuid.uuid4().hex * 2}"
    if "terminated" in state:
        state["terminated"]["containerID"] = mark
    runs = "running" in state
    made = {"name": container["name"], "image": container["image"], "state": state, "lastState": {}, "restartCount": 0}
    made.update(ready=runs, started=runs, imageID="" if waits else f"{container['image']}@sha256:{'0' * 64}")
    return made if waits else {**made, "containerID": mark}


def job_counted(job: Object, pods: Iterable[Object]) -> Object:
    """The Job's counts of the pods that are on their way."""
    made = copy.deepcopy(job)
    active = [pod for pod in pods if pod["status"]["phase"] in {"Pending", "Running"}]
    ready = sum(one["type"] == "Ready" and one["status"] == "True"
                for pod in active for one in pod["status"].get("conditions", ()))  # fmt: skip
    made["status"].update(active=len(active), ready=ready, terminating=0)
    made["status"].setdefault("uncountedTerminatedPods", {})
    if not active:  # the API leaves out this zero, and not the others
        del made["status"]["active"]
    return made


def job_started(job: Object, pods: Iterable[Object]) -> Object:
    made = job_counted(job, pods)
    made["status"].setdefault("startTime", now())
    return made


def job_ended(job: Object, pods: Iterable[Object], **more: int) -> Object:
    """`succeeded` or `failed` more pods have ended."""
    made = job_counted(job, pods)
    for field, count in more.items():
        if count:
            made["status"][field] = made["status"].get(field, 0) + count
    return made


def job_finished(job: Object, verdict: Verdict | None) -> list[Object]:
    """The two updates of a Job's end: what it will be, and that it is. A verdict is of failure."""
    reason, message = verdict or ("CompletionsReached", "Reached expected number of succeeded pods")
    kinds = ("FailureTarget", "Failed") if verdict else ("SuccessCriteriaMet", "Complete")
    first = copy.deepcopy(job)
    conditions = first["status"].setdefault("conditions", [])
    conditions.append(_condition(kinds[0], True, reason, message))
    second = copy.deepcopy(first)
    second["status"]["conditions"].append(_condition(kinds[1], True, reason, message))
    if verdict is None:
        second["status"]["completionTime"] = now()
    for one in (first, second):  # conditions of Jobs tell when they were looked at, those of pods need not
        for condition in one["status"]["conditions"]:
            condition["lastProbeTime"] = condition["lastTransitionTime"]
    return [first, second]


def job_verdict(job: Object, pod: Object) -> tuple[bool, Verdict | None]:
    """Of a pod that failed: whether it counts, and how the Job ends by it, None where it goes on."""
    action, found = _policy(job, pod)
    if action == "FailJob":
        return True, ("PodFailurePolicy", found)
    counts = action != "Ignore"
    if counts and job["status"].get("failed", 0) + 1 > job["spec"]["backoffLimit"]:
        return True, ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
    return counts, None


def _policy(job: Object, pod: Object) -> tuple[str, str]:
    """The first rule of podFailurePolicy that matches: its action, and what is said of it."""
    where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    for at, rule in enumerate(job["spec"].get("podFailurePolicy", {}).get("rules", ())):
        said = f"matching {rule['action']} rule at index {at}"
        for one in pod["status"].get("containerStatuses", ()) if "onExitCodes" in rule else ():
            code = one["state"]["terminated"]["exitCode"]
            if _matches_code(rule["onExitCodes"], one["name"], code):
                return rule["action"], f"Container {one['name']} for pod {where} failed with exit code {code} {said}"
        for wanted in rule.get("onPodConditions", ()):
            if any(_same(one, wanted) for one in pod["status"].get("conditions", ())):
                return rule["action"], f"Pod {where} has condition {wanted['type']} {said}"
    return "Count", ""


def _matches_code(rule: Object, container: str, code: int) -> bool:
    """Containers that ended well are no matter of a failure."""
    if code == 0 or rule.get("containerName", container) != container:
        return False
    return (code in rule["values"]) is (rule["operator"] == "In")


def _same(one: dict[str, Any], wanted: Object) -> bool:
    return (one["type"], one["status"]) == (wanted["type"], wanted.get("status", "True"))
