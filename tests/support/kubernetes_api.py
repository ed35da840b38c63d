"""The API's verbs over HTTP paths: who may do what, and what each call answers."""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.kubernetes_defaults import job_as_stored
from tests.support.kubernetes_objects import (
    JOBS,
    PODS,
    Cause,
    Object,
    Refused,
    Resource,
    bad_request,
    conflict,
    forbidden,
    invalid,
    now,
    selected,
    status,
    suffix,
    unauthorized,
)
from tests.support.kubernetes_states import owned_by
from tests.support.kubernetes_store import Store, Watch
from tests.support.kubernetes_validity import delete_options_findings, job_causes, object_findings, security_findings

__all__ = ["Answer", "Api", "Request", "Watching"]

_PATH = re.compile(
    r"/(?:apis/batch/v1|api/v1)/namespaces/(?P<namespace>[^/]+)/(?P<plural>jobs|pods)(?:/(?P<name>[^/]+)(?P<log>/log)?)?"
)
_UNKNOWN = "the object provided is unrecognized (must be of type Job)"
_NO_WATCH_LIST = "Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
_PREFIXES = {"jobs": "/apis/batch/v1/", "pods": "/api/v1/"}
_FINALIZERS = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}
_PODS_STAY = (
    "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set "
    "propagationPolicy=Orphan to suppress this warning"
)


class Request(NamedTuple):
    """One call as it came; `body` is parsed where it is JSON, else text, and None where there is none."""

    method: str
    path: str
    query: dict[str, str]
    body: Any


class Answer(NamedTuple):
    code: int
    body: Object | bytes
    headers: dict[str, str]


class Watching(NamedTuple):
    """An answer that goes on: the watch, how long, and the Status that it gets in place of changes."""

    watch: Watch
    timeout_s: float | None
    refused: Object | None


class Api:
    """One namespace. Attributes may be changed at any time."""

    def __init__(self, namespace: str, token: str, findings: list[str]) -> None:
        self.namespace = namespace
        self.token = token
        self.user = f"system:serviceaccount:{namespace}:bitserve"
        self.findings = findings
        self.store = Store(findings)
        self.forbidden: set[tuple[str, str]] = set()
        self.job_quota: int | None = None
        self.on_create: Callable[[Object], None] | None = None
        self.on_delete: Callable[[Object], None] | None = None
        self.logs: dict[str, str | Path] = {}

    def answer(self, request: Request, authorization: str) -> Answer | Watching:
        """What the call gets. Raises Refused."""
        if self.token and authorization != f"Bearer {self.token}":
            raise unauthorized()
        found = _PATH.fullmatch(request.path)
        if found is None or not request.path.startswith(_PREFIXES[found["plural"]]):
            raise Refused(status(404, "NotFound", "the server could not find the requested resource"))
        resource, name = (JOBS if found["plural"] == "jobs" else PODS), found["name"] or ""
        part = f"{resource.plural}/log" if found["log"] else resource.plural
        verb = self._verb(request, name)
        if (verb, part) in self.forbidden or found["namespace"] != self.namespace:
            raise forbidden(resource, name, self._may_not(verb, part, resource, found["namespace"]))
        return self._dispatch(verb, part, resource, name, request)

    def _verb(self, request: Request, name: str) -> str:
        if request.method == "GET" and not name:
            return "watch" if request.query.get("watch", "") in ("1", "true", "True") else "list"
        verbs = {"GET": "get", "POST": "create", "DELETE": "delete" if name else "deletecollection"}
        return verbs.get(request.method) or {"PUT": "update", "PATCH": "patch"}[request.method]

    def _may_not(self, verb: str, part: str, resource: Resource, namespace: str) -> str:
        where = f'in API group "{resource.group}" in the namespace "{namespace}"'
        return f'User "{self.user}" cannot {verb} resource "{part}" {where}'

    def _dispatch(self, verb: str, part: str, resource: Resource, name: str, request: Request) -> Answer | Watching:
        if verb == "get" and part == "pods/log":
            return self._log(self.store.get(PODS, name), request.query)
        if verb == "get":
            return Answer(200, self.store.get(resource, name), {})
        if verb == "list":
            return self._list(resource, request.query)
        if verb == "watch":
            return self._watch(resource, request.query)
        if resource == JOBS and (verb, bool(name)) == ("create", False):
            return self._create(request)
        if resource == JOBS and verb == "delete":
            return self._delete(name, request)
        message = "the server does not allow this method on the requested resource"
        raise Refused(status(405, "MethodNotAllowed", message))

    def _list(self, resource: Resource, query: dict[str, str]) -> Answer:
        selectors = query.get("labelSelector", ""), query.get("fieldSelector", "")
        limit, token = int(query.get("limit", "0")), query.get("continue", "")
        return Answer(200, self.store.page(resource, selected(*selectors), limit, token, not any(selectors)), {})

    def _watch(self, resource: Resource, query: dict[str, str]) -> Watching:
        if "sendInitialEvents" in query:
            cause = Cause("sendInitialEvents", _NO_WATCH_LIST, "FieldValueForbidden")
            raise invalid(Resource("", "ListOptions", "meta.k8s.io"), "", [cause])
        wanted = selected(query.get("labelSelector", ""), query.get("fieldSelector", ""))
        watch = Watch(resource, wanted, query.get("allowWatchBookmarks", "") in ("1", "true", "True"))
        refused = self.store.watch(watch, query.get("resourceVersion", ""))
        timeout = query.get("timeoutSeconds", "0")
        return Watching(watch, float(timeout) or None, refused)

    def _create(self, request: Request) -> Answer:
        job = self._job_of(request.body)
        name = job["metadata"]["name"]
        findings = object_findings(job)
        if findings:
            self.findings += [f"a client sent: {found}" for found in findings]
            raise invalid(JOBS, name, [Cause("", found) for found in findings])
        causes = job_causes(job)
        if causes:
            self.findings += [f"a client sent: Job/{name}: {one.field}: {one.message}" for one in causes]
            raise invalid(JOBS, name, causes)
        insecure = security_findings(job)  # the namespace takes the Job, and would not take its pods
        self.findings += [f"a client sent: {found}" for found in insecure]
        stored = self._store_job(job)
        if self.on_create is not None:
            self._tell(self.on_create, stored)
        warning = f'would violate PodSecurity "restricted:latest": {", ".join(insecure)}'
        return Answer(201, stored, _warning(warning) if insecure else {})

    def _store_job(self, job: Object) -> Object:
        name = job["metadata"]["name"]
        with self.store.changed:
            used = len(self.store.all(JOBS))
            taken = any(one["metadata"]["name"] == name for one in self.store.all(JOBS))
            if not taken and self.job_quota is not None and used >= self.job_quota:
                key = "count/jobs.batch"
                text = f"requested: {key}=1, used: {key}={used}, limited: {key}={self.job_quota}"
                raise forbidden(JOBS, name, f"exceeded quota: builds, {text}")
            return self.store.create(JOBS, job_as_stored(job, self.namespace))

    def _job_of(self, body: Any) -> Object:
        """The Job that was sent, of the right kind and with a name. Raises Refused."""
        if not isinstance(body, dict):
            raise bad_request(f"{_UNKNOWN}: couldn't get version/kind; json parse error in {str(body)[:40]!r}")
        job = _without_nulls(body)
        said = f"{job.get('apiVersion', 'batch/v1')}, Kind={job.get('kind', 'Job')}"
        if said != "batch/v1, Kind=Job":
            raise bad_request(f"{_UNKNOWN}: {said}")
        metadata = job.get("metadata")
        if not isinstance(metadata, dict) or not (metadata.get("name") or metadata.get("generateName")):
            self.findings.append("a client sent: a Job without a name")
            required = "Required value: name or generateName is required"
            raise invalid(JOBS, "", [Cause("metadata.name", required, "FieldValueRequired")])
        if metadata.get("namespace", self.namespace) != self.namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        metadata.setdefault("name", f"{metadata.get('generateName', '')[:58]}{suffix()}")
        return {**job, "apiVersion": "batch/v1", "kind": "Job"}

    def _delete(self, name: str, request: Request) -> Answer:
        body = _without_nulls(request.body) if isinstance(request.body, dict) else {}
        findings = delete_options_findings(body)
        if findings:
            self.findings += [f"a client sent: {found}" for found in findings]
            raise bad_request(findings[0])
        said = body.get("propagationPolicy") or request.query.get("propagationPolicy", "")
        policy = said or "Orphan"  # a default of this kind alone
        if policy not in ("Background", "Foreground", "Orphan"):
            text = f'Unsupported value: "{policy}": supported values: "Foreground", "Background", "Orphan", "nil"'
            cause = Cause("propagationPolicy", text, "FieldValueNotSupported")
            raise invalid(Resource("", "DeleteOptions", "meta.k8s.io"), "", [cause])
        with self.store.changed:
            job = self.store.get(JOBS, name)
            _check(job, body.get("preconditions", {}))
            answer = self.remove(job, policy)
        return Answer(200, answer, _warning(_PODS_STAY) if not said else {})

    def remove(self, job: Object, policy: str) -> Object:
        """Delete a Job, and, unless they are to stay, its pods; what the API answers. The garbage is gone at once."""
        metadata = job["metadata"]
        name = metadata["name"]
        with self.store.changed:
            if policy == "Background":
                details = {"name": name, "group": "batch", "kind": "jobs", "uid": metadata["uid"]}
                answer: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
                answer["details"] = details
                self.store.remove(JOBS, name)
            else:  # first it is marked; whoever collects garbage removes the mark, and the Job
                leaving = copy.deepcopy(job)
                leaving["metadata"].update(deletionTimestamp=now(), deletionGracePeriodSeconds=0)
                leaving["metadata"].update(finalizers=[_FINALIZERS[policy]], generation=metadata["generation"] + 1)
                answer = self.store.put(JOBS, leaving)
            for pod in self.store.all(PODS):
                if owned_by(pod, job):
                    self._let_go(pod, policy)
            if policy != "Background":
                self.store.remove(JOBS, name)
        if self.on_delete is not None:
            self._tell(self.on_delete, job)
        return answer

    def _let_go(self, pod: Object, policy: str) -> None:
        if policy != "Orphan":
            self.store.remove(PODS, pod["metadata"]["name"])
            return
        alone = copy.deepcopy(pod)
        for field in ("ownerReferences", "finalizers"):
            alone["metadata"].pop(field, None)
        self.store.put(PODS, alone)

    def _tell(self, hook: Callable[[Object], None], job: Object) -> None:
        """In a thread of its own; what a hook raises is a finding."""

        def run() -> None:
            try:
                hook(copy.deepcopy(job))
            except Exception as error:
                self.findings.append(f"{getattr(hook, '__name__', hook)}: {type(error).__name__}: {error}")

        threading.Thread(target=run, daemon=True).start()

    def _log(self, pod: Object, query: dict[str, str]) -> Answer:
        name = pod["metadata"]["name"]
        for key in sorted({"follow", "sinceSeconds", "sinceTime", "timestamps"} & set(query)):
            if query[key].lower() != "false":
                self.findings.append(f"a client sent: {key} for a log, which is not modelled")
        container = _container_of(pod, query.get("container", ""))
        if query.get("previous", "").lower() in ("1", "true"):
            raise bad_request(f'previous terminated container "{container}" in pod "{name}" not found')
        if "nodeName" not in pod["spec"]:  # nobody could have a log
            return Answer(204, b"", {})
        states = {one["name"]: one["state"] for one in pod["status"].get("containerStatuses", ())}
        waiting = states.get(container, {"waiting": {}}).get("waiting")
        if waiting is not None:
            reason = waiting.get("reason", "ContainerCreating")
            raise bad_request(f'container "{container}" in pod "{name}" is waiting to start: {reason}')
        text = self.logs.get(name, "")
        data = text.read_bytes() if isinstance(text, Path) else text.encode()
        return Answer(200, _cut(data, query), {"Content-Type": "text/plain"})


def _cut(data: bytes, query: dict[str, str]) -> bytes:
    """The last lines, and then the first bytes of those."""
    if "tailLines" in query:
        count = int(query["tailLines"])
        data = b"".join(data.splitlines(keepends=True)[-count:]) if count else b""
    return data[: int(query["limitBytes"])] if "limitBytes" in query else data


def _container_of(pod: Object, asked: str) -> str:
    name, names = pod["metadata"]["name"], [one["name"] for one in pod["spec"]["containers"]]
    if not asked and len(names) > 1:
        raise bad_request(f"a container name must be specified for pod {name}, choose one of: [{' '.join(names)}]")
    if asked and asked not in names:
        raise bad_request(f"container {asked} is not valid for pod {name}")
    return asked or names[0]


def _check(job: Object, preconditions: Object) -> None:
    """Raises Refused where another object is meant."""
    about = job["metadata"]
    checks = (("UID", "uid", "deleted and then recreated"), ("ResourceVersion", "resourceVersion", "modified"))
    for label, key, happened in checks:
        wanted = preconditions.get(key, about[key])
        if wanted != about[key]:
            differs = f"the {label} in the precondition ({wanted}) does not match the {label} in record ({about[key]})"
            raise conflict(JOBS, about["name"], f"{differs}. The object might have been {happened}")


def _warning(text: str) -> dict[str, str]:
    return {"Warning": f"299 - {json.dumps(text)}"}


def _without_nulls(one: Any) -> Any:
    """To the API null is what was not said."""
    if isinstance(one, dict):
        return {key: _without_nulls(value) for key, value in one.items() if value is not None}
    return [_without_nulls(item) for item in one] if isinstance(one, list) else one
