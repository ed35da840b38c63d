"""Signatures as pybind11 writes them into docstrings, such as `name(self: m.Class, count: int = 0) -> m.Other`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Parameter", "Signature", "returned", "signatures"]

_MODULE = re.compile(r"\btensorrt(?:_rtx)?_bindings\.tensorrt(?:_rtx)?\.")
_OPENING, _CLOSING = "([{<", ")]}>"
_RETURNED = re.compile(r"^\w*\(.*\) -> (.+)$")


@dataclass(frozen=True)
class Parameter:
    """`star` is empty, `*` or `**`; `type` is the annotation, with no name of a module."""

    name: str
    type: str = ""
    star: str = ""
    has_default: bool = False


@dataclass(frozen=True)
class Signature:
    """One overload."""

    parameters: tuple[Parameter, ...]
    returns: str

    def without_self(self) -> Signature:
        """As a bound method sees it."""
        return Signature(self.parameters[1:], self.returns)

    def bound(self, count: int, keywords: Sequence[str]) -> dict[int | str, Parameter] | None:
        """The parameter of each argument, by its position or its keyword; None where they do not fit."""
        plain = [parameter for parameter in self.parameters if not parameter.star]
        stars = {parameter.star: parameter for parameter in self.parameters if parameter.star}
        taken: dict[int | str, Parameter] = dict(enumerate(plain[:count]))
        if count > len(plain) and "*" not in stars:
            return None
        left = {parameter.name: parameter for parameter in plain[count:]}
        for keyword in keywords:
            if keyword not in left and "**" not in stars:
                return None
            taken[keyword] = left.pop(keyword) if keyword in left else stars["**"]
        return None if any(not parameter.has_default for parameter in left.values()) else taken

    def __str__(self) -> str:
        """In short: names alone."""
        shown = (f"{p.star}{p.name}{'=...' if p.has_default else ''}" for p in self.parameters)
        return f"({', '.join(shown)})"


def signatures(name: str, doc: str) -> tuple[Signature, ...]:
    """All overloads; none where the docstring begins with no signature of that name."""
    lines = doc.splitlines()
    if "Overloaded function." in lines[:2]:
        found = [re.sub(r"^\d+\. ", "", line) for line in lines if re.match(rf"^\d+\. {re.escape(name)}\(", line)]
    else:
        found = [line for line in lines[:1] if line.startswith(f"{name}(")]
    return tuple(_parsed(line) for line in found)


def returned(doc: str) -> str | None:
    """The type that the getter of a property gives: `(self: m.Class) -> m.Other`."""
    lines = doc.strip().splitlines()
    found = _RETURNED.match(lines[0]) if lines else None
    return _MODULE.sub("", found[1]) if found else None


def _parsed(line: str) -> Signature:
    inner, _, returns = line.partition("(")[2].rpartition(") -> ")
    parts = (part.strip() for part in _split(_MODULE.sub("", inner)))
    return Signature(tuple(_parameter(part) for part in parts if part not in ("", "*", "/")), _MODULE.sub("", returns))


def _parameter(text: str) -> Parameter:
    head, equals, _ = text.partition("=")
    name, _, annotation = head.partition(":")
    bare = name.strip().lstrip("*")
    return Parameter(bare, annotation.strip(), name.strip()[: -len(bare)], bool(equals))


def _split(text: str) -> list[str]:
    """At the commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts
