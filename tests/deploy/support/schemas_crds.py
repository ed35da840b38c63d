"""Custom resources against the schemas of their own definitions, with unknown fields refused.

An API server drops fields that a definition does not name, without a word unless it is asked: here they are findings.
The definitions are not part of this project: `BITSERVE_CRDS` names their folder, else `../shared/crds` beside it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.deploy.support.render import Object, identity
from tests.deploy.support.render_tools import ROOT
from tests.deploy.support.schemas import is_builtin

__all__ = ["crd_findings", "crds_folder", "strict"]

_Schemas = dict[tuple[str, str], dict[str, Any]]
_OPEN = "x-kubernetes-preserve-unknown-fields"
_INT_OR_STRING = "x-kubernetes-int-or-string"


def crds_folder() -> Path | None:
    """Where CustomResourceDefinitions lie, if they do."""
    folder = Path(os.environ.get("BITSERVE_CRDS") or ROOT.parent / "shared" / "crds")
    return folder if any(folder.glob("*.yaml")) else None


def crd_findings(objects: Iterable[Object], folder: Path) -> list[str]:
    """What no definition allows, and kinds without one."""
    schemas = _schemas(folder)
    return [found for one in objects if not is_builtin(one) for found in _findings(one, schemas)]


def _findings(one: Object, schemas: _Schemas) -> list[str]:
    where = "/".join(identity(one))
    schema = schemas.get((one["apiVersion"], one["kind"]))
    if schema is None:
        return [f"{where}: no definition of {one['apiVersion']} {one['kind']}"]
    errors = jsonschema.Draft202012Validator(schema).iter_errors(one)
    return [f"{where}: {'.'.join(str(part) for part in error.absolute_path)}: {error.message}" for error in errors]


@functools.cache
def _schemas(folder: Path) -> _Schemas:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # KServe's definitions have 40,000 lines
    found: _Schemas = {}
    for path in sorted(folder.glob("*.yaml")):
        for crd in yaml.load_all(path.read_text("utf-8"), Loader=loader):
            for version in crd["spec"]["versions"]:
                key = (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"])
                found[key] = _whole(version["schema"]["openAPIV3Schema"])
    return found


def _whole(schema: dict[str, Any]) -> dict[str, Any]:
    """An object's schema; apiVersion, kind and metadata are the API server's own matter."""
    made = strict(schema)
    made["properties"] = {
        **made["properties"],
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    }
    return made


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema as JSON schema: what its `properties` do not name is refused.

    Structural schemas name every property outside of allOf, anyOf and oneOf, so those are left as they are.
    """
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get(_INT_OR_STRING):
        made.pop("type", None)
        made.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if "properties" in schema:
        made["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get(_OPEN) and "additionalProperties" not in schema:
            made["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    if isinstance(schema.get("items"), dict):
        made["items"] = strict(schema["items"])
    if made.pop("nullable", False) and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made
