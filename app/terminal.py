"""What the commands share: errors of one line, settings from flags, tables, and questions to a server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import typer

from app.settings import Settings
from app.words import printable

__all__ = ["ask", "fail", "print_table", "read_settings", "words_of"]


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 1."""
    typer.echo(f"bitserve: {' '.join(printable(message).split())}", err=True)
    raise typer.Exit(1)


def read_settings(**flags: Any) -> Settings:
    """The settings of flags and environment; ends the command where one is wrong."""
    from pydantic import ValidationError

    try:
        return Settings(**flags)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, what = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        # a check of several settings has no name, and its input is all of them, the token too
        fail(f"setting {name} (--{name.replace('_', '-')}): {what}, got {first['input']!r}" if name else what)


def ask(method: str, url: str, **keys: Any) -> Any:
    """One request; the JSON answer. Ends the command with the server's own words, or why there was no answer."""
    import httpx

    try:
        answer = httpx.request(method, url, timeout=60, **keys)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"no answer from {url}: {error}; is the server running? start it with: bitserve serve")
    return words_of(answer, url)


def words_of(answer: Any, url: str) -> Any:
    """The JSON of an answer; ends the command with the server's own words where it is an error."""
    try:
        document = answer.json()
    except ValueError:
        fail(f"{url} answered {answer.status_code} with no JSON; is it a bitserve server?")
    if not answer.is_success:
        said = document.get("error") if isinstance(document, dict) else None
        fail(f"{url} answered {answer.status_code}" if said in (None, "Not Found") else str(said))
    return document


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """As plain text: a server's words may hold brackets, which are no markup. Nothing is cut off."""
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(*(Column(header, overflow="fold") for header in headers))
    for row in rows:
        table.add_row(*(printable(str(cell)) for cell in row))
    Console(markup=False, emoji=False, highlight=False).print(table)
