"""What a Job and its pods say of themselves, in words. Nothing is asked or changed here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["failure_of", "has_finished", "last_of", "waits_for", "why_pod_ended"]

Object = dict[str, Any]
_SAID_CHARS = 300


def _condition(one: Object, kind: str) -> Object | None:
    conditions = one.get("status", {}).get("conditions") or []
    return next((found for found in conditions if found["type"] == kind and found["status"] == "True"), None)


def has_finished(job: Object) -> bool:
    """It makes no more pods, and none of its runs."""
    return _condition(job, "Complete") is not None or _condition(job, "Failed") is not None


def failure_of(job: Object, pods: Sequence[Object], log: str = "") -> str:
    """Why a Job has failed, or ended without a word of its build; empty where it may still go on.

    `log` is the end of what the last pod has said.
    """
    failed = _condition(job, "Failed")
    if failed is None:
        return "its Job has completed and left no result" if _condition(job, "Complete") else ""
    reason = f"its Job has failed ({failed.get('reason', 'no reason given')})"
    ends = [why for pod in sorted(pods, key=_created) if (why := why_pod_ended(pod))]
    said = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    return "; ".join([reason, *ends[-1:], *([said[:_SAID_CHARS]] if said else [])])


def _created(pod: Object) -> str:
    return str(pod["metadata"].get("creationTimestamp", ""))


def why_pod_ended(pod: Object) -> str:
    """Of one that ended badly: by the node's hand, or its container's."""
    status = pod.get("status", {})
    if status.get("phase") != "Failed":
        return ""
    disrupted = _condition(pod, "DisruptionTarget")
    if disrupted is not None:
        return f"its pod was taken away: {disrupted.get('message') or disrupted.get('reason', '')}"
    for container in status.get("containerStatuses") or []:
        ended = container.get("state", {}).get("terminated")
        if ended is not None and ended.get("exitCode", 0):
            return f"its pod ended by {ended.get('reason', 'Error')}, exit code {ended['exitCode']}"
    return f"its pod ended: {status.get('message') or status.get('reason') or 'no reason given'}"[:_SAID_CHARS]


def last_of(pods: Sequence[Object]) -> Object | None:
    """The pod of a Job's last try."""
    return max(pods, key=_created, default=None)


def waits_for(pods: Sequence[Object]) -> str:
    """Why the last pod does not run yet, where there is something to tell; empty where it runs."""
    pod = last_of(pods)
    if pod is None:
        return ""
    status = pod.get("status", {})
    if status.get("phase") != "Pending":
        return ""
    for container in status.get("containerStatuses") or []:
        waiting = container.get("state", {}).get("waiting")
        if waiting is not None and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"its pod waits: {waiting['reason']}: {waiting.get('message', '')}"[:_SAID_CHARS]
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"its pod waits: {condition.get('reason', '')}: {condition.get('message', '')}"[:_SAID_CHARS]
    return ""
