"""Compare what a source uses of TensorRT with what a library offers, by names alone: nothing of the source is run.

The module is what is called `trt`. What comes from it is followed through calls and properties, whose docstrings say
what they give; where that is not written (a parameter of type Any, an item of a list), the name of the variable says
what it is, by NAMES. A class that states `name = "tensorrt"` or `"tensorrt-rtx"` is compared with that library alone.
In a class that is derived from one of the library's, what has no underscore before it is the library's.
"""

from __future__ import annotations

import ast

from tests.support.tensorrt_known import MODULE, Compared, Library, Seen
from tests.support.tensorrt_surface import LIBRARIES, Surface

__all__ = ["NAMES", "compare"]

NAMES = {
    "builder": "Builder", "cache": "ITimingCache", "config": "IBuilderConfig", "context": "IExecutionContext",
    "core": "IPluginV3OneCore", "described": "DynamicPluginTensorDesc", "description": "PluginTensorDesc",
    "engine": "ICudaEngine", "error": "ParserError", "expressions": "IExprBuilder", "field": "PluginField",
    "layer": "ILayer", "logger": "ILogger", "monitor": "IProgressMonitor", "network": "INetworkDefinition",
    "parser": "OnnxParser", "profile": "IOptimizationProfile", "runtime": "Runtime", "tensor": "ITensor",
}  # fmt: skip
"""What variables of these names hold, with or without an underscore before them, unless they visibly hold another."""
_LITERALS = (
    ast.Constant, ast.Dict, ast.DictComp, ast.JoinedStr, ast.List, ast.ListComp, ast.Set, ast.SetComp, ast.Tuple,
)  # fmt: skip


def compare(source: str, file: str, surface: Surface) -> Compared:
    """One file with one library; a file that never says `trt` has nothing of it."""
    tree, library = ast.parse(source, file), Library(file, surface)
    if any("trt" in (getattr(node, field, None) for field in ("id", "attr", "arg")) for node in ast.walk(tree)):
        _Reader(library).visit(tree)
    return library.found


class _Reader(ast.NodeVisitor):
    """Each `visit` of an expression gives what it is, or None where that is nothing of TensorRT."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._scopes: list[dict[str, Seen | None]] = [{}]
        """What names hold, the innermost last; attributes of `self` are in the first, as `self.name`."""
        self._unnamed: list[set[str]] = [set()]
        """Of each function around, the parameters of type Any that nothing is known of."""
        self._derived: list[tuple[str, ...]] = [()]
        """Of each class around, the classes of TensorRT that it is derived from."""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if _library_of(node) not in (None, self._library.name):
            return
        bases = [self.visit(base) for base in node.bases]
        self._derived.append(tuple(base.name for base in bases if base and base.kind == "class"))
        self._scopes.append({})
        for child in node.body:
            self.visit(child)
        self._scopes.pop()
        self._derived.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for expression in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(expression)
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        held = {a.arg: _by_name(a.arg) if _is_any(a.annotation) else None for a in parameters}
        unnamed = {a.arg for a in parameters if _is_any(a.annotation) and not held[a.arg]} - {"self", "cls", "trt"}
        if self._derived[-1] and not node.name.startswith("_") and parameters and parameters[0].arg == "self":
            overridden = self._library.overridden(node, self._derived[-1])
            held |= {a.arg: seen for a, seen in zip(parameters, overridden, strict=False) if seen}
            unnamed -= {a.arg for a, _ in zip(parameters, overridden, strict=False)}
        self._scopes.append(held)
        self._unnamed.append(unnamed)
        self._derived.append(self._derived[-1])
        for child in node.body:
            self.visit(child)
        self._derived.pop()
        self._unnamed.pop()
        self._scopes.pop()

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._scopes.append({a.arg: _by_name(a.arg) for a in node.args.args})
        self.visit(node.body)
        self._scopes.pop()

    # what gives names their values

    def visit_Assign(self, node: ast.Assign) -> None:
        seen = self.visit(node.value)
        for target in node.targets:
            self._bind(target, node.value, seen)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        seen = self.visit(node.value) if node.value else None
        if _is_any(node.annotation):
            self._bind(node.target, node.value, seen)
        elif isinstance(node.target, ast.Name):
            self._scopes[-1][node.target.id] = None
        elif isinstance(node.target, ast.Attribute):
            self._scopes[0][f"self.{node.target.attr}"] = None

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        self._bind(node.target, ast.Constant(0), None)

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

    def visit_NamedExpr(self, node: ast.NamedExpr) -> Seen | None:
        self._bind(node.target, node.value, self.visit(node.value))
        return self.visit_Name(node.target)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        self._scopes.append({})
        for generator in node.generators:
            self.visit(generator.iter)
            self._bind(generator.target, None, None)
            for condition in generator.ifs:
                self.visit(condition)
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            self.visit(part)
        self._scopes.pop()

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension

    def _bind(self, target: ast.AST, value: ast.AST | None, seen: Seen | None) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            is_same = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
            for i, item in enumerate(target.elts):
                part = value.elts[i] if is_same and isinstance(value, ast.Tuple) else None
                self._bind(item, part, self.visit(part) if part else None)
        elif isinstance(target, ast.Name):
            self._scopes[-1][target.id] = self._settled(target, target.id, value, seen)
        elif isinstance(target, ast.Attribute) and _is_self(target.value):
            self._bind_own(target, value, seen)
        elif isinstance(target, ast.Attribute):
            owner = self.visit(target.value)
            if target.attr == "__class__" and isinstance(target.value, ast.Name) and seen and seen.kind == "class":
                self._scopes[-1][target.value.id] = Seen("object", seen.name)  # TensorRT's cast to what a layer is
            elif owner and owner.kind == "object":
                self._library.set_to(target, (owner.name,))
        elif isinstance(target, ast.Subscript | ast.Starred):
            self.visit(target.value)

    def _bind_own(self, target: ast.Attribute, value: ast.AST | None, seen: Seen | None) -> None:
        if self._derived[-1] and not target.attr.startswith("_"):
            self._library.set_to(target, self._derived[-1])
        else:
            self._scopes[0][f"self.{target.attr}"] = self._settled(target, target.attr, value, seen)

    def _settled(self, node: ast.AST, name: str, value: ast.AST | None, seen: Seen | None) -> Seen | None:
        expected = _by_name(name)
        if seen is None:
            return None if isinstance(value, _LITERALS) else expected
        if expected and seen.kind == "object" and not self._library.are_kin(seen.name, expected.name):
            self._library.problem(node, f"{name} holds {seen.name}, and its name says {expected.name}")
        return seen

    # expressions

    def visit_Name(self, node: ast.Name) -> Seen | None:
        if node.id == "trt":
            return MODULE
        return next((scope[node.id] for scope in reversed(self._scopes) if node.id in scope), None)

    def visit_Attribute(self, node: ast.Attribute) -> Seen | None:
        if node.attr == "trt":
            return MODULE
        if _is_self(node.value):
            return self._own(node)
        owner = self.visit(node.value)
        if owner is None and isinstance(node.value, ast.Name) and node.value.id in self._unnamed[-1]:
            self._library.problem(node, f"{node.value.id} is Any, and its name is no class of TensorRT: see NAMES")
        return self._library.got(node, owner, node.attr) if owner else None

    def _own(self, node: ast.Attribute) -> Seen | None:
        name = f"self.{node.attr}"
        if name in self._scopes[0]:
            return self._scopes[0][name]
        if owner := self._library.owner(self._derived[-1], node.attr):
            return self._library.got(node, Seen("object", owner), node.attr)
        return _by_name(node.attr)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Members of enums are compared with words, too: `severity.name in ("ERROR", "WARNING")`."""
        self.generic_visit(node)
        if isinstance(node.left, ast.Attribute) and node.left.attr == "name":
            seen = self.visit(node.left.value)
            for word in [part for other in node.comparators for part in ast.walk(other)] if seen else []:
                if seen and self._library.is_enum(seen.name) and isinstance(word, ast.Constant):
                    self._library.got(word, Seen("class", seen.name), str(word.value))

    def visit_Call(self, node: ast.Call) -> Seen | None:
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) > 1:
            return self._got_by_word(node)
        called = self.visit(node.func)
        given: dict[int | str, Seen | None] = {i: self.visit(argument) for i, argument in enumerate(node.args)}
        given |= {keyword.arg or "**": self.visit(keyword.value) for keyword in node.keywords}
        if called is None or called.kind not in ("call", "class"):
            return None
        if any(isinstance(argument, ast.Starred) for argument in node.args) or "**" in given:
            self._library.problem(node, f"{called.name} is given arguments that are not written here")
            return None
        return self._library.called(node, called, given)

    def _got_by_word(self, node: ast.Call) -> Seen | None:
        """`getattr` with a word is an attribute; of an enum, any other gives one of its members."""
        owner, word = self.visit(node.args[0]), node.args[1]
        self.visit(word)
        if owner is None:
            return None
        if isinstance(word, ast.Constant):
            return self._library.got(node, owner, str(word.value))
        if owner.kind == "class" and self._library.is_enum(owner.name):
            return Seen("object", owner.name)
        self._library.problem(node, "getattr with a name that is not written here")
        return None


def _library_of(node: ast.ClassDef) -> str | None:
    """The one library that a class is for: it states it as its `name`."""
    for statement in node.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Constant):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if any(isinstance(target, ast.Name) and target.id == "name" for target in targets):
                return statement.value.value if statement.value.value in LIBRARIES else None
    return None


def _by_name(name: str) -> Seen | None:
    held = NAMES.get(name.lstrip("_"))
    return Seen("object", held) if held else None


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _is_any(annotation: ast.AST | None) -> bool:
    if isinstance(annotation, ast.BinOp):
        return _is_any(annotation.left) or _is_any(annotation.right)
    return annotation is None or (isinstance(annotation, ast.Name) and annotation.id == "Any")
