"""What the API keeps: objects under one counter of versions, their changes for whoever watches, and pages of lists."""

from __future__ import annotations

import base64
import binascii
import copy
import itertools
import json
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from tests.support.kubernetes_objects import (
    Object,
    Refused,
    Resource,
    already_exists,
    bad_request,
    expired,
    not_found,
    status,
)
from tests.support.kubernetes_validity import list_findings, object_findings

__all__ = ["Change", "Store", "Watch"]

_FIRST = 8
"""So that versions soon have one more digit, and whoever compares them as text is found out."""
_CONTINUE_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You must start a new list without "
    "the continue parameter."
)


class Change(NamedTuple):
    version: int
    kind: str
    resource: Resource
    object: Object


class Watch:
    """One that waits for changes. `ending` says how its connection shall end: lost, mid_line or end."""

    def __init__(self, resource: Resource, wanted: Callable[[Object], bool], bookmarks: bool) -> None:
        self.resource = resource
        self.wanted = wanted
        self.bookmarks = bookmarks
        self.ending = ""
        self.changes: deque[Change] = deque()

    def offer(self, change: Change) -> None:
        """Take the change if it is of what is watched."""
        if change.resource == self.resource and self.wanted(change.object):
            self.changes.append(change)


class Store:
    """Objects are never changed in place: whoever is given one may keep it. Guarded by `changed`."""

    def __init__(self, findings: list[str]) -> None:
        self.findings = findings
        self.changed = threading.Condition(threading.RLock())
        self.version = _FIRST
        self.watches: list[Watch] = []
        self._compacted = 0
        self._compacted_over_http = False
        self._objects: dict[tuple[Resource, str], Object] = {}
        self._history: list[Change] = []
        self._pages: dict[int, list[Object]] = {}

    def get(self, resource: Resource, name: str) -> Object:
        """Raises Refused: not found."""
        with self.changed:
            if (resource, name) not in self._objects:
                raise not_found(resource, name)
            return self._objects[resource, name]

    def all(self, resource: Resource) -> list[Object]:
        """In the order of their names, as lists are."""
        with self.changed:
            return [one for (kind, _), one in sorted(self._objects.items()) if kind == resource]

    def create(self, resource: Resource, one: Object) -> Object:
        """Raises Refused where the name is taken."""
        with self.changed:
            if (resource, one["metadata"]["name"]) in self._objects:
                raise already_exists(resource, one["metadata"]["name"])
            return self.put(resource, one)

    def put(self, resource: Resource, one: Object) -> Object:
        """Make or replace an object; as it is stored."""
        with self.changed:
            key = (resource, one["metadata"]["name"])
            self._objects[key] = one = self._change("MODIFIED" if key in self._objects else "ADDED", resource, one)
            return one

    def remove(self, resource: Resource, name: str) -> Object:
        """Raises Refused: not found."""
        with self.changed:
            one = self._change("DELETED", resource, self.get(resource, name))
            del self._objects[resource, name]
            return one

    def _change(self, kind: str, resource: Resource, one: Object) -> Object:
        self.version += 1
        one = copy.deepcopy(one)
        one["metadata"]["resourceVersion"] = str(self.version)
        self.findings += [f"given out: {found}" for found in object_findings(one)]
        change = Change(self.version, kind, resource, one)
        self._history.append(change)
        for watch in self.watches:
            watch.offer(change)
        self.changed.notify_all()
        return one

    def compact(self, over_http: bool) -> None:
        """Forget all history; objects elsewhere in the cluster have changed since, and every version is too old."""
        with self.changed:
            self.version += 1
            self._compacted, self._compacted_over_http = self.version, over_http
            self._history.clear()
            self._pages.clear()

    def bookmark(self) -> None:
        """Tell those that watch how far the counter is."""
        with self.changed:
            for watch in self.watches:
                if watch.bookmarks:
                    watch.changes.append(Change(self.version, "BOOKMARK", watch.resource, {}))
            self.changed.notify_all()

    def watch(self, watch: Watch, since: str) -> Object | None:
        """Begin to collect its changes; the Status it gets in their place if `since` is too old. Raises Refused."""
        with self.changed:
            if since in ("", "0"):  # begin with what is there
                past = [Change(0, "ADDED", watch.resource, one) for one in self.all(watch.resource)]
            else:
                at = _version(since)
                if at < self._compacted:
                    refused = expired(f"too old resource version: {at} ({self._compacted})")
                    if self._compacted_over_http:
                        raise refused
                    return refused.body
                past = [change for change in self._history if change.version > at]
            for change in past:
                watch.offer(change)
            self.watches.append(watch)
            self.changed.notify_all()
        return None

    def unwatch(self, watch: Watch) -> None:
        with self.changed:
            if watch in self.watches:
                self.watches.remove(watch)
            self.changed.notify_all()

    def page(
        self, resource: Resource, wanted: Callable[[Object], bool], limit: int, token: str, counted: bool
    ) -> Object:
        """A list, or a page of one: later pages show what there was at the first. Raises Refused.

        `counted`: whether it says how many are left, which lists by selectors do not.
        """
        with self.changed:
            version, start = _place(token) if token else (self.version, "")
            if token and version not in self._pages:
                raise expired(_CONTINUE_EXPIRED)
            found = self._pages[version] if token else [one for one in self.all(resource) if wanted(one)]
            rest = [one for one in found if one["metadata"]["name"] > start]
            page = list(itertools.islice(rest, limit or None))
            metadata: Object = {"resourceVersion": str(version)}
            if len(page) < len(rest):
                self._pages[version] = found
                metadata["continue"] = _token(version, page[-1]["metadata"]["name"])
                if counted:
                    metadata["remainingItemCount"] = len(rest) - len(page)
        return self._listed(resource, metadata, page)

    def _listed(self, resource: Resource, metadata: Object, page: list[Object]) -> Object:
        """In lists the objects do not say what kind they are."""
        items = [{key: one[key] for key in one if key not in ("kind", "apiVersion")} for one in page]
        answer: Object = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata}
        answer["items"] = items
        self.findings += [f"given out: {found}" for found in list_findings(answer)]
        return answer


def _version(text: str) -> int:
    if not text.isdigit():
        message = f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        raise Refused(status(400, "BadRequest", message))
    return int(text)


def _token(version: int, last: str) -> str:
    place = {"v": "meta.k8s.io/v1", "rv": version, "start": f"{last}\0"}
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _place(token: str) -> tuple[int, str]:
    try:
        place = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return int(place["rv"]), str(place["start"]).rstrip("\0")
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise bad_request(f"continue key is not valid: {error}") from error
