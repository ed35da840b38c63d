"""A Job as a build would be one, and refusals as the client raises them."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes_asyncio.client import ApiException

__all__ = ["JOB", "job", "refused"]

JOB: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "build-1", "labels": {"app": "bitserve", "part": "build"}},
    "spec": {
        "backoffLimit": 1,
        "activeDeadlineSeconds": 3600,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}},
            ]
        },
        "template": {
            "metadata": {"labels": {"app": "bitserve"}},
            "spec": {
                "restartPolicy": "Never",
                "serviceAccountName": "bitserve",
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [
                    {
                        "name": "build",
                        "image": "bitserve:0.1.0",
                        "command": ["python", "-c"],
                        "args": ["import os; print(os.environ['A'], os.environ['B'], '$(A)')"],
                        "env": [{"name": "A", "value": "said"}],
                        "resources": {"limits": {"cpu": "2", "memory": "4Gi"}},
                        "volumeMounts": [{"name": "work", "mountPath": "/work"}],
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    }
                ],
                "volumes": [{"name": "work", "emptyDir": {"sizeLimit": "8Gi"}}],
            },
        },
    },
}


def job(name: str = "build-1", **labels: str) -> dict[str, Any]:
    made = copy.deepcopy(JOB)
    made["metadata"].update(name=name, labels={**made["metadata"]["labels"], **labels})
    return made


@contextlib.contextmanager
def refused(code: int, reason: str) -> Iterator[dict[str, Any]]:
    """The Status of the refusal, once it has come."""
    found: dict[str, Any] = {}
    with pytest.raises(ApiException) as caught:
        yield found
    found.update(json.loads(caught.value.body))
    assert (caught.value.status, found["code"], found["reason"]) == (code, code, reason)
    assert (found["kind"], found["apiVersion"], found["status"]) == ("Status", "v1", "Failure")
