"""Compare what a source uses of TensorRT with what a library offers, by names alone: nothing of the source is run.

The module is what is called `trt`. What comes from it is followed through calls and properties, whose docstrings say
what they give; where that is not written (a parameter of type Any, an item of a list), the name of the variable says
what it is, by NAMES. A class that states `name = "tensorrt"` or `"tensorrt-rtx"` is compared with that library alone.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tests.support.tensorrt_signatures import Signature
from tests.support.tensorrt_surface import LIBRARIES, Member, Surface

__all__ = ["NAMES", "Compared", "compare"]

NAMES = {
    "builder": "Builder", "cache": "ITimingCache", "config": "IBuilderConfig", "context": "IExecutionContext",
    "engine": "ICudaEngine", "error": "IParserError", "layer": "ILayer", "logger": "ILogger",
    "monitor": "IProgressMonitor", "network": "INetworkDefinition", "parser": "OnnxParser",
    "profile": "IOptimizationProfile", "runtime": "Runtime", "tensor": "ITensor",
}  # fmt: skip
"""What variables of these names hold, with or without an underscore before them, unless they visibly hold another."""
_LITERALS = (
    ast.Constant, ast.Dict, ast.DictComp, ast.JoinedStr, ast.List, ast.ListComp, ast.Set, ast.SetComp, ast.Tuple,
)  # fmt: skip
_OF_ANY_ENUM = {"name", "value"}


@dataclass
class Compared:
    """`problems` say where and what; `uses` are the names that were found, such as `Builder.create_network`."""

    problems: list[str] = field(default_factory=list)
    uses: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Seen:
    """A value in the source: the module, a class of it, an object of the class, or something to call."""

    kind: Literal["module", "class", "object", "call"]
    name: str = ""
    signatures: tuple[Signature, ...] = ()


_MODULE = _Seen("module", "trt")


def compare(source: str, file: str, surface: Surface) -> Compared:
    """One file with one library; a file that never says `trt` has nothing of it."""
    tree = ast.parse(source, file)
    found = Compared()
    if any(_says_trt(node) for node in ast.walk(tree)):
        _Reader(file, surface, found).visit(tree)
    return found


def _says_trt(node: ast.AST) -> bool:
    return "trt" in (getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "arg", None))


class _Reader(ast.NodeVisitor):
    """Each `visit` of an expression gives what it is, or None where that is nothing of TensorRT."""

    def __init__(self, file: str, surface: Surface, found: Compared) -> None:
        self._file, self._surface, self._found = file, surface, found
        self._scopes: list[dict[str, _Seen | None]] = [{}]
        self._unnamed: list[set[str]] = [set()]
        self._class: list[tuple[str, ...]] = [()]
        """Of the class around, the classes of TensorRT that it is derived from."""

    # what names hold

    def _held(self, name: str) -> _Seen | None:
        if name.strip("_") == "trt":
            return _MODULE
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        return None

    def _by_name(self, name: str) -> _Seen | None:
        held = NAMES.get(name.lstrip("_"))
        return _Seen("object", held) if held else None

    def _bind(self, target: ast.AST, value: ast.AST | None, seen: _Seen | None) -> None:
        if isinstance(target, ast.Starred):
            self._bind(target.value, None, None)
        elif isinstance(target, ast.Tuple | ast.List):
            parts: Iterable[ast.AST | None] = [None] * len(target.elts)
            if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
                parts = value.elts
            for item, part in zip(target.elts, parts, strict=True):
                self._bind(item, part, None if part is None else self.visit(part))
        elif isinstance(target, ast.Name):
            self._scopes[-1][target.id] = self._settled(target, target.id, value, seen)
        elif isinstance(target, ast.Attribute) and self._is_own(target.value):
            self._own_attribute(target, value, seen)
        elif isinstance(target, ast.Attribute):
            self._set(target, self.visit(target.value))
        else:
            self.visit(target)

    def _settled(self, node: ast.AST, name: str, value: ast.AST | None, seen: _Seen | None) -> _Seen | None:
        expected = self._by_name(name)
        if seen is None:
            return None if isinstance(value, _LITERALS) else expected
        if expected and seen.kind == "object" and not self._is_either(seen.name, expected.name):
            self._problem(node, f"{name} holds {seen.name}, and its name says {expected.name}")
        return seen

    def _is_either(self, name: str, other: str) -> bool:
        return self._surface.is_a(name, other) or self._surface.is_a(other, name)

    def _is_own(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == "self"

    # statements

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if _library_of(node) not in (None, self._surface.library):
            return
        bases = [self.visit(base) for base in node.bases]
        for keyword in node.keywords:
            self.visit(keyword.value)
        self._class.append(tuple(base.name for base in bases if base and base.kind == "class"))
        self._scopes.append({})
        for child in node.body:
            self.visit(child)
        self._scopes.pop()
        self._class.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for expression in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(expression)
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        held: dict[str, _Seen | None] = {a.arg: self._by_name(a.arg) if _is_any(a.annotation) else None for a in parameters}
        unnamed = {a.arg for a in parameters if _is_any(a.annotation) and not held[a.arg] and a.arg != "trt"}
        if parameters and parameters[0].arg == "self":
            overridden = self._overridden(node, len(parameters))
            for parameter, seen in zip(parameters, overridden, strict=False):
                held[parameter.arg] = held[parameter.arg] or seen
            unnamed -= {parameters[0].arg, *(a.arg for a in parameters if held[a.arg] or overridden)}
        self._scopes.append(held)
        self._unnamed.append(unnamed)
        for child in node.body:
            self.visit(child)
        self._unnamed.pop()
        self._scopes.pop()

    def _overridden(self, node: ast.FunctionDef, count: int) -> list[_Seen | None]:
        """What the parameters of a method are by the method that it stands for, which the library calls."""
        if not self._class[-1] or node.name.startswith("_"):
            return []
        member = self._member_of(self._class[-1], node.name)
        if member is None:
            self._missing(node, self._class[-1], node.name)
            return []
        self._use(self._class[-1][0], node.name)
        fitting = [signature for signature in member.signatures if len(signature.parameters) == count]
        if member.kind == "method" and not fitting:
            self._misfit(node, f"{node.name} takes {count} parameters", member.signatures)
        return [self._object(p.type) for signature in fitting[:1] for p in signature.parameters]

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            self._bind(target, node.value, None if several else self.visit(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        seen = self.visit(node.value) if node.value else None
        if not _is_any(node.annotation) and isinstance(node.target, ast.Name):
            self._scopes[-1][node.target.id] = None
        elif not _is_any(node.annotation) and isinstance(node.target, ast.Attribute):
            self._scopes[0][f"self.{node.target.attr}"] = None
        else:
            self._bind(node.target, node.value, seen)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        self._bind(node.target, node.value, None)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self._bind(node.target, None, None)
        for child in [*node.body, *node.orelse]:
            self.visit(child)

    def visit_withitem(self, node: ast.withitem) -> None:
        seen = self.visit(node.context_expr)
        if node.optional_vars:
            self._bind(node.optional_vars, node.context_expr, seen)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self._scopes[-1][node.name] = None
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.visit(node.iter)
        self._bind(node.target, None, None)
        for condition in node.ifs:
            self.visit(condition)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        self._scopes.append({})
        for generator in node.generators:
            self.visit(generator)
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            self.visit(part)
        self._scopes.pop()

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension

    # expressions

    def visit_Name(self, node: ast.Name) -> _Seen | None:
        return self._held(node.id)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> _Seen | None:
        seen = self.visit(node.value)
        self._bind(node.target, node.value, seen)
        return self._held(node.target.id)

    def visit_Attribute(self, node: ast.Attribute) -> _Seen | None:
        if node.attr == "trt":
            return _MODULE
        if self._is_own(node.value):
            return self._own(node)
        if isinstance(node.value, ast.Name) and node.value.id in self._unnamed[-1]:
            if node.value.id not in self._scopes[-1] or self._scopes[-1][node.value.id] is None:
                self._problem(node, f"{node.value.id} is Any, and its name says no class of TensorRT: see NAMES")
        owner = self.visit(node.value)
        return self._got(node, owner, node.attr) if owner else None

    def _own(self, node: ast.Attribute) -> _Seen | None:
        name = f"self.{node.attr}"
        if any(name in scope for scope in self._scopes):
            return self._held(name)
        if self._class[-1] and (member := self._member_of(self._class[-1], node.attr)):
            return self._seen_of(self._class[-1][0], node.attr, member, is_bound=True)
        return self._by_name(node.attr)

    def _own_attribute(self, target: ast.Attribute, value: ast.AST | None, seen: _Seen | None) -> None:
        if self._class[-1] and not target.attr.startswith("_"):
            self._set(target, _Seen("object", self._class[-1][0]), self._class[-1])
        else:
            self._scopes[0][f"self.{target.attr}"] = self._settled(target, target.attr, value, seen)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Members of enums are compared with words, too: `severity.name in ("ERROR", "WARNING")`."""
        self.generic_visit(node)
        named = node.left
        if isinstance(named, ast.Attribute) and named.attr == "name" and (seen := self.visit(named.value)):
            for word in (part for other in node.comparators for part in ast.walk(other)):
                if isinstance(word, ast.Constant) and isinstance(word.value, str) and self._is_enum(seen.name):
                    self._got(word, _Seen("class", seen.name), word.value)

    def visit_Call(self, node: ast.Call) -> _Seen | None:
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) > 1:
            return self._got_by_word(node)
        called = self.visit(node.func)
        given: dict[int | str, _Seen | None] = {i: self.visit(argument) for i, argument in enumerate(node.args)}
        given |= {keyword.arg or "**": self.visit(keyword.value) for keyword in node.keywords}
        if called is None or called.kind not in ("call", "class"):
            return None
        return self._called(node, called, given)

    def _got_by_word(self, node: ast.Call) -> _Seen | None:
        """`getattr` with a word is an attribute; of an enum, any other gives one of its members."""
        owner, word = self.visit(node.args[0]), node.args[1]
        self.visit(word)
        if owner is None:
            return None
        if isinstance(word, ast.Constant):
            return self._got(node, owner, str(word.value))
        if owner.kind == "class" and self._is_enum(owner.name):
            return _Seen("object", owner.name)
        self._problem(node, "getattr with a word that is not written here cannot be compared")
        return None

    def _called(self, node: ast.Call, called: _Seen, given: dict[int | str, _Seen | None]) -> _Seen | None:
        if called.kind == "class":
            made: _Seen | None = _Seen("object", called.name)
            overloads = tuple(s.without_self() for s in self._surface.classes[called.name]["__init__"].signatures)
        else:
            overloads, made = called.signatures, None
        if any(isinstance(argument, ast.Starred) for argument in node.args) or "**" in given:
            self._problem(node, f"{called.name} is given arguments that are not written here and cannot be compared")
            return made
        fitting = [signature for signature in overloads if self._fits(signature, given)]
        if not fitting:
            words = [str(key) for key in given if isinstance(key, str)]
            count = len(given) - len(words)
            kinds = ", ".join(seen.name if seen and seen.kind == "object" else "?" for seen in given.values())
            and_words = f" and {', '.join(words)}" if words else ""
            self._misfit(node, f"{called.name} is called with {count} arguments{and_words} ({kinds})", overloads)
        return made or (self._object(fitting[0].returns) if fitting else None)

    def _fits(self, signature: Signature, given: dict[int | str, _Seen | None]) -> bool:
        words = [key for key in given if isinstance(key, str)]
        taken = signature.bound(len(given) - len(words), words)
        if taken is None:
            return False
        pairs = ((given[key], taken[key].type.removesuffix(" | None")) for key in taken)
        return all(
            seen is None or seen.kind != "object" or wanted not in self._surface.classes or self._surface.is_a(seen.name, wanted)
            for seen, wanted in pairs
        )

    # what the library has

    def _got(self, node: ast.AST, owner: _Seen, name: str) -> _Seen | None:
        if owner.kind == "call":
            return None
        if owner.kind == "module":
            member, of = self._surface.members.get(name), "the module"
        else:
            member, of = self._member_of([owner.name], name), owner.name
        if member is None:
            if not (owner.kind == "object" and name in _OF_ANY_ENUM and self._is_enum(owner.name)):
                self._missing(node, () if owner.kind == "module" else (of,), name)
            return None
        self._use("" if owner.kind == "module" else owner.name, name)
        return self._seen_of("" if owner.kind == "module" else owner.name, name, member, is_bound=owner.kind == "object")

    def _seen_of(self, of: str, name: str, member: Member, is_bound: bool) -> _Seen | None:
        if member.kind == "class" and member.type in self._surface.classes:
            return _Seen("class", member.type)
        if member.kind in ("method", "function"):
            is_whole = member.kind == "function" or not is_bound
            overloads = member.signatures if is_whole else tuple(s.without_self() for s in member.signatures)
            return _Seen("call", f"{of}.{name}".lstrip("."), overloads)
        return self._object(member.type) if is_bound or member.kind == "value" else None

    def _set(self, target: ast.Attribute, owner: _Seen | None, classes: tuple[str, ...] = ()) -> None:
        if owner is None or owner.kind != "object":
            return
        member = self._member_of(classes or (owner.name,), target.attr)
        if member is None:
            self._missing(target, classes or (owner.name,), target.attr)
        elif member.kind != "property" or not member.is_settable:
            self._problem(target, f"{owner.name}.{target.attr} cannot be set")
        else:
            self._use(owner.name, target.attr)

    def _member_of(self, classes: Iterable[str], name: str) -> Member | None:
        return next((found[name] for c in classes if name in (found := self._surface.classes.get(c, {}))), None)

    def _object(self, annotation: str | None) -> _Seen | None:
        name = (annotation or "").removesuffix(" | None")
        return _Seen("object", name) if name in self._surface.classes else None

    def _is_enum(self, name: str) -> bool:
        return "__members__" in self._surface.classes.get(name, {})

    def _use(self, of: str, name: str) -> None:
        self._found.uses.add(f"{of}.{name}".lstrip("."))

    def _missing(self, node: ast.AST, classes: tuple[str, ...], name: str) -> None:
        offered = [n for c in classes for n in self._surface.classes[c]] if classes else list(self._surface.members)
        close = difflib.get_close_matches(name, offered, 1)
        of = " or ".join(classes) or "trt"
        self._problem(node, f"{of} has no {name}{f', but {close[0]}' if close else ''}")

    def _misfit(self, node: ast.AST, said: str, overloads: tuple[Signature, ...]) -> None:
        offered = " or ".join(str(signature) for signature in overloads) or "no call at all"
        self._problem(node, f"{said}; there is {offered}")

    def _problem(self, node: ast.AST, said: str) -> None:
        where = f"{self._file}:{getattr(node, 'lineno', 0)}"
        told = f"{where}: {said} [{self._surface.library} {self._surface.version}]"
        if told not in self._found.problems:
            self._found.problems.append(told)


def _library_of(node: ast.ClassDef) -> str | None:
    """The one library that a class is for: it states it as its `name`."""
    for statement in node.body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]
        if isinstance(target, ast.Name) and target.id == "name" and isinstance(statement.value, ast.Constant):
            return str(statement.value.value) if statement.value.value in LIBRARIES else None
    return None


def _is_any(annotation: ast.AST | None) -> bool:
    return annotation is None or (isinstance(annotation, ast.Name) and annotation.id == "Any")
