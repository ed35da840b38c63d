"""A double of the API of Kubernetes, in threads of this process, for a client that runs Jobs in one namespace.

What it takes and gives is held against the schemas of Kubernetes; what does not fit is in `findings`, and fails the
test when the double is closed. Nothing happens by itself: a test plays the controllers and the kubelet. In two things
it is stricter than the API: an unknown field is refused where the API would warn and drop it, and wrong types get the
same status (422) as values that are not valid.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import yaml

from tests.support.kubernetes_api import Api, Request
from tests.support.kubernetes_defaults import pod_as_stored
from tests.support.kubernetes_http import Fault, Faults, Web
from tests.support.kubernetes_objects import JOBS, PODS, Object
from tests.support.kubernetes_states import (
    is_finished,
    job_counted,
    job_ended,
    job_finished,
    job_started,
    job_verdict,
    owned_by,
    pod_ended,
    pod_of,
    pod_running,
    pod_scheduled,
    pod_unschedulable,
)
from tests.support.kubernetes_validity import security_findings
from tests.support.servers import ROOT, until

__all__ = ["Kubernetes", "Request", "run_container"]

_ACTIVE = ("Pending", "Running")
_DEADLINE = ("DeadlineExceeded", "Job was active longer than specified deadline")
Hook = Callable[[Object], None]


class Kubernetes:
    """Listens from the beginning of `with` to its end. A Job is named by its name, or by an object that has it.

    `token`: what callers must bear, "" for any. `job_quota`: how many Jobs the namespace may have at once.
    `on_create`, `on_delete`: are told of a Job in a thread of their own, as a kubelet would come to know.
    """

    def __init__(self, namespace: str = "models", token: str = "") -> None:
        self.namespace = namespace
        self.findings: list[str] = []
        self._api = Api(namespace, token, self.findings)
        self._store = self._api.store
        self._faults = Faults()
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._web = Web(self._api, self._faults, self._heard)
        self.url = f"http://127.0.0.1:{self._web.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._api.on_create = self._api.on_delete = None
        self._faults.clear()
        self._web.close()
        assert kind is not None or not self.findings, "\n".join(self.findings)

    # what a test looks at

    @property
    def requests(self) -> list[Request]:
        """Every call that came, answered or not."""
        with self._lock:
            return list(self._requests)

    @property
    def jobs(self) -> list[Object]:
        return copy.deepcopy(self._store.all(JOBS))

    def job(self, job: Object | str) -> Object:
        """As it is now. Raises Refused: not found."""
        return copy.deepcopy(self._store.get(JOBS, _name(job)))

    def pods(self, job: Object | str | None = None) -> list[Object]:
        """All, or those of a Job, the oldest first."""
        found = self._store.all(PODS)
        if job is not None:
            owner = self._store.get(JOBS, _name(job))
            found = [pod for pod in found if owned_by(pod, owner)]
        return copy.deepcopy(sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"]))

    @property
    def watching(self) -> int:
        """How many watches are open."""
        with self._store.changed:
            return len(self._store.watches)

    def take_findings(self) -> list[str]:
        """Those that a test expected: they are no longer held against it."""
        found = list(self.findings)
        self.findings.clear()
        return found

    def kubeconfig(self, folder: Path) -> Path:
        """A file that leads a client here, with the token and the namespace."""
        path = folder / "kubeconfig"
        user = {"token": self.token} if self.token else {}
        context = {"cluster": "double", "user": "bitserve", "namespace": self.namespace}
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "double",
            "clusters": [{"name": "double", "cluster": {"server": self.url}}],
            "users": [{"name": "bitserve", "user": user}], "contexts": [{"name": "double", "context": context}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(content), "utf-8")
        path.chmod(0o600)
        return path

    # rights, limits, hooks

    @property
    def token(self) -> str:
        return self._api.token

    @token.setter
    def token(self, token: str) -> None:
        self._api.token = token

    @property
    def job_quota(self) -> int | None:
        return self._api.job_quota

    @job_quota.setter
    def job_quota(self, most: int | None) -> None:
        self._api.job_quota = most

    @property
    def on_create(self) -> Hook | None:
        return self._api.on_create

    @on_create.setter
    def on_create(self, hook: Hook | None) -> None:
        self._api.on_create = hook

    @property
    def on_delete(self) -> Hook | None:
        return self._api.on_delete

    @on_delete.setter
    def on_delete(self, hook: Hook | None) -> None:
        self._api.on_delete = hook

    def forbid(self, verb: str, part: str) -> None:
        """Say no to a verb on `jobs`, `pods` or `pods/log`."""
        self._api.forbidden.add((verb, part))

    def allow(self, verb: str, part: str) -> None:
        """Take it back."""
        self._api.forbidden.discard((verb, part))

    # faults; `only` is part of "METHOD /path"

    def fail_next(self, n: int = 1, *, status: int = 429, retry_after_s: int | None = None, only: str = "") -> None:
        """Answer with 429, 500, 503 or 504, and serve nothing."""
        self._faults.add(Fault("fail", n, only, status, retry_after_s))

    def drop_next(self, n: int = 1, *, served: bool = False, only: str = "") -> None:
        """End the connection without an answer, before the call is served, or after."""
        self._faults.add(Fault("lose" if served else "drop", n, only))

    def hang_next(self, n: int = 1, *, only: str = "") -> None:
        """Serve the call after `release` only."""
        self._faults.add(Fault("hang", n, only))

    def release(self) -> None:
        """Go on with all calls that hang, and forget all faults that were still to come."""
        self._faults.clear()

    def stop(self) -> None:
        """Be away: connections are refused, and those there were are cut. What is stored stays."""
        self._web.stop()
        with self._store.changed:
            for watch in self._store.watches:
                watch.ending = "lost"
            self._store.changed.notify_all()

    def start(self) -> None:
        """Be there again, on the same port."""
        self._web.start()

    def cut_watches(self, how: Literal["lost", "mid_line", "end"] = "lost") -> int:
        """End all open watches: by loss of the connection, in the middle of an event, or in good order; how many."""
        with self._store.changed:
            ended = list(self._store.watches)
            for watch in ended:
                watch.ending = how
            self._store.changed.notify_all()
        until(lambda: not set(ended) & set(self._store.watches), "watches ended")
        return len(ended)

    def compact(self, over_http: bool = False) -> None:
        """Make every version given out so far too old: as an ERROR in the stream, or as an HTTP status."""
        self._store.compact(over_http)

    def bookmark(self) -> None:
        """Send a BOOKMARK to the watches that allow it."""
        self._store.bookmark()

    # what controllers and a kubelet do

    def start_pod(self, job: Object | str) -> Object:
        """A pod of the Job on a node that makes its containers; the one that waited for a node, if there is one."""
        with self._running(job) as owner:
            return self._put_pod(owner, pod_scheduled(self._active(owner) or self._new_pod(owner)))

    def unschedulable(self, job: Object | str, message: str = "0/3 nodes are available: 3 Insufficient cpu.") -> Object:
        """A pod of the Job that no node takes."""
        with self._running(job) as owner:
            return self._put_pod(owner, pod_unschedulable(self._active(owner) or self._new_pod(owner), message))

    def run_pod(self, job: Object | str) -> Object:
        """The Job's pod runs; there is one after this in any case."""
        with self._running(job) as owner:
            pod = self._active(owner)
            if pod is None or "nodeName" not in pod["spec"]:
                pod = self.start_pod(owner)
            return self._put_pod(self._store.get(JOBS, _name(owner)), pod_running(pod))

    def succeed(self, job: Object | str) -> Object:
        """The Job's pod ends with 0, and so does the Job, unless it wants more of them; the Job."""
        with self._running(job) as owner:
            self._end_pod(owner, "Completed", 0, "")
            ended = job_ended(self._store.get(JOBS, _name(owner)), self.pods(owner), succeeded=1)
            if ended["status"]["succeeded"] < ended["spec"]["completions"]:
                return self._put_job(ended)
            return [self._put_job(one) for one in job_finished(ended, None)][-1]

    def fail_pod(self, job: Object | str, reason: str = "OOMKilled", exit_code: int = 137, message: str = "") -> Object:
        """The Job's pod fails: its container for a reason, or all of it (Evicted, Preempting, NodeLost); the Job.

        It ends by what its backoffLimit and its podFailurePolicy say, else a test may start another pod.
        """
        with self._running(job) as owner:
            assert owner["spec"]["template"]["spec"]["restartPolicy"] == "Never", "restarts in place are not modelled"
            pod = self._end_pod(owner, reason, exit_code, message)
            counts, verdict = job_verdict(self._store.get(JOBS, _name(owner)), pod)
            ended = job_ended(self._store.get(JOBS, _name(owner)), self.pods(owner), failed=int(counts))
            if verdict is None:
                return self._put_job(ended)
            return [self._put_job(one) for one in job_finished(ended, verdict)][-1]

    def deadline(self, job: Object | str) -> Object:
        """activeDeadlineSeconds are over: the pods that were active are deleted, logs and all; the Job."""
        with self._running(job) as owner:
            active = [pod for pod in self.pods(owner) if pod["status"]["phase"] in _ACTIVE]
            for pod in active:
                self._store.remove(PODS, pod["metadata"]["name"])
            ended = job_ended(self._store.get(JOBS, _name(owner)), self.pods(owner), failed=len(active))
            return [self._put_job(one) for one in job_finished(ended, _DEADLINE)][-1]

    def expire(self, job: Object | str) -> None:
        """Its ttlSecondsAfterFinished are over: it goes, and its pods."""
        with self._store.changed:
            found = self._store.get(JOBS, _name(job))
            assert is_finished(found), "only Jobs that have finished expire"
            self._api.remove(found, "Foreground")

    def delete_job(self, job: Object | str) -> None:
        """Somebody else deletes it, and its pods."""
        self._api.remove(self._store.get(JOBS, _name(job)), "Background")

    def put_pod(self, pod: Object) -> Object:
        """Any pod, such as the server's own; it runs unless it has a status. Replaces the one of its name."""
        made = pod_as_stored({"apiVersion": "v1", "kind": "Pod", **pod}, self.namespace)
        if not pod.get("status"):
            made["status"] = {"phase": "Pending", "qosClass": "Burstable"}
            made = pod_running(pod_scheduled(made))
        self.findings += security_findings(made)
        return copy.deepcopy(self._store.put(PODS, made))

    def remove_pod(self, pod: Object | str) -> None:
        """It goes."""
        self._store.remove(PODS, _name(pod))

    def set_log(self, pod: Object | str, text: str | Path) -> None:
        """What its container has written; a file is read when it is asked for."""
        self._api.logs[_name(pod)] = text

    def _heard(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)

    @contextlib.contextmanager
    def _running(self, job: Object | str) -> Iterator[Object]:
        """The Job as it is, with nothing changed by others meanwhile. No controller goes on with one that ended."""
        with self._store.changed:
            found = self._store.get(JOBS, _name(job))
            assert not is_finished(found), f"Job {_name(job)} has ended"
            yield found

    def _new_pod(self, job: Object) -> Object:
        refused = security_findings(job)
        assert not refused, f"no such pod is admitted: {refused}"
        pod = self._store.create(PODS, pod_of(job))
        self._put_job(job_started(job, self.pods(job)))
        return pod

    def _active(self, job: Object) -> Object | None:
        return next((pod for pod in self.pods(job) if pod["status"]["phase"] in _ACTIVE), None)

    def _put_pod(self, job: Object, pod: Object) -> Object:
        """Store it, and let its Job count."""
        stored = self._store.put(PODS, pod)
        current = self._store.get(JOBS, _name(job))
        counted = job_counted(current, self.pods(job))
        if counted["status"] != current["status"]:
            self._put_job(counted)
        return copy.deepcopy(stored)

    def _put_job(self, job: Object) -> Object:
        return copy.deepcopy(self._store.put(JOBS, job))

    def _end_pod(self, job: Object, reason: str, exit_code: int, message: str) -> Object:
        pod = self._active(job)
        if pod is None or pod["status"]["phase"] != "Running":
            pod = self.run_pod(job)
        return self._store.put(PODS, pod_ended(pod, reason, exit_code, message))


def _name(one: Object | str) -> str:
    return one if isinstance(one, str) else str(one["metadata"]["name"])


def run_container(job: Object, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start what the Job's first container would run, on this machine, below the project's root; output goes to `log`.

    `env` stands in for envFrom and for values from elsewhere: what the container says itself wins, as in a cluster. No
    variable of this process's own server or store gets there.
    """
    container = job["spec"]["template"]["spec"]["containers"][0]
    own = {key: value for key, value in os.environ.items() if not key.startswith(("BITSERVE_", "AWS_"))}
    values = dict(env)
    for variable in container.get("env", ()):
        if "valueFrom" not in variable:
            values[variable["name"]] = _expanded(variable.get("value", ""), values)
    command = container.get("command") or _entrypoint()
    words = [_expanded(word, values) for word in (*command, *container.get("args", ()))]
    first = {"python": [sys.executable], "bitserve": [sys.executable, "-m", "app"]}.get(words[0], [words[0]])
    with log.open("ab") as out:
        return subprocess.Popen(
            [*first, *words[1:]], env={**own, **values}, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT,
        )  # fmt: skip


def _entrypoint() -> list[str]:
    """What the image runs where a container has no command, without the process that only waits for others."""
    line = next(line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("ENTRYPOINT "))
    words: list[str] = json.loads(line.partition(" ")[2])
    return words[words.index("--") + 1 :]


def _expanded(text: str, values: Mapping[str, str]) -> str:
    """`$(NAME)` by the value of the variable, `$$` by `$`; what is not known stays."""
    return re.sub(
        r"\$(\$|\((?P<name>[^)]+)\))", lambda found: values.get(found["name"], found[0]) if found["name"] else "$", text
    )
