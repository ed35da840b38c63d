"""Builds as Jobs: what a server may ask of the cluster's API, whom its Jobs may reach, and the Jobs themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from app.cluster.api import RIGHTS
from tests.deploy.support.builds import build_jobs, builds_in_jobs
from tests.deploy.support.render import Object, identity, of_kind
from tests.deploy.support.schemas import VERSIONS, builtin_findings
from tests.deploy.support.schemas_names import environment, name_findings, server_pods
from tests.deploy.support.schemas_pod_security import restricted_findings
from tests.deploy.support.schemas_sizes import disk_findings, quantity, settings_of

__all__ = ["build_findings", "job_findings"]

_BESIDE_BYTES = 2**30
"""What watches a compile, fetches and publishes."""
_API = frozenset({(443, "TCP"), (6443, "TCP")})
_NAMES = frozenset({(53, "UDP"), (53, "TCP")})
_Ports = set[tuple[object, str]]


def build_findings(objects: list[Object]) -> list[str]:
    """What is wrong, over all objects of one rendering."""
    rules: tuple[Callable[[list[Object]], Iterator[str]], ...] = (_rights, _bindings, _tokens, _policies, _strangers)
    found = [found for rule in rules for found in rule(objects)]
    return [*found, *(found for job in build_jobs(objects) for found in job_findings(job, objects))]


def _asks(objects: list[Object]) -> bool:
    return any(builds_in_jobs(container, objects) for _, _, container in server_pods(objects))


def _labels_of_builds(objects: list[Object]) -> list[Mapping[str, str]]:
    """Of the pods of Jobs."""
    return [job["spec"]["template"]["metadata"]["labels"] for job in build_jobs(objects)]


# -- what the server may do ------------------------------------------------------------------------------------------


def _rights(objects: list[Object]) -> Iterator[str]:
    """Exactly what the code asks for where it builds in Jobs, and else nothing."""
    granted: dict[tuple[str, str], set[str]] = {}
    for role in of_kind(objects, "Role"):
        for rule in role["rules"]:
            for what in ((group, resource) for group in rule["apiGroups"] for resource in rule["resources"]):
                granted.setdefault(what, set()).update(rule["verbs"])
    needed = {what: set(verbs) for what, verbs in RIGHTS.items()} if _asks(objects) else {}
    for what in sorted({*granted, *needed}):
        name, given, asked = "/".join(filter(None, what)), granted.get(what, set()), needed.get(what, set())
        yield from (f"no right to {verb} {name}, which the server asks for" for verb in sorted(asked - given))
        yield from (f"a right to {verb} {name}, which nothing asks for" for verb in sorted(given - asked))
    for one in of_kind(objects, "ClusterRole", "ClusterRoleBinding"):
        yield f"{'/'.join(identity(one))}: rights beyond the namespace"


def _bindings(objects: list[Object]) -> Iterator[str]:
    bound = {
        (one["roleRef"]["name"], subject["kind"], subject["name"])
        for one in of_kind(objects, "RoleBinding")
        for subject in one["subjects"]
        if subject.get("namespace") == one["metadata"].get("namespace", "default")
    }
    accounts = {spec.get("serviceAccountName") for _, spec, _ in server_pods(objects)}
    for role in of_kind(objects, "Role"):
        given = {(kind, name) for of_role, kind, name in bound if of_role == role["metadata"]["name"]}
        if given != {("ServiceAccount", account) for account in accounts}:
            yield f"{'/'.join(identity(role))}: it is given to {sorted(given)}, the server is {sorted(accounts)}"


def _tokens(objects: list[Object]) -> Iterator[str]:
    for where, spec, container in server_pods(objects):
        has, needs = spec.get("automountServiceAccountToken", False), builds_in_jobs(container, objects)
        if has != needs:
            yield f"{where}: it {'needs a' if needs else 'has a needless'} token of the API"


# -- whom pods reach -------------------------------------------------------------------------------------------------


def _policies(objects: list[Object]) -> Iterator[str]:
    """Where policies are wanted at all."""
    policies = of_kind(objects, "NetworkPolicy")
    if not policies or not _asks(objects):
        return
    for deployment in of_kind(objects, "Deployment"):
        servers = [one for one in policies if _selects(one, deployment["spec"]["template"]["metadata"]["labels"])]
        of_servers = {port for one in servers for port in _out(one)}
        yield from (f"servers do not reach the API by {_text(port)}" for port in sorted(_API - of_servers))
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        needed = {*_NAMES, (_store_port(container, objects), "TCP")}
        for labels in _labels_of_builds(objects)[:1]:
            chosen = [one for one in policies if _selects(one, labels)]
            of_builds = {port for one in chosen for port in _out(one)}
            if not {"Ingress", "Egress"} <= {kind for one in chosen for kind in one["spec"]["policyTypes"]}:
                yield f"no policy keeps pods of labels {labels} from asking and being asked"
                continue
            yield from (f"{'/'.join(identity(one))}: pods that build are asked by nobody"
                        for one in chosen if one["spec"].get("ingress"))  # fmt: skip
            yield from (f"builds do not reach {_text(port)}" for port in sorted(needed - of_builds))
            yield from (f"builds reach {_text(port)}, servers do not" for port in sorted(of_builds - of_servers))


def _strangers(objects: list[Object]) -> Iterator[str]:
    """A build's pod answers no requests, and is neither counted nor kept as a server is."""
    for one in of_kind(objects, "Service", "PodDisruptionBudget", "Deployment"):
        if any(_selects(one, labels) for labels in _labels_of_builds(objects)[:1]):
            yield f"{'/'.join(identity(one))}: it selects pods that build"


def _selects(one: Object, labels: Mapping[str, str]) -> bool:
    chosen = one["spec"].get("selector", one["spec"].get("podSelector", {}))
    wanted = chosen if one["kind"] == "Service" else chosen.get("matchLabels", {})
    return bool(wanted.items() <= labels.items())


def _out(policy: Object) -> _Ports:
    return {(port["port"], port["protocol"]) for rule in policy["spec"].get("egress", ()) for port in rule["ports"]}


def _store_port(container: Object, objects: list[Object]) -> int:
    address = urlsplit(environment(container, objects).get("AWS_ENDPOINT_URL") or "https://")
    return address.port or {"http": 80}.get(address.scheme, 443)


def _text(port: tuple[object, str]) -> str:
    return f"port {port[0]} {port[1]}"


# -- Jobs ------------------------------------------------------------------------------------------------------------


def job_findings(job: Object, objects: list[Object]) -> list[str]:
    """What the API would refuse of a Job, what does not fit into it, and names that nobody knows."""
    where = "/".join(identity(job))
    found = [found for version in VERSIONS for found in builtin_findings([job], version)]
    found += restricted_findings([job])
    found += [one for one in name_findings([*objects, job]) if one.startswith(where)]
    if found:  # settings that are none cannot be read
        return found
    return [f"{where}: {one}" for one in _of_job(job, objects)]


def _of_job(job: Object, objects: list[Object]) -> Iterator[str]:
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    settings = settings_of(container, objects)
    needed = settings.build_memory_bytes + _BESIDE_BYTES
    for kind in ("requests", "limits"):
        if (given := quantity(container["resources"][kind]["memory"])) < needed:
            yield f"{kind} of {given} bytes of memory; a compile and what watches it take {needed}"
    yield from disk_findings(spec, settings, objects)
    if "BITSERVE_ADMIN_TOKEN" in environment(container, objects):
        yield "it has the admin token"
    if spec.get("automountServiceAccountToken") is not False:
        yield "it has a needless token of the API"
    if any(len(value) > 63 for value in job["spec"]["template"]["metadata"]["labels"].values()):
        yield "a label is longer than 63 characters"
