"""Fields of a plugin, checked: any node of an uploaded file could ask for one, with whatever it likes in them.

TensorRT's parser hands over the attributes of a node that the creator has named, whatever their type and length, and
leaves out those that the node has not; it never tells of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Field", "Given", "read_fields"]

_INT32 = "INT32"


class Field(NamedTuple):
    """A whole number, or `length` of them; all have to be given."""

    name: str
    length: int = 1


class Given(NamedTuple):
    """What came under a name: TensorRT's word for its type, and the numbers, where it was such a type."""

    kind: str
    values: np.ndarray


def read_fields(wanted: Sequence[Field], given: Mapping[str, Given]) -> dict[str, int | tuple[int, ...]]:
    """Whole numbers by name, a tuple where there are several. Raises ValueError with all that is wrong."""
    wrong = [problem for field in wanted if (problem := _problem(field, given.get(field.name)))]
    wrong += [f"{name!r} is no field of it" for name in given.keys() - {field.name for field in wanted}]
    if wrong:
        raise ValueError("; ".join(wrong))
    found: dict[str, int | tuple[int, ...]] = {}
    for field in wanted:
        numbers = tuple(int(value) for value in given[field.name].values.ravel())
        found[field.name] = numbers[0] if field.length == 1 else numbers
    return found


def _problem(field: Field, given: Given | None) -> str:
    if given is None:
        return f"{field.name!r} is missing"
    if given.kind != _INT32:
        return f"{field.name!r} has type {given.kind}; expected {_INT32}"
    if given.values.size != field.length:
        return f"{field.name!r} has {given.values.size} numbers; expected {field.length}"
    return ""
