"""Times and sizes that must fit into each other: a drain into its grace, limits of the server into its container's."""

from __future__ import annotations

from collections.abc import Iterator

from app.settings import Settings
from tests.deploy.support.render import Object, of_kind
from tests.deploy.support.schemas_names import environment, server_pods

__all__ = ["disk_findings", "quantity", "settings_of", "size_findings"]

_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_INTERPRETER_BYTES = 2**29
"""What a server takes beside bodies and builds: itself, and its engines."""
_GRACE_S = 5
"""Engines end and connections close within it."""
_DEFAULT_GRACE_S = 30
"""Kubernetes' own terminationGracePeriodSeconds."""


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity."""
    digits = text.rstrip("kMGTi")
    return int(digits) * _SUFFIXES[text[len(digits) :]]


def size_findings(objects: list[Object]) -> list[str]:
    """What does not fit."""
    found = []
    for where, spec, container in server_pods(objects):
        settings = settings_of(container, objects)
        rules = (*_grace(spec, container, settings, objects), *_memory(container, settings))
        found += [f"{where}: {one}" for one in (*rules, *disk_findings(spec, settings, objects))]
    return found


def settings_of(container: Object, objects: list[Object]) -> Settings:
    """As a server in that container would read them, but for those of Secrets."""
    values = environment(container, objects)
    given = {
        name.removeprefix("BITSERVE_").lower(): value
        for name, value in values.items()
        if name.startswith("BITSERVE_") and value is not None
    }
    return Settings(**given)  # type: ignore[arg-type]  # text, as variables are


def _grace(spec: Object, container: Object, settings: Settings, objects: list[Object]) -> Iterator[str]:
    services = of_kind(objects, "InferenceService")  # KServe takes the pod's grace from there
    specs = [one["spec"]["predictor"] for one in services] if "protocolVersions" in spec else [spec]
    pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed_s = pre_stop + settings.drain_s + _GRACE_S
    for one in specs:
        grace_s = one.get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S)
        if grace_s < needed_s:
            yield f"ended after {grace_s} s; preStop, drain_s and the end take {needed_s:g} s"


def _memory(container: Object, settings: Settings) -> Iterator[str]:
    limit = quantity(container["resources"]["limits"]["memory"])
    needed = settings.build_memory_bytes + settings.max_held_bytes + _INTERPRETER_BYTES
    if needed > limit:
        yield f"a limit of {limit} bytes of memory; a build, bodies and the server may take {needed}"


def disk_findings(spec: Object, settings: Settings, objects: list[Object]) -> Iterator[str]:
    """Where builds lie there is room for what they may keep, and for a mirror, if that lies there, too."""
    if "protocolVersions" in spec:
        return  # KServe's models are read-only
    mount = {one["mountPath"]: one["name"] for one in spec["containers"][0]["volumeMounts"]}
    folder = "/cache" if settings.store else "/models"
    volume = next(one for one in spec["volumes"] if one["name"] == mount[folder])
    needed = settings.max_builds_bytes + (settings.max_mirror_bytes if settings.store else 0)
    size = _size(volume, objects)
    if size is not None and needed > size:
        yield f"volume {volume['name']} has {size} bytes; what the server may keep there takes {needed}"


def _size(volume: Object, objects: list[Object]) -> int | None:
    if "emptyDir" in volume:
        return quantity(volume["emptyDir"]["sizeLimit"])
    claim = volume["persistentVolumeClaim"]["claimName"]
    for one in of_kind(objects, "PersistentVolumeClaim"):
        if one["metadata"]["name"] == claim:
            return quantity(one["spec"]["resources"]["requests"]["storage"])
    return None
