"""Whether the API would take an object: the schemas of Kubernetes, and what its code checks beyond them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types

from tests.deploy.support.schemas import VERSIONS, builtin_findings
from tests.deploy.support.schemas_pod_security import restricted_findings
from tests.support.kubernetes_objects import Cause, Object

__all__ = ["delete_options_findings", "job_causes", "list_findings", "object_findings", "security_findings"]

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_QUANTITY = re.compile(r"(?P<digits>\+?[0-9]+(\.[0-9]*)?|\.[0-9]+)(?P<unit>[numkMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]+)?")
_UNITS = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip
_ENDS = "and must start and end with an alphanumeric character"
_SUBDOMAIN_RULE = (
    f"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', {_ENDS}"
)
_LABEL_RULE = f"a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', {_ENDS}"
_NAME_RULE = f"must consist of alphanumeric characters, '-', '_' or '.', {_ENDS}"
_QUANTITY_RULE = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
_COUNTS = ("completions", "parallelism", "backoffLimit", "ttlSecondsAfterFinished", "activeDeadlineSeconds")
_DELETE_OPTIONS = frozenset(
    {"apiVersion", "kind", "dryRun", "gracePeriodSeconds", "orphanDependents", "preconditions", "propagationPolicy"}
)
_LONGEST_ANNOTATIONS = 256 * 1024
_LONGEST_LABEL = 63
"""Of a value, and of what stands after the slash of a key."""


def object_findings(one: Object) -> list[str]:
    """Wrong types and unknown fields, in the oldest version that is supported and a later one."""
    return [found for version in VERSIONS for found in builtin_findings([one], version)]


def security_findings(one: Object) -> list[str]:
    """What a namespace that enforces `restricted` would not let run."""
    return restricted_findings([one])


def list_findings(answer: Object) -> list[str]:
    """The same as for an object; a list has no name."""
    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(answer, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(part) for part in error.path)
            found.append(f"{answer['kind']} (Kubernetes {version}): {where}: {error.message}")
    return found


def delete_options_findings(body: Object) -> list[str]:
    """What is wrong with the body of a DELETE. It has a schema, but under no version of the API that could be named."""
    preconditions = body.get("preconditions", {})
    found = [f"DeleteOptions: unknown field {key}" for key in sorted(set(body) - _DELETE_OPTIONS)]
    if not isinstance(preconditions, dict) or set(preconditions) - {"uid", "resourceVersion"}:
        found.append(f"DeleteOptions: preconditions: {preconditions}")
    if type(body.get("gracePeriodSeconds", 0)) is not int:
        found.append(f"DeleteOptions: gracePeriodSeconds: {body['gracePeriodSeconds']}")
    return found


def job_causes(job: Object) -> list[Cause]:
    """What the API's own checks, beyond types, refuse of a Job that has the right types."""
    return [*_metadata_causes(job["metadata"]), *_spec_causes(job["metadata"]["name"], job["spec"])]


def _metadata_causes(metadata: Object) -> Iterator[Cause]:
    name = metadata["name"]
    if len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        yield Cause("metadata.name", f'Invalid value: "{name}": {_SUBDOMAIN_RULE}')
    yield from _map_causes("metadata", metadata)


def _map_causes(where: str, metadata: Object) -> Iterator[Cause]:
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    for field, keys in (("labels", labels), ("annotations", annotations)):
        for key in keys:
            prefix, slash, name = key.rpartition("/")
            named = len(name) <= _LONGEST_LABEL and _NAME.fullmatch(name)
            if not named or (slash and not _SUBDOMAIN.fullmatch(prefix)):
                yield Cause(f"{where}.{field}", f'Invalid value: "{key}": name part {_NAME_RULE}')
    for value in labels.values():
        if len(value) > _LONGEST_LABEL:
            yield Cause(f"{where}.labels", f'Invalid value: "{value}": must be no more than 63 characters')
        elif value and not _NAME.fullmatch(value):
            yield Cause(f"{where}.labels", f'Invalid value: "{value}": a valid label {_NAME_RULE}')
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > _LONGEST_ANNOTATIONS:
        yield Cause(f"{where}.annotations", "Too long: may not be more than 262144 bytes", "FieldValueTooLong")


def _spec_causes(name: str, spec: Object) -> Iterator[Cause]:
    for field in _COUNTS:
        if spec.get(field, 0) < 0:
            yield Cause(f"spec.{field}", f"Invalid value: {spec[field]}: must be greater than or equal to 0")
    if "selector" in spec and not spec.get("manualSelector"):
        yield Cause("spec.selector", "Invalid value: `selector` not auto-generated")
    if len(name) > _LONGEST_LABEL:  # it becomes a label of the pods
        yield Cause("spec.template.labels", f'Invalid value: "{name}": must be no more than 63 characters')
    template = spec["template"]
    pod = template.get("spec") or {}
    yield from _map_causes("spec.template", template.get("metadata") or {})
    if pod.get("restartPolicy") not in {"OnFailure", "Never"}:
        said = pod.get("restartPolicy")
        text = 'Required value: valid values: "OnFailure", "Never"'
        if said:
            text = f'Unsupported value: "{said}": supported values: "OnFailure", "Never"'
        yield Cause(
            "spec.template.spec.restartPolicy", text, "FieldValueNotSupported" if said else "FieldValueRequired"
        )
    if "podFailurePolicy" in spec and pod.get("restartPolicy") != "Never":
        text = 'Invalid value: only "Never" is supported when podFailurePolicy is specified'
        yield Cause("spec.template.spec.restartPolicy", text)
    yield from _pod_causes("spec.template.spec", pod)


def _pod_causes(where: str, pod: Object) -> Iterator[Cause]:
    if not pod.get("containers"):
        yield Cause(f"{where}.containers", "Required value", "FieldValueRequired")
    volumes = [one["name"] for one in pod.get("volumes") or ()]
    yield from _doubled(f"{where}.volumes", volumes)
    kinds = [(kind, pod.get(kind) or ()) for kind in ("initContainers", "containers")]
    yield from _doubled(f"{where}.containers", [one["name"] for _, containers in kinds for one in containers])
    for kind, containers in kinds:
        for at, container in enumerate(containers):
            yield from _container_causes(f"{where}.{kind}[{at}]", container, set(volumes))


def _doubled(where: str, names: list[str]) -> Iterator[Cause]:
    for at, name in enumerate(names):
        if len(name) > _LONGEST_LABEL or not _LABEL.fullmatch(name):
            yield Cause(f"{where}[{at}].name", f'Invalid value: "{name}": {_LABEL_RULE}')
        if name in names[:at]:
            yield Cause(f"{where}[{at}].name", f'Duplicate value: "{name}"', "FieldValueDuplicate")


def _container_causes(where: str, container: Object, volumes: set[str]) -> Iterator[Cause]:
    if not container.get("image"):
        yield Cause(f"{where}.image", "Required value", "FieldValueRequired")
    if container.get("imagePullPolicy", "Always") not in {"Always", "IfNotPresent", "Never"}:
        said = f'Unsupported value: "{container["imagePullPolicy"]}"'
        text = f'{said}: supported values: "Always", "IfNotPresent", "Never"'
        yield Cause(f"{where}.imagePullPolicy", text, "FieldValueNotSupported")
    for at, variable in enumerate(container.get("env") or ()):
        if not variable["name"] or "=" in variable["name"]:
            yield Cause(f"{where}.env[{at}].name", f'Invalid value: "{variable["name"]}"')
        if variable.get("value") and "valueFrom" in variable:
            text = 'Invalid value: "": may not be specified when `value` is not empty'
            yield Cause(f"{where}.env[{at}].valueFrom", text)
    places = [mount["mountPath"] for mount in container.get("volumeMounts") or ()]
    for at, mount in enumerate(container.get("volumeMounts") or ()):
        if mount["name"] not in volumes:
            yield Cause(f"{where}.volumeMounts[{at}].name", f'Not found: "{mount["name"]}"', "FieldValueNotFound")
        if mount["mountPath"] in places[:at]:
            yield Cause(
                f"{where}.volumeMounts[{at}].mountPath", f'Invalid value: "{mount["mountPath"]}": must be unique'
            )
    yield from _resource_causes(f"{where}.resources", container.get("resources") or {})


def _resource_causes(where: str, resources: Object) -> Iterator[Cause]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for kind, quantities in (("limits", limits), ("requests", requests)):
        for name, value in quantities.items():
            if _amount(value) is None:
                yield Cause(f"{where}.{kind}[{name}]", f'Invalid value: "{value}": {_QUANTITY_RULE}')
    for name, value in requests.items():
        asked, limit = _amount(value), _amount(limits.get(name))
        if asked is not None and limit is not None and asked > limit:
            text = f'Invalid value: "{value}": must be less than or equal to {name} limit of {limits[name]}'
            yield Cause(f"{where}.requests", text)


def _amount(value: Any) -> float | None:
    """None where it is no quantity."""
    found = _QUANTITY.fullmatch(str(value))
    if found is None:
        return None
    unit = found["unit"] or ""
    return float(found["digits"]) * (_UNITS[unit] if unit in _UNITS else float(f"1{unit}"))
