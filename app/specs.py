"""What a sender asks of a build, checked as it comes in: the schema is `engines.spec`, and what it lacks is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from engines.errors import ModelRefused
from engines.spec import Spec, require_supported

__all__ = ["read_spec"]

_SHOWN_CHARS = 100
_SCHEMA = TypeAdapter(Spec)


def read_spec(data: str | bytes) -> Spec:
    """The spec of a JSON document.

    Raises ModelRefused, naming the key, its value and what is allowed; also for what is allowed and not built yet.
    """
    try:
        spec = _SCHEMA.validate_json(data, strict=True)
    except ValidationError as error:
        raise ModelRefused(_words(error.errors(include_url=False, include_context=False)[0])) from error
    require_supported(spec)
    return spec


def _words(fault: Any) -> str:
    where, given, said = fault["loc"], fault["input"], fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "json_invalid":
        return f"spec is no JSON: {said}"
    if fault["type"] == "value_error" and isinstance(given, dict):  # a check of a whole object: the key is in its words
        return f"{_path(where)}{said}{_value_at(said.split(' ', 1)[0].rstrip(':'), given)}"
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{_path(where)}there is no such key; expected {_keys(where)}"
    return f"{_path(where)}{said}, got {_shown(given)}"


def _value_at(key: str, given: dict[str, Any]) -> str:
    """What stands at a dotted key, as the end of a sentence; nothing where the words begin with no key."""
    name, _, rest = key.partition(".")
    found = given.get(name, given)
    if isinstance(found, dict):
        found = found.get(rest, given)
    return "" if found is given else f", got {_shown(found)}"


def _path(where: Sequence[object]) -> str:
    return f"{'.'.join(['spec', *(str(part)[:_SHOWN_CHARS] for part in where)])}: "


def _keys(where: Sequence[object]) -> str:
    """What may stand where an unknown key stood."""
    schema = _SCHEMA.json_schema()
    node = schema
    for part in where[:-1]:
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return ", ".join(node.get("properties", {}))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
