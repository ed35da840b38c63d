"""What a library says to one use of it: the value it gives, or the problem, in words with a line number."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.support.tensorrt_signatures import Signature
from tests.support.tensorrt_surface import Member, Surface

__all__ = ["HOOKS", "MODULE", "Compared", "Given", "Library", "Seen"]


@dataclass
class Compared:
    """`problems` say where and what; `uses` are the names that were found, such as `Builder.create_network`."""

    problems: list[str] = field(default_factory=list)
    uses: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Seen:
    """A value in the source: the module, a class of it, an object of the class, or something to call."""

    kind: Literal["module", "class", "object", "call"]
    name: str = ""
    signatures: tuple[Signature, ...] = ()


MODULE = Seen("module")
HOOKS = {"IOutputAllocator": {"reallocate_output_async": 6, "notify_shape": 3}}
"""Methods that the bindings call by name where a derived class has them, and list nowhere; how many parameters."""
Given = Mapping[int | str, Seen | None]
"""The arguments of a call by position or keyword, each with what it is where that is of the library."""


class Library:
    """Answers for one file and one surface; all that it says is in `found`."""

    def __init__(self, file: str, surface: Surface) -> None:
        self.found = Compared()
        self._file, self._surface = file, surface

    @property
    def name(self) -> str:
        """The target that it builds for."""
        return self._surface.library

    def got(self, node: ast.AST, owner: Seen, name: str) -> Seen | None:
        """An attribute of what is known."""
        if owner.kind == "call":
            return None
        members = self._surface.members if owner.kind == "module" else self._surface.classes[owner.name]
        member = members.get(name)
        if member is None:
            self._missing(node, (owner.name,) if owner.name else (), name)
            return None
        self._use(owner.name, name)
        return self._value(owner, name, member)

    def _value(self, owner: Seen, name: str, member: Member) -> Seen | None:
        if member.kind == "class" and member.type in self._surface.classes:
            return Seen("class", member.type)
        if member.kind in ("method", "function"):
            is_bound = member.kind == "method" and owner.kind == "object"
            overloads = tuple(s.without_self() for s in member.signatures) if is_bound else member.signatures
            return Seen("call", f"{owner.name}.{name}".lstrip("."), overloads)
        return self.object_of(member.type) if owner.kind == "object" or member.kind == "value" else None

    def set_to(self, target: ast.Attribute, classes: tuple[str, ...]) -> None:
        """An attribute of an object is given a value."""
        owner = self.owner(classes, target.attr)
        if owner is None:
            self._missing(target, classes, target.attr)
        elif not self._surface.classes[owner][target.attr].is_settable:
            self.problem(target, f"{owner}.{target.attr} cannot be set")
        else:
            self._use(owner, target.attr)

    def called(self, node: ast.AST, called: Seen, given: Given) -> Seen | None:
        """What a call gives: of a class an object of it, whatever the arguments."""
        if called.kind == "class":
            overloads = tuple(s.without_self() for s in self._surface.classes[called.name]["__init__"].signatures)
        else:
            overloads = called.signatures
        fitting = [signature for signature in overloads if self._fits(signature, given)]
        if not fitting:
            shown = ", ".join(
                f"{f'{key}=' if isinstance(key, str) else ''}{seen.name if seen and seen.kind == 'object' else '?'}"
                for key, seen in given.items()
            )
            self._misfit(node, f"{called.name} is called with ({shown})", overloads)
        if called.kind == "class":
            return Seen("object", called.name)
        return self.object_of(fitting[0].returns) if fitting else None

    def _fits(self, signature: Signature, given: Given) -> bool:
        words = [key for key in given if isinstance(key, str)]
        taken = signature.bound(len(given) - len(words), words)
        if taken is None:
            return False
        return all(self._is_fit(given[key], self.object_of(parameter.type)) for key, parameter in taken.items())

    def _is_fit(self, seen: Seen | None, wanted: Seen | None) -> bool:
        return not seen or not wanted or (seen.kind == "object" and self._surface.is_a(seen.name, wanted.name))

    def overridden(self, node: ast.FunctionDef, classes: tuple[str, ...]) -> list[Seen | None]:
        """What the parameters of a method are that stands for one of the library, which calls it."""
        for base in classes:
            if node.name in HOOKS.get(base, ()):
                self._use(base, node.name)
                if len(node.args.args) != HOOKS[base][node.name]:
                    self._misfit(node, f"{node.name} takes {len(node.args.args)} parameters", ())
                return []
        owner = self.owner(classes, node.name)
        if owner is None:
            self._missing(node, classes, node.name)
            return []
        self._use(owner, node.name)
        member = self._surface.classes[owner][node.name]
        count = len(node.args.posonlyargs) + len(node.args.args)
        fitting = [signature for signature in member.signatures if len(signature.parameters) == count]
        if member.kind == "method" and not fitting:
            self._misfit(node, f"{node.name} takes {count} parameters", member.signatures)
        return [self.object_of(parameter.type) for signature in fitting[:1] for parameter in signature.parameters]

    def owner(self, classes: Sequence[str], name: str) -> str | None:
        """The first of these classes that has a member of that name."""
        return next((each for each in classes if name in self._surface.classes[each]), None)

    def object_of(self, annotation: str | None) -> Seen | None:
        """An object of the class, where the annotation is one of the library's."""
        name = (annotation or "").removesuffix(" | None")
        return Seen("object", name) if name in self._surface.classes else None

    def is_enum(self, name: str) -> bool:
        """Whether a class is one."""
        return "__members__" in self._surface.classes.get(name, {})

    def are_kin(self, name: str, other: str) -> bool:
        """Whether one of the two classes is derived from the other."""
        return self._surface.is_a(name, other) or self._surface.is_a(other, name)

    def problem(self, node: ast.AST, said: str) -> None:
        """Say it once, with its place."""
        where = f"{self._file}:{getattr(node, 'lineno', 0)}"
        told = f"{where}: {said} [{self._surface.library} {self._surface.version}]"
        if told not in self.found.problems:
            self.found.problems.append(told)

    def _use(self, of: str, name: str) -> None:
        self.found.uses.add(f"{of}.{name}".lstrip("."))

    def _missing(self, node: ast.AST, classes: tuple[str, ...], name: str) -> None:
        offered = [n for c in classes for n in self._surface.classes[c]] if classes else list(self._surface.members)
        close = difflib.get_close_matches(name, offered, 1)
        self.problem(node, f"{' or '.join(classes) or 'trt'} has no {name}{f', but {close[0]}' if close else ''}")

    def _misfit(self, node: ast.AST, said: str, overloads: Sequence[Signature]) -> None:
        offered = " or ".join(str(signature) for signature in overloads) or "no call at all"
        self.problem(node, f"{said}; there is {offered}")
