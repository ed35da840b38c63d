"""The control plane over HTTP, as a client sees it: paths, versions, errors, the repository, logging."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.servers import ADMIN, Server, running, until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    onnx_models.place(repository, "linear", onnx_models.linear())
    onnx_models.place(repository, "both", onnx_models.linear(scale=1.0), 1, config='versions = "all"\n')
    onnx_models.place(repository, "both", onnx_models.linear(scale=2.0), 2)
    onnx_models.place(repository, "broken", b"not an ONNX model")
    (repository / "a stray file").write_text("")
    with running(repository, "--cache", str(tmp_path_factory.getbasetemp() / "plans")) as server:
        server.wait_ready("linear", "both")
        until(lambda: server.state("broken") == "UNAVAILABLE", "broken is known to be")
        yield server


def ask(server: Server, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """The status and the JSON body; the path goes out byte for byte, which no HTTP library with manners would do."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    try:
        connection.request(method, path, data, ADMIN)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            assert answer.headers["content-type"] == "application/json"
        return answer.status, json.loads(content) if content else None
    finally:
        connection.close()


def refusal(server: Server, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """The status and the text of an error: its body holds `error` and nothing else."""
    status, document = ask(server, method, path, body)
    assert list(document) == ["error"], document
    return status, document["error"]


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/v2", {"name", "version", "extensions"}),
        ("/v2/health/live", {"live"}),
        ("/v2/health/ready", {"ready"}),
        ("/v2/models/linear", {"name", "versions", "platform", "inputs", "outputs"}),
        ("/v2/models/linear/versions/1", {"name", "versions", "platform", "inputs", "outputs"}),
        ("/v2/models/linear/ready", {"name", "ready"}),
        ("/v2/models/linear/versions/1/ready", {"name", "ready"}),
        ("/v2/models/linear/stats", {"model_stats"}),
        ("/v2/models/linear/versions/1/stats", {"model_stats"}),
        ("/v2/models/stats", {"model_stats"}),
        ("/v2/logging", {"log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"}),
    ],
)
def test_every_path_answers(server: Server, path: str, keys: set[str]) -> None:
    status, document = ask(server, "GET", path)
    assert status == 200
    assert set(document) == keys
    assert refusal(server, "DELETE", path) == (405, "Method Not Allowed")


def test_server_metadata_lists_what_works(server: Server) -> None:
    _, document = ask(server, "GET", "/v2")
    assert document["name"] == "bitserve"
    assert "statistics" in document["extensions"]
    assert not {"trace", "system_shared_memory", "cuda_shared_memory", "sequence"} & set(document["extensions"])


def test_model_metadata_has_the_batch_dimension_and_the_config_has_not(server: Server) -> None:
    _, metadata = ask(server, "GET", "/v2/models/linear")
    assert metadata == {
        "name": "linear", "versions": ["1"], "platform": "onnx_onnxv1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }  # fmt: skip
    for path in ("/v2/models/linear/config", "/v2/models/linear/versions/1/config"):
        _, config = ask(server, "GET", path)
        assert config["max_batch_size"] == 32
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [16]}]
        assert config["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}]
        assert {"version_policy", "instance_group", "platform", "backend", "default_model_filename"} <= set(config)


def test_versions_are_told_apart(server: Server) -> None:
    _, metadata = ask(server, "GET", "/v2/models/both")
    assert metadata["versions"] == ["1", "2"]
    for version in ("1", "2"):
        _, stats = ask(server, "GET", f"/v2/models/both/versions/{version}/stats")
        assert [entry["version"] for entry in stats["model_stats"]] == [version]
    _, stats = ask(server, "GET", "/v2/models/both/stats")
    assert [entry["version"] for entry in stats["model_stats"]] == ["1", "2"]
    _, everything = ask(server, "GET", "/v2/models/stats")
    assert [entry["name"] for entry in everything["model_stats"]] == ["both", "both", "linear"]


@pytest.mark.parametrize("end", ["", "/config", "/stats"])
def test_unknown_models_and_versions(server: Server, end: str) -> None:
    nope, seven = "Request for unknown model: 'nope' is not found", "unknown model: 'linear' version 7 is not found"
    assert refusal(server, "GET", f"/v2/models/nope{end}") == (404, nope)
    status, text = refusal(server, "GET", f"/v2/models/linear/versions/7{end}")
    assert (status, seven in text) == (404, True)
    status, text = refusal(server, "GET", f"/v2/models/broken{end}")
    assert status == 404
    assert text.startswith("Request for unknown model: 'broken' has no available versions (version 1: model.onnx is")
    for version in ("x", "-1", "1.0", "1x", "%31x", "9" * 19, "%C2%B2"):
        assert refusal(server, "GET", f"/v2/models/linear/versions/{version}{end}") == (404, "Not Found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("GET", "/v3"), ("GET", "/v2/"), ("GET", "/v2/health/live/"), ("GET", "/v2/health"),
        ("GET", "/v2/models"), ("GET", "/v2/models/linear/nope"),
        ("GET", "/v2/systemsharedmemory/status"), ("GET", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/systemsharedmemory/region/a/status"), ("POST", "/v2/systemsharedmemory/region/a/register"),
        ("POST", "/v2/systemsharedmemory/unregister"), ("POST", "/v2/cudasharedmemory/unregister"),
        ("GET", "/v2/trace/setting"), ("POST", "/v2/trace/setting"), ("GET", "/v2/models/linear/trace/setting"),
        ("GET", "/v2/models/linear/versions/1/trace/setting"), ("POST", "/v2/models/linear/generate"),
        ("POST", "/v2/models/linear/versions/1/generate_stream"), ("POST", "/v2/models/linear/load"),
        ("POST", "/v2/repository/foo/bar"), ("GET", "/v2/repository"), ("POST", "/v2/repository/models/linear"),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_not_found(server: Server, method: str, path: str) -> None:
    assert refusal(server, method, path, {} if method == "POST" else None) == (404, "Not Found")


def test_wrong_methods(server: Server) -> None:
    for method, path in (("GET", "/v2/models/linear/infer"), ("GET", "/v2/repository/index"), ("PUT", "/v2")):
        assert refusal(server, method, path) == (405, "Method Not Allowed")


def test_a_wrong_method_is_told_the_right_ones_once(server: Server) -> None:
    for method, path in (("GET", "/v2/repository/index"), ("PUT", "/v2"), ("DELETE", "/v2/models/linear")):
        allowed = httpx.request(method, f"{server.url}{path}").headers.get_list("allow")
        assert len(allowed) == 1, (method, path, allowed)


def test_a_timeout_has_all_64_bits(server: Server) -> None:
    parameters = {"timeout": 2**64 - 1, "priority": 2**64 - 1}
    assert server.infer("linear", {"x": ("FP32", np.zeros((1, 16)))}, parameters=parameters).status_code == 200


# -- health ----------------------------------------------------------------------------------------------------------


def test_a_failing_model_touches_neither_liveness_nor_readiness(server: Server) -> None:
    assert ask(server, "GET", "/v2/health/live") == (200, {"live": True})
    assert ask(server, "GET", "/v2/health/ready") == (200, {"ready": True})


def test_it_has_started_once_every_model_has_been_tried(tmp_path: Any) -> None:
    """Also where one fails; and a model that comes later changes nothing of it."""
    onnx_models.place(tmp_path, "broken", b"no model")
    onnx_models.place(tmp_path, "linear", onnx_models.linear())
    with running(tmp_path) as server:
        seen = []
        until(lambda: seen.append(ask(server, "GET", "/v2/health/started")) or seen[-1][0] == 200, "it has started")
        assert seen[-1] == (200, {"started": True})
        assert seen[0][0] == 503
        assert "the server is starting: loading broken/1, linear/1" in seen[0][1]["error"]
        assert {entry["state"] for entry in server.index().values()} == {"READY", "UNAVAILABLE"}
        onnx_models.place(tmp_path, "later", onnx_models.slow())
        until(lambda: server.state("later") == "LOADING", "it loads", every_s=0.005)
        assert ask(server, "GET", "/v2/health/started")[0] == 200


def test_model_ready_is_of_that_model(server: Server) -> None:
    assert ask(server, "GET", "/v2/models/linear/ready") == (200, {"name": "linear", "ready": True})
    assert ask(server, "GET", "/v2/models/both/versions/2/ready")[0] == 200
    for model in ("broken", "nope", "linear/versions/7", "broken/versions/1"):
        status, text = refusal(server, "GET", f"/v2/models/{model}/ready")
        assert (status, text.startswith("Request for unknown model")) == (400, True)


def test_an_empty_repository_is_ready_and_a_stopping_server_is_not(tmp_path: Any) -> None:
    with running(tmp_path) as server:
        assert ask(server, "GET", "/v2/health/live")[0] == ask(server, "GET", "/v2/health/ready")[0] == 200
        assert ask(server, "POST", "/v2/repository/index") == (200, [])
        assert ask(server, "GET", "/v2/models/stats") == (200, {"model_stats": []})
        assert server.stop() == 0


def test_a_stopping_server_is_live_and_not_ready(tmp_path: Any) -> None:
    onnx_models.place(tmp_path, "linear", onnx_models.linear())
    with running(tmp_path, "--delay-scheduler", "2", "--drain-s", "60") as server:
        server.wait_ready()
        waiting = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)  # its request holds up the exit
        waiting.request("POST", "/v2/models/linear/infer", json.dumps(_call(1)))
        until(lambda: _pending(server) == 1, "the request waits")
        with httpx.Client(base_url=server.url) as known:  # connected before, as a load balancer is
            assert known.get("/v2/health/ready").status_code == 200
            server.process.terminate()
            until(lambda: known.get("/v2/health/ready").status_code == 400, "not ready", every_s=0.001)
        assert refusal(server, "GET", "/v2/health/ready") == (
            400,
            "the server is stopping; it accepts no more requests",
        )
        assert refusal(server, "GET", "/v2/models/linear/ready")[0] == 400
        assert ask(server, "GET", "/v2/health/live")[0] == 200
        waiting.close()  # nothing is left to wait for
        assert server.process.wait(30) == 0


def _pending(server: Server) -> int:
    found = [line for line in httpx.get(f"{server.url}/metrics").text.splitlines() if "pending_request_count{" in line]
    return int(float(found[0].split()[-1])) if found else 0


# -- the repository --------------------------------------------------------------------------------------------------


def test_index(server: Server) -> None:
    status, entries = ask(server, "POST", "/v2/repository/index")
    assert status == 200
    states = {(entry["name"], entry["version"]): entry["state"] for entry in entries}
    assert states == {
        ("both", "1"): "READY", ("both", "2"): "READY", ("broken", "1"): "UNAVAILABLE", ("linear", "1"): "READY",
    }  # fmt: skip
    assert all(set(entry) == {"name", "version", "state", "reason"} for entry in entries)
    assert next(entry for entry in entries if entry["name"] == "broken")["reason"].startswith(
        "model.onnx is not an ONNX"
    )
    for body in (b"", b"  ", {}, {"ready": False}, {"other": 1}):
        assert ask(server, "POST", "/v2/repository/index", body) == (200, entries)
    _, ready = ask(server, "POST", "/v2/repository/index", {"ready": True})
    assert {entry["name"] for entry in ready} == {"both", "linear"}


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b"null", b'"text"', b"{}{}", b"\xff\xfe", b'{"ready": [1]}', b'{"ready": "perhaps"}',
        b'{"ready": ' + b"[" * 250_000, b'{"ready": ' + b'{"a":' * 150_000, b"[" * 101 + b"]" * 101,
    ],
    ids=range(11),
)  # fmt: skip
@pytest.mark.parametrize("path", ["index", "models/linear/load", "models/linear/unload"])
def test_a_bad_body_is_refused_and_changes_nothing(server: Server, path: str, body: bytes) -> None:
    if path != "index" and b"ready" in body and body.endswith(b"}"):
        body = body.replace(b"ready", b"parameters")
    status, text = refusal(server, "POST", f"/v2/repository/{path}", body)
    assert status == 400
    assert text.startswith("the body does not fit")
    assert ask(server, "GET", "/v2/models/linear/ready")[0] == 200


TRAVERSAL = "model name must not contain path traversal characters"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("..", TRAVERSAL), ("%2e%2e", TRAVERSAL), ("../x", TRAVERSAL), ("..%2Fx", TRAVERSAL), ("..%5Cx", TRAVERSAL),
        ("model/subdir", TRAVERSAL), ("model%2Fsubdir", TRAVERSAL), ("model/", TRAVERSAL), ("%20..", TRAVERSAL),
        ("%2Fetc", TRAVERSAL), (".", TRAVERSAL), ("linear/../linear", TRAVERSAL),
        ("", "Model name cannot be empty or whitespace"), ("%20%20", "Model name cannot be empty or whitespace"),
        ("model..1", "model name 'model..1' is not allowed"), ("%00", "model name '\\x00' is not allowed"),
        (".hidden", "model name '.hidden' is not allowed"), ("caf%C3%A9", "model name 'café' is not allowed"),
        ("a" * 129, f"model name '{'a' * 129}' is not allowed"), ("stats", "model name 'stats' is not allowed"),
        ("...", TRAVERSAL), ("nope", "failed to load 'nope', failed to poll from model repository: no such model"),
        ("broken", "failed to load 'broken', version 1: model.onnx is not an ONNX model"),
    ],
)  # fmt: skip
def test_load_refuses(server: Server, name: str, message: str) -> None:
    status, text = refusal(server, "POST", f"/v2/repository/models/{name}/load", {})
    assert (status, text.startswith(message)) == (400, True), text


@pytest.mark.parametrize("name", ["nope", "..", "../x", "model%2Fsubdir", "model..1", "", "%00"])
def test_unload_of_what_is_not_there_is_not_found(server: Server, name: str) -> None:
    status, text = refusal(server, "POST", f"/v2/repository/models/{name}/unload")
    assert (status, text.startswith("failed to unload '"), text.endswith("is not found")) == (404, True, True)


@pytest.mark.parametrize("path", ["index", "models/linear/load", "models/linear/unload"])
def test_a_named_repository_is_not_implemented(server: Server, path: str) -> None:
    status, text = refusal(server, "POST", f"/v2/repository/other/{path}")
    assert (status, text) == (501, "repository 'other': this server has one repository, without a name")
    assert ask(server, "GET", "/v2/models/linear/ready")[0] == 200


def test_unload_and_load(server: Server) -> None:
    assert ask(server, "POST", "/v2/repository/models/both/unload", {"parameters": {"unload_dependents": True}}) == (
        200, None,
    )  # fmt: skip
    until(lambda: server.state("both", 1) == server.state("both", 2) == "UNAVAILABLE", "both are unloaded")
    assert server.index()["both", "2"]["reason"] == "unloaded"
    status, text = refusal(server, "POST", "/v2/models/both/infer", _call(1))
    assert (status, "has no available versions" in text) == (404, True)
    assert ask(server, "POST", "/v2/repository/models/both/load") == (200, None)
    assert server.state("both", 1) == server.state("both", 2) == "READY"
    assert ask(server, "POST", "/v2/models/both/infer", _call(1))[0] == 200


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"config": 5}, "parameter 'config' must be a string of JSON"),
        ({"config": "{"}, "parameter 'config' is not JSON: "),
        ({"config": "[" * 100_000}, "parameter 'config' is not JSON: "),
        ({"config": '{"sequence_batching": ' + '{"a": ' * 900 + "1" + "}" * 901}, ""),
        ({"config": "[1]"}, "config: the file = [1] is not allowed"),
        (
            {"config": '{"batchng": 1}'},
            "config: batchng = 1: unknown key; allowed here: instances, streams, gpus, versions",
        ),
        ({"config": '{"max_batch_size": -1}'}, "config: batching.max_batch_size = -1 is not allowed; expected"),
        ({"config": '{"max_batch_size": 8, "nope": 1}'}, "config: nope: unknown key; allowed here: name, "),
        ({"config": '{"name": "other"}'}, "config: name = 'other' is not allowed; expected 'linear'"),
        ({"config": '{"output": [{"name": "z"}]}'}, "config: output.0.name = 'z' is not allowed; expected one of y"),
        (
            {"config": '{"output": [{"name": "y", "label_filename": "../l"}]}'},
            "failed to load 'linear', version 1: config.toml: labels file '../l' lies outside the model's folder",
        ),
        ({"file:1/model.onnx": "AAAA"}, "parameter 'file:1/model.onnx' needs the parameter 'config' beside it"),
        (
            {"file:../../evil": "AAAA", "config": "{}"},
            "parameter 'file:../../evil' is not allowed; expected file:<version>/model.onnx",
        ),
    ],
    ids=range(13),
)
def test_a_bad_override_is_refused_and_changes_nothing(
    server: Server, parameters: dict[str, Any], message: str
) -> None:
    before = ask(server, "GET", "/v2/models/linear/config")
    status, text = refusal(server, "POST", "/v2/repository/models/linear/load", {"parameters": parameters})
    assert (status, text.startswith(message)) == (400, True), text
    assert ask(server, "GET", "/v2/models/linear/config") == before
    assert ask(server, "POST", "/v2/models/linear/infer", _call(1))[0] == 200


@pytest.mark.parametrize(
    "config",
    [{"max_batch_size": 4, "dynamic_batching": {}}, {"batching": {"max_batch_size": 4}}],
    ids=["Triton's terms", "config.toml's terms"],
)
def test_an_override_holds_until_the_next_load(server: Server, config: dict[str, Any]) -> None:
    load = "/v2/repository/models/linear/load"
    assert ask(server, "POST", load, {"parameters": {"config": json.dumps(config)}}) == (200, None)
    assert ask(server, "GET", "/v2/models/linear/config")[1]["max_batch_size"] == 4
    status, text = refusal(server, "POST", "/v2/models/linear/infer", _call(5))
    assert (status, "batch-size must be <= 4" in text) == (400, True)
    assert ask(server, "POST", load) == (200, None)
    assert ask(server, "GET", "/v2/models/linear/config")[1]["max_batch_size"] == 32


# -- logging ---------------------------------------------------------------------------------------------------------


def test_logging_takes_parts(server: Server) -> None:
    _, before = ask(server, "GET", "/v2/logging")
    assert before == {
        "log_file": "", "log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0,
        "log_format": "default",
    }  # fmt: skip
    for part in ({"log_verbose_level": 1}, {"log_verbose_level": 0}, {"log_info": False}, {"log_info": True}, {}):
        assert ask(server, "POST", "/v2/logging", part) == (200, {**before, **part})
        assert ask(server, "GET", "/v2/logging") == (200, {**before, **part})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"log_file": "elsewhere.log"}, "log_file cannot be changed over the network"),
        ({"log_format": "ISO8601"}, "log_format 'ISO8601' is not known"),
        ({"log_verbos": 1}, "the body does not fit: log_verbos: "),
        ({"log_info": "perhaps"}, "the body does not fit: log_info: "),
        (b"{", "the body does not fit: Invalid JSON"),
    ],
)  # fmt: skip
def test_logging_refuses(server: Server, body: Any, message: str) -> None:
    status, text = refusal(server, "POST", "/v2/logging", body)
    assert (status, text.startswith(message)) == (400, True), text


def _call(rows: int) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 16], "data": np.ones(rows * 16).tolist()}]}
