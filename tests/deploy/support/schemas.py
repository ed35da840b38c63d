"""Objects against the schemas of Kubernetes itself. Every check gives findings as text; none means that all is well."""

from __future__ import annotations

from collections.abc import Iterable

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types

from tests.deploy.support.render import Object, identity

__all__ = ["VERSIONS", "builtin_findings", "is_builtin"]

VERSIONS = ("1.30", "1.34")
"""The oldest that the chart says it needs, and a later one."""


def is_builtin(one: Object) -> bool:
    """Whether Kubernetes itself knows the kind: its groups have no domain, or one of its own."""
    group = one["apiVersion"].partition("/")[0] if "/" in one["apiVersion"] else ""
    return "." not in group or group.endswith(".k8s.io")


def builtin_findings(objects: Iterable[Object], version: str) -> list[str]:
    """Wrong types and unknown fields, as the API server of that version would refuse them."""
    return [found for one in objects if is_builtin(one) for found in _findings(one, version)]


def _findings(one: Object, version: str) -> list[str]:
    where = f"{'/'.join(identity(one))} (Kubernetes {version})"
    try:
        kubernetes_validate.validate(one, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{where}: {'.'.join(str(part) for part in error.path)}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"{where}: no such kind of {one['apiVersion']}"]
    return []
