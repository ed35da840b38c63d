"""What is loaded now: models, their versions, and the state of each. Files and child processes are not its business."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from app.serving.endpoint import Endpoint
from app.serving.errors import ModelNotReady, UnknownModel

__all__ = ["ModelState", "Registry", "Version"]


class ModelState(enum.StrEnum):
    """The protocol's states of a version."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(slots=True)
class Version:
    """One version. `reason` says why it is in its state; for READY, what is worth knowing (why it is not batched)."""

    model: str
    number: int
    state: ModelState
    reason: str = ""
    endpoint: Endpoint | None = field(default=None, repr=False)


class Registry:
    """Versions by model name and number."""

    def __init__(self) -> None:
        self._models: dict[str, dict[int, Version]] = {}
        self.changed: Callable[[], None] = lambda: None
        """Called where a version has come, is another one, or has gone."""
        self.awaits = ""
        """What has to be heard before it is known which versions there are; empty where nothing."""
        self._has_started = False

    def why_not_started(self) -> str:
        """Empty from the first moment on at which nothing is loading, however that ended."""
        if not self._has_started:
            loading = [f"{v.model}/{v.number}" for v in self.all() if v.state is ModelState.LOADING]
            shown = ", ".join(loading[:5]) + (f" and {len(loading) - 5} more" if len(loading) > 5 else "")
            if self.awaits or loading:
                return self.awaits or f"loading {shown}"
            self._has_started = True
        return ""

    def set(self, version: Version) -> None:
        self._models.setdefault(version.model, {})[version.number] = version
        self.changed()

    def unload(self, version: Version, reason: str) -> None:
        """It serves no more calls from now on, and is still known."""
        version.state, version.reason = ModelState.UNLOADING, reason
        self.changed()

    def drop(self, model: str, number: int) -> None:
        versions = self._models.get(model, {})
        versions.pop(number, None)
        if not versions:
            self._models.pop(model, None)
        self.changed()

    def get(self, model: str, number: int) -> Version | None:
        return self._models.get(model, {}).get(number)

    def versions(self, model: str) -> list[Version]:
        """All known versions of a model, ascending; empty where the model is unknown."""
        return [version for _, version in sorted(self._models.get(model, {}).items())]

    def all(self) -> list[Version]:
        return [version for model in sorted(self._models) for version in self.versions(model)]

    def endpoints(self) -> list[Endpoint]:
        return [version.endpoint for version in self.all() if version.endpoint is not None]

    def resolve(self, model: str, number: int | None = None) -> Endpoint:
        """The endpoint that answers for a model: the version asked for, or the newest that serves.

        Raises UnknownModel or ModelNotReady with the texts that scripts written for Triton match.
        """
        versions = self._models.get(model)
        if versions is None:
            raise UnknownModel(f"Request for unknown model: '{model}' is not found")
        if number is None:
            newest = None
            for v in versions.values():
                if v.state is ModelState.READY and (newest is None or v.number > newest.number):
                    newest = v
            return self._none_ready(model, list(versions.values())) if newest is None else self._endpoint(newest)
        version = versions.get(number)
        if version is None or version.state is ModelState.UNAVAILABLE:
            why = f": {version.reason}" if version is not None and version.reason else ""
            raise UnknownModel(f"Request for unknown model: '{model}' version {number} is not found{why}")
        return self._endpoint(version)

    def _none_ready(self, model: str, versions: list[Version]) -> Endpoint:
        if any(v.state is ModelState.LOADING for v in versions):
            raise ModelNotReady(f"model '{model}' is loading; it is not at ready state")
        reasons = "; ".join(f"version {v.number}: {v.reason}" for v in versions if v.reason)
        raise UnknownModel(
            f"Request for unknown model: '{model}' has no available versions" + (f" ({reasons})" if reasons else "")
        )

    def _endpoint(self, version: Version) -> Endpoint:
        if version.state is not ModelState.READY or version.endpoint is None:
            raise ModelNotReady(
                f"Request for unknown model: '{version.model}' version {version.number} is not at ready state"
            )
        return version.endpoint
