"""Status numbers stand in app/http/errors.py alone; everything else names them, or asks for an error's."""

from __future__ import annotations

import ast
from http import HTTPStatus
from pathlib import Path

import pytest

from app.http.errors import (
    INTERNAL,
    BodyTooLarge,
    HttpError,
    NotAuthorized,
    TooManyConnections,
    headers_of,
    message_of,
    status_of,
)
from app.serving.errors import DeadlineExceeded, InferenceFailed, ModelNotReady, QueueFull, ServingError, Stopping

APP = Path(__file__).parent.parent.parent / "app"
ELSEWHERE = {APP / "http" / "errors.py", APP / "http" / "tensors.py"}  # their place; limits of tensors, 100 and 200
FILES = sorted({*APP.glob("http/*.py"), APP / "main.py"} - ELSEWHERE)
NUMBERS = {int(status) for status in HTTPStatus}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_status_number_stands_here(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    lengths = {id(part) for node in nodes if isinstance(node, ast.Slice) for part in ast.walk(node)}
    found: list[tuple[int, object]] = [
        (node.lineno, node.value)
        for node in nodes
        if isinstance(node, ast.Constant) and _is_status(node.value) and id(node) not in lengths
    ]
    found += [(node.lineno, node.id) for node in nodes if isinstance(node, ast.Name) and node.id == "HTTPStatus"]
    assert found == []


def _is_status(value: object) -> bool:
    if isinstance(value, bytes):
        return b"HTTP/1.1 " in value
    return value in NUMBERS or value in {str(number) for number in NUMBERS}


@pytest.mark.parametrize("error", [QueueFull("x"), Stopping("x"), ModelNotReady("x"), DeadlineExceeded("x")])
def test_what_may_succeed_later_says_when(error: ServingError) -> None:
    assert (status_of(error), headers_of(error)) == (503, {"retry-after": "1"})


def test_when_is_the_errors_own_affair() -> None:
    error = QueueFull("x")
    error.retry_after_s = 7
    assert headers_of(error) == {"retry-after": "7"}
    assert headers_of(TooManyConnections("x")) == {"retry-after": "1"}


def test_how_to_be_let_in() -> None:
    assert headers_of(NotAuthorized("x")) == {"www-authenticate": "Bearer"}


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (HttpError("x"), INTERNAL, "x"),
        (InferenceFailed("x"), INTERNAL, "x"),
        (BodyTooLarge("x"), 413, "x"),
        (RuntimeError("secret"), INTERNAL, "internal error; see the server's log"),
    ],
)
def test_what_nobody_expected_tells_nothing(error: Exception, status: int, message: str) -> None:
    assert (status_of(error), message_of(error), status_of(type(error))) == (status, message, status)
