"""The admin token: what changes the server needs it, what tells of the server never does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.auth import check_admin
from app.http.errors import Forbidden, NotAuthorized
from app.settings import Settings
from tests.support import onnx_models
from tests.support.servers import Server, running

TOKEN = "s3cret-tökén"
GUARDED = ("/v2/repository/models/linear/load", "/v2/repository/models/linear/unload", "/v2/logging")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    onnx_models.place(repository, "linear", onnx_models.linear())
    plans = str(tmp_path_factory.getbasetemp() / "plans")
    with running(repository, "--cache", plans, env={"BITSERVE_ADMIN_TOKEN": TOKEN}) as server:
        server.wait_ready()
        yield server


def _post(server: Server, path: str, header: str | None, body: str = "") -> httpx.Response:
    headers = {} if header is None else {"Authorization": header.encode()}
    return httpx.post(server.url + path, headers=headers, content=body, timeout=30)


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic czNjcmV0", TOKEN, f"Token {TOKEN}"])
def test_without_a_token_401(server: Server, path: str, header: str | None) -> None:
    answer = _post(server, path, header)
    assert answer.status_code == 401
    assert answer.json() == {"error": "this needs the header 'Authorization: Bearer <admin token>'"}


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("token", ["wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é" * 5000])
def test_with_a_wrong_token_403(server: Server, path: str, token: str) -> None:
    answer = _post(server, path, f"Bearer {token}")
    assert answer.status_code == 403
    assert answer.json() == {"error": "the admin token is wrong"}
    assert server.state("linear") == "READY"


def test_the_token_is_asked_for_before_the_body_is_read(server: Server) -> None:
    assert _post(server, GUARDED[0], None, "{").status_code == 401
    assert _post(server, GUARDED[0], f"Bearer {TOKEN}", "{").status_code == 400


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_with_the_token_200(server: Server, scheme: str) -> None:
    for action in ("unload", "load"):
        assert _post(server, f"/v2/repository/models/linear/{action}", f"{scheme}  {TOKEN}").status_code == 200
    assert _post(server, "/v2/logging", f"{scheme} {TOKEN}", '{"log_verbose_level": 0}').status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/linear", "/v2/models/linear/ready",
        "/v2/models/linear/config", "/v2/models/linear/stats", "/v2/models/stats", "/v2/logging", "/metrics",
        "/docs", "/openapi.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("header", [None, "Bearer wrong"])
def test_telling_needs_no_token(server: Server, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    assert httpx.get(server.url + path, headers=headers).status_code == 200


def test_index_and_inference_need_no_token(server: Server) -> None:
    assert _post(server, "/v2/repository/index", None).status_code == 200
    assert server.infer("linear", {"x": ("FP32", [[1.0] * 16])}).status_code == 200


def test_the_token_is_in_no_log_and_no_page(server: Server) -> None:
    for path in ("/openapi.json", "/metrics", "/v2/logging"):
        assert TOKEN not in httpx.get(server.url + path).text
    assert TOKEN not in "\n".join(server.log)


def test_without_a_token_one_is_made_and_told_once(tmp_path: Path) -> None:
    """And no page or line of the log has it after that."""
    unset = {"BITSERVE_ADMIN_TOKEN": None}
    with running(tmp_path, "--access-log", "--log-level", "info", env=unset) as server:
        told = [line for line in server.log if "admin token of this run" in line]
        token = re.search(r"this run: (\S{32,})", told[0])
        assert token
        for header, status in ((None, 401), ("Bearer x", 403), (f"Bearer {token[1]}", 404)):
            assert _post(server, "/v2/repository/models/linear/unload", header).status_code == status
        for path in ("/openapi.json", "/metrics", "/docs", "/v2"):
            assert token[1] not in httpx.get(server.url + path).text
        assert sum(token[1] in line for line in server.log) == len(told) == 1


def test_an_empty_token_is_refused() -> None:
    for token in ("", "  "):
        with pytest.raises(ValueError, match="lock everyone out"):
            Settings(admin_token=token)


def test_tokens_are_bytes_whatever_their_letters() -> None:
    settings = Settings(admin_token="ключ")
    check_admin(settings, "Bearer ключ".encode().decode("latin-1"))
    with pytest.raises(Forbidden):
        check_admin(settings, "Bearer ÿ")
    with pytest.raises(NotAuthorized):
        check_admin(settings, "Bearer ")
