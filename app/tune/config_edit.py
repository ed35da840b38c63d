"""Change values in the text of a config.toml and leave everything else as it is: other keys, comments, line ends.

The text is edited by lines, and then read again: unless it says exactly what was meant, nothing is changed.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from app.tune.errors import TuneFailed

__all__ = ["lines_of", "with_values", "write_config"]

Values = Mapping[tuple[str, ...], int]
"""By path: (key,) at the top level, or (section, key)."""
_HEADER = re.compile(r"\s*\[\[?\s*([^\]]*?)\s*\]\]?\s*(#.*)?$")


def with_values(text: str, values: Values) -> str:
    """The text with these values. Raises TuneFailed that says which lines to change where it cannot be done safely."""
    wanted = _set(tomllib.loads(text), values)
    lines = text.splitlines(keepends=True)
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += end
    for path, value in values.items():
        _put(lines, path[0] if len(path) > 1 else "", path[-1], value, end)
    made = "".join(lines)
    with contextlib.suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(made) == wanted:
            return made
    raise TuneFailed(f"config.toml is written in a way that cannot be changed safely; set in it: {lines_of(values)}")


def lines_of(values: Values) -> str:
    """The values as one writes them, in one line."""
    return "; ".join((f"[{path[0]}] " if len(path) > 1 else "") + f"{path[-1]} = {n}" for path, n in values.items())


def _set(document: dict[str, Any], values: Values) -> dict[str, Any]:
    changed = deepcopy(document)
    for path, value in values.items():
        section = changed
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = value
    return changed


def _put(lines: list[str], section: str, key: str, value: int, end: str) -> None:
    """Replace the value of a key, or add the key as the last of its section; the section, too, where there is none."""
    bounds = _bounds(lines, section)
    if bounds is None:
        lines += [*([end] if lines and lines[-1].strip() else []), f"[{section}]{end}", f"{key} = {value}{end}"]
        return
    known = re.compile(rf"(\s*{re.escape(key)}\s*=\s*)([0-9_]+)(\s*(?:#.*)?)$")
    for index in range(*bounds):
        found = known.match(lines[index].rstrip("\r\n"))
        if found is not None:
            lines[index] = f"{found[1]}{value}{found[3]}{end}"
            return
    at = max((i + 1 for i in range(*bounds) if _is_entry(lines[i])), default=bounds[0])
    lines.insert(at, f"{key} = {value}{end}")
    if not section and at == 0 and len(lines) > 1 and lines[1].strip():  # a comment there is of what comes after it
        lines.insert(1, end)


def _is_entry(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _bounds(lines: list[str], section: str) -> tuple[int, int] | None:
    """The lines of a section, its header not among them; those before the first header where it is ''."""
    headers = [(index, found[1]) for index, line in enumerate(lines) if (found := _HEADER.match(line.rstrip("\r\n")))]
    starts = [(-1, ""), *headers]
    for (index, name), following in zip(starts, [*(at for at, _ in headers), len(lines)], strict=True):
        if name == section:
            return index + 1, following
    return None


def write_config(file: Path, before: str, values: Values) -> None:
    """Put the values into a model's config.toml, in one rename. Raises TuneFailed, and then the file is as it was.

    `before` is the text that was read (empty: there was no file): another's edit meanwhile is not written over.
    """
    made = with_values(before, values)
    target = file.resolve()
    try:
        now = target.read_bytes().decode("utf-8", "replace") if target.exists() else ""
        if now != before:
            raise TuneFailed(f"{file.name} was changed meanwhile; set in it: {lines_of(values)}")
        _replace(target, made.encode())
    except OSError as error:
        raise TuneFailed(f"{file.name} cannot be written: {error.strerror}; set in it: {lines_of(values)}") from error


def _replace(target: Path, data: bytes) -> None:
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
    descriptor, name = tempfile.mkstemp(prefix=".config.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
