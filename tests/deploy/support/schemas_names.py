"""What manifests say of the server, against its code: settings, keys of secrets, ports, image, user, references.

Nothing is started here; what only a running server can tell is in `schemas_server`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from app.cluster.job import selector_of
from app.settings import Settings
from tests.deploy.support.render import Object, identity, of_kind, pod_specs
from tests.deploy.support.render_tools import ROOT

__all__ = ["IMAGES", "PROBES", "STORE_VARIABLES", "environment", "name_findings", "server_pods", "version"]

IMAGES = ("bitserve", "bitserve-gpu")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
STORE_VARIABLES = frozenset(
    {
        "AWS_ACCESS_KEY_ID", "AWS_ALLOW_HTTP", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    }
)  # fmt: skip
"""Variables of the store's client: the server itself does not read them."""
_PREFIX = "BITSERVE_"


def version() -> str:
    """The project's own, which images are tagged with."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"])


def name_findings(objects: list[Object]) -> list[str]:
    """Every name that does not fit, over all objects of one rendering."""
    rules: tuple[Callable[[list[Object]], Iterator[str]], ...] = (
        _images, _settings, _secret_keys, _secrets, _ports, _users, _selectors, _references,
    )  # fmt: skip
    return [found for rule in rules for found in rule(objects)]


def server_pods(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Pods that run the server: a name for messages, the spec, and the container."""
    for where, spec in pod_specs(objects):
        for container in spec["containers"]:
            yield f"{where}/{container['name']}", spec, container


def environment(container: Object, objects: list[Object]) -> dict[str, str | None]:
    """The variables of a container, those of Secrets without their value. A later source wins, as in a pod."""
    found: dict[str, str | None] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            for one in of_kind(objects, "ConfigMap"):
                if one["metadata"]["name"] == source["configMapRef"]["name"]:
                    found.update(one["data"])
    found.update({one["name"]: one.get("value") for one in container.get("env", ())})
    return found


def _images(objects: list[Object]) -> Iterator[str]:
    for where, _, container in server_pods(objects):
        name, _, tag = container["image"].rpartition(":")
        if name.rpartition("/")[2] not in IMAGES:
            yield f"{where}: image {name} is none of {', '.join(IMAGES)}"
        if tag != version():
            yield f"{where}: image of version {tag}, the project's is {version()}"


def _settings(objects: list[Object]) -> Iterator[str]:
    """Names are settings or the store's, and the settings take the values, as a server would at its start."""
    for where, _, container in server_pods(objects):
        values = environment(container, objects)
        unknown = {name for name in values if name not in STORE_VARIABLES and _field(name) is None}
        yield from (f"{where}: variable {name} is no setting" for name in sorted(unknown))
        known = {_field(name): value for name, value in values.items() if _field(name) and value is not None}
        try:
            Settings(**known)  # type: ignore[arg-type]  # text, as variables are
        except ValidationError as error:
            yield from (f"{where}: setting {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        if not values.get("BITSERVE_PORT"):
            yield f"{where}: BITSERVE_PORT is not set, so a Service named bitserve would set it"


def _field(variable: str) -> str | None:
    name = variable.removeprefix(_PREFIX).lower()
    return name if variable.startswith(_PREFIX) and name in Settings.model_fields else None


def _secret_keys(objects: list[Object]) -> Iterator[str]:
    """The key of a Secret is the setting's name, with dashes."""
    for where, _, container in server_pods(objects):
        for one in container.get("env", ()):
            key = one.get("valueFrom", {}).get("secretKeyRef", {}).get("key")
            if key is not None and one["name"] != _variable(key):
                yield f"{where}: {one['name']} is read from key {key}, which is {_variable(key)}'s"


def _secrets(objects: list[Object]) -> Iterator[str]:
    for secret in of_kind(objects, "Secret"):
        for key in (*secret.get("data", ()), *secret.get("stringData", ())):
            if key not in STORE_VARIABLES and _field(_variable(key)) is None:
                yield f"{'/'.join(identity(secret))}: key {key} is no setting's"


def _variable(key: str) -> str:
    return _PREFIX + key.replace("-", "_").upper()


def _ports(objects: list[Object]) -> Iterator[str]:
    named: set[Any] = set()
    for where, _, container in server_pods(objects):
        ports = {port["containerPort"]: port.get("name") for port in container.get("ports", ())}
        named |= set(ports) | set(ports.values())
        listens = None if where.startswith("Job/") else environment(container, objects).get("BITSERVE_PORT")
        if listens is not None and listens not in map(str, ports):
            yield f"{where}: it listens on {listens} and names ports {sorted(ports)}"
        for kind in PROBES:
            asked = container.get(kind, {}).get("httpGet", {}).get("port")
            if asked is not None and asked not in {*ports, *ports.values()}:
                yield f"{where}: {kind} asks port {asked}, which is not the container's"
    for service in of_kind(objects, "Service"):
        yield from (f"Service/{service['metadata']['name']}: no container has port {port['targetPort']}"
                    for port in service["spec"]["ports"] if port["targetPort"] not in named)  # fmt: skip
    for policy in of_kind(objects, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            yield from (f"NetworkPolicy/{policy['metadata']['name']}: no container has port {port['port']}"
                        for port in rule["ports"] if port["port"] not in named)  # fmt: skip


def _users(objects: list[Object]) -> Iterator[str]:
    """The image's own user, since its folders are that user's."""
    users = set(re.findall(r"^USER (\d+:\d+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE))
    for where, spec, container in server_pods(objects):
        context = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        user = f"{context.get('runAsUser')}:{context.get('runAsGroup')}"
        if user not in users:
            yield f"{where}: it runs as {user}, the image's user is {', '.join(sorted(users))}"


def _selectors(objects: list[Object]) -> Iterator[str]:
    templates = [one["spec"]["template"]["metadata"]["labels"] for one in of_kind(objects, "Deployment")]
    if any(environment(c, objects).get("BITSERVE_BUILD_EXECUTOR") == "kubernetes" for _, _, c in server_pods(objects)):
        templates += [_of_builds(labels) for labels in templates]
    for one in of_kind(objects, "Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment"):
        spec = one["spec"]
        chosen = spec.get("selector", spec.get("podSelector", {}))
        labels = chosen if one["kind"] == "Service" else chosen.get("matchLabels", {})
        if not labels or not any(labels.items() <= template.items() for template in templates):
            yield f"{'/'.join(identity(one))}: its selector {labels} selects no pod"


def _of_builds(labels: dict[str, str]) -> dict[str, str]:
    """Labels of pods that a server with these makes."""
    pairs = (pair.partition("=") for pair in selector_of({"metadata": {"labels": labels}}).split(","))
    return {key: value for key, _, value in pairs}


def _references(objects: list[Object]) -> Iterator[str]:
    """What one object names of another is there, but for what the user makes."""
    have = {identity(one) for one in objects}
    for where, reference in _referred(objects):
        if reference not in have:
            yield f"{where}: {reference[0]} {reference[1]} is not there"


def _referred(objects: list[Object]) -> Iterator[tuple[str, tuple[str, str]]]:
    for where, spec in pod_specs(objects):
        claims = (volume.get("persistentVolumeClaim", {}).get("claimName") for volume in spec.get("volumes", ()))
        configs = (s.get("configMapRef", {}).get("name") for c in spec["containers"] for s in c.get("envFrom", ()))
        accounts, classes = [spec.get("serviceAccountName")], [spec.get("priorityClassName")]
        for kind, names in (
            ("PersistentVolumeClaim", claims), ("ConfigMap", configs), ("ServiceAccount", accounts),
            ("PriorityClass", classes),
        ):  # fmt: skip
            yield from ((where, (kind, name)) for name in names if name)
    for one in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        target = one["spec"]["scaleTargetRef"]
        yield "/".join(identity(one)), (target.get("kind", "Deployment"), target["name"])
    for one in of_kind(objects, "InferenceService"):
        yield "/".join(identity(one)), ("ServingRuntime", one["spec"]["predictor"]["model"]["runtime"])
