"""What the API of Kubernetes says of itself: resources, refusals, and selectors. Objects are plain dictionaries."""

from __future__ import annotations

import datetime
import re
import secrets
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

__all__ = [
    "JOBS", "PODS", "Cause", "Object", "Refused", "Resource", "already_exists", "bad_request", "conflict", "expired",
    "failure", "forbidden", "invalid", "not_found", "now", "selected", "status", "suffix", "unauthorized",
]  # fmt: skip

Object = dict[str, Any]
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
"""Of names that the API makes: no vowels, lest they be words."""
_REASONS = {
    429: ("TooManyRequests", "Too many requests, please try again later."),
    500: ("InternalError", "Internal error occurred: etcdserver: leader changed"),
    503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
    504: ("Timeout", "Timeout: request did not complete within the allotted timeout"),
}


class Resource(NamedTuple):
    plural: str
    kind: str
    group: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified_kind(self) -> str:
        return f"{self.kind}.{self.group}" if self.group else self.kind


JOBS = Resource("jobs", "Job", "batch")
PODS = Resource("pods", "Pod", "")


class Cause(NamedTuple):
    """One field that is not valid; `reason` as machines read it."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"


class Refused(Exception):
    """An answer that is no success: a Status."""

    def __init__(self, body: Object, **headers: str) -> None:
        super().__init__(body["message"])
        self.body = body
        self.code = int(body["code"])
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def now() -> str:
    """This moment, in whole seconds, as the API writes times."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def suffix() -> str:
    """The end of a name that the API makes up."""
    return "".join(secrets.choice(_LETTERS) for _ in range(5))


def status(code: int, reason: str, message: str, **details: Any) -> Object:
    """A Status of failure."""
    body: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    return {**body, "reason": reason, **({"details": details} if details else {}), "code": code}


def _about(resource: Resource, name: str, kind: str = "") -> dict[str, str]:
    parts = {"name": name, "group": resource.group, "kind": kind or resource.plural}
    return {key: value for key, value in parts.items() if value}


def unauthorized() -> Refused:
    return Refused(status(401, "Unauthorized", "Unauthorized"))


def forbidden(resource: Resource, name: str, why: str) -> Refused:
    named = f'{resource.qualified} "{name}"' if name else resource.qualified
    return Refused(status(403, "Forbidden", f"{named} is forbidden: {why}", **_about(resource, name)))


def not_found(resource: Resource, name: str) -> Refused:
    return Refused(status(404, "NotFound", f'{resource.qualified} "{name}" not found', **_about(resource, name)))


def already_exists(resource: Resource, name: str) -> Refused:
    message = f'{resource.qualified} "{name}" already exists'
    return Refused(status(409, "AlreadyExists", message, **_about(resource, name)))


def conflict(resource: Resource, name: str, why: str) -> Refused:
    message = f'Operation cannot be fulfilled on {resource.qualified_kind} "{name}": {why}'
    return Refused(status(409, "Conflict", message, **_about(resource, name, resource.kind)))


def invalid(resource: Resource, name: str, causes: Iterable[Cause]) -> Refused:
    found = list(causes)
    texts = [f"{one.field}: {one.message}" for one in found]
    text = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details = [{"reason": one.reason, "message": one.message, "field": one.field} for one in found]
    message = f'{resource.qualified_kind} "{name}" is invalid: {text}'
    return Refused(status(422, "Invalid", message, **_about(resource, name, resource.kind), causes=details))


def bad_request(message: str) -> Refused:
    return Refused(status(400, "BadRequest", message))


def expired(message: str) -> Refused:
    return Refused(status(410, "Expired", message))


def failure(code: int, retry_after_s: int | None) -> Refused:
    """A fault of the server itself, or its wish to be asked later."""
    reason, message = _REASONS[code]
    if retry_after_s is None:
        return Refused(status(code, reason, message))
    return Refused(status(code, reason, message, retryAfterSeconds=retry_after_s), Retry_After=str(retry_after_s))


_KEY = r"(?P<key>[\w./-]+)"
_SET = re.compile(rf"{_KEY}\s+(?P<not>not)?in\s+\((?P<values>[^()]*)\)")
_EQUAL = re.compile(rf"{_KEY}\s*(?P<not>!)?={{1,2}}\s*(?P<values>[\w.-]*)")
_EXISTS = re.compile(rf"(?P<not>!)?\s*{_KEY}")
_FIELDS: dict[str, Callable[[Object], str]] = {
    "metadata.name": lambda one: one["metadata"]["name"],
    "metadata.namespace": lambda one: one["metadata"]["namespace"],
    "status.phase": lambda one: one["status"].get("phase", ""),
    "status.successful": lambda one: str(one["status"].get("succeeded", 0)),
    "spec.nodeName": lambda one: one["spec"].get("nodeName", ""),
}
Test = Callable[[Object], bool]


def selected(labels: str, fields: str) -> Test:
    """Whether an object is meant by a labelSelector and a fieldSelector. Raises Refused where they cannot be read."""
    tests = [_label_test(part.strip()) for part in re.split(r",(?![^(]*\))", labels) if part.strip()]
    tests += [_field_test(part.strip()) for part in fields.split(",") if part.strip()]
    return lambda one: all(test(one) for test in tests)


def _label_test(part: str) -> Test:
    found = _SET.fullmatch(part) or _EQUAL.fullmatch(part)
    if found:
        key, values = found["key"], {value.strip() for value in found["values"].split(",")}
        if found["not"]:  # also those that have no such label
            return lambda one: _labels(one).get(key) not in values
        return lambda one: _labels(one).get(key) in values
    exists = _EXISTS.fullmatch(part)
    if exists is None:
        raise bad_request(f"unable to parse requirement: found '{part}'")
    return lambda one: (exists["key"] in _labels(one)) is not bool(exists["not"])


def _labels(one: Object) -> dict[str, str]:
    return one["metadata"].get("labels") or {}


def _field_test(part: str) -> Test:
    found = _EQUAL.fullmatch(part)
    if found is None:
        raise bad_request(f"invalid selector: '{part}'; can't understand '{part}'")
    if found["key"] not in _FIELDS:
        raise bad_request(f"field label not supported: {found['key']}")
    value_of = _FIELDS[found["key"]]
    return lambda one: (value_of(one) == found["values"]) is not bool(found["not"])
