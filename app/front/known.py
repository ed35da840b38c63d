"""What a front end knows of the versions that the engine process serves; the engine has the last word on every call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.front.memory import ProcessCells
from app.front.messages import Version
from app.serving.errors import ModelNotReady
from app.serving.limits import ModelOptions
from app.serving.stats import Stats
from engines.tensor import DYNAMIC, TensorSpec, datatype

__all__ = ["KnownVersion", "KnownVersions"]

_LARGEST_GUESS_BYTES = 16_777_216


@dataclass(eq=False, slots=True, weakref_slot=True)
class KnownVersion:
    """A version, as far as a request for it is taken apart. `stats` are what this front end has counted of it.

    `asked_number` is None in the one that is found by the model alone, as the newest: which that is may change.
    """

    id: int
    model: str
    version: int
    asked_number: int | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: ModelOptions
    stats: Stats
    row_bytes: int
    """Of all outputs, a row; where a dimension is variable, the most that was seen."""

    def output_bytes(self, rows: int) -> int:
        """What an answer probably needs."""
        return min(self.row_bytes * rows, _LARGEST_GUESS_BYTES)


class KnownVersions:
    """By model and number. `counters` is the shared memory for this front end's part of the statistics."""

    def __init__(self, counters: ProcessCells) -> None:
        self._counters = counters
        self._models: dict[str, dict[int | None, KnownVersion]] = {}

    def learn(self, versions: Sequence[Version]) -> None:
        """All that there are now."""
        before = {(known.id, number): known for model in self._models.values() for number, known in model.items()}
        self._models = {}
        for told in versions:
            numbers = self._models.setdefault(told.model, {})
            for number in (told.number, None) if told.is_newest else (told.number,):
                numbers[number] = before.get((told.id, number)) or self._version(told, number)

    def forget(self) -> None:
        """The engine that told of them has gone."""
        self.learn(())

    def find(self, model: str, number: int | None) -> KnownVersion | None:
        return self._models.get(model, {}).get(number)

    def resolve(self, model: str, number: int | None) -> KnownVersion:
        """ModelNotReady where a version has gone since its call began."""
        found = self.find(model, number)
        if found is None:
            raise ModelNotReady(f"model '{model}' has just been unloaded; it is not at ready state")
        return found

    def _version(self, told: Version, asked: int | None) -> KnownVersion:
        counters = Stats() if told.place < 0 else Stats(self._counters.stats(told.place))
        row_bytes = sum(_row_bytes(spec) for spec in told.outputs)
        options = ModelOptions(told.limits, labels=told.labels)
        return KnownVersion(
            told.id, told.model, told.number, asked, told.inputs, told.outputs, options, counters, row_bytes
        )


def _row_bytes(spec: TensorSpec) -> int:
    """0 where it is not known before a run."""
    if DYNAMIC in spec.row_shape:
        return 0
    return 64 + math.prod(spec.row_shape) * datatype(spec.datatype).item_bytes
