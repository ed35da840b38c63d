"""Health, metadata, configuration, statistics, repository and logging, asked by unmodified tritonclient."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tritonclient import http
from tritonclient.utils import InferenceServerException

from tests.conformance.conftest import Target
from tests.conformance.tensors import example, pair
from tests.support import onnx_models
from tests.support.servers import ADMIN

DURATIONS = (
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
)  # fmt: skip
DATATYPES = {
    "BOOL",
    "BYTES",
    "BF16",
    *(f"{s}INT{b}" for s in ("", "U") for b in (8, 16, 32, 64)),
    "FP16",
    "FP32",
    "FP64",
}
Client = http.InferenceServerClient


def test_server_is_live_and_ready(client: Client) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True


def test_model_is_ready_with_and_without_its_version(client: Client, model: str) -> None:
    assert client.is_model_ready(model)
    version = client.get_model_metadata(model)["versions"][-1]
    assert client.is_model_ready(model, version)
    assert not client.is_model_ready(model, "987654")
    assert not client.is_model_ready("no_such_model")


def test_server_metadata(client: Client) -> None:
    metadata = client.get_server_metadata()
    assert isinstance(metadata["name"], str)
    assert isinstance(metadata["version"], str)
    assert {"binary_tensor_data", "model_configuration", "statistics"} <= set(metadata["extensions"])


def test_server_lists_no_extension_that_it_lacks(client: Client, target: Target) -> None:
    listed = client.get_server_metadata()["extensions"]
    for extension, ask in (
        ("logging", client.get_log_settings),
        ("trace", client.get_trace_settings),
        ("system_shared_memory", client.get_system_shared_memory_status),
        ("cuda_shared_memory", client.get_cuda_shared_memory_status),
    ):
        if extension in listed:
            ask()
        elif target.ours:
            with pytest.raises(InferenceServerException, match="Not Found"):
                ask()


def test_model_metadata(client: Client, model: str) -> None:
    metadata = client.get_model_metadata(model)
    assert metadata["name"] == model
    assert metadata["platform"]
    assert metadata["versions"]
    assert all(version.isdigit() for version in metadata["versions"])
    for tensor in metadata["inputs"] + metadata["outputs"]:
        assert tensor["datatype"] in DATATYPES
        assert all(isinstance(size, int) and size >= -1 for size in tensor["shape"])
    assert client.get_model_metadata(model, metadata["versions"][-1])["inputs"] == metadata["inputs"]


def test_model_config_agrees_with_metadata(client: Client, model: str) -> None:
    config, metadata = client.get_model_config(model), client.get_model_metadata(model)
    assert config["name"] == model
    assert isinstance(config["max_batch_size"], int)
    batch = [-1] if config["max_batch_size"] else []
    for kind in ("input", "output"):
        for described, told in zip(config[kind], metadata[f"{kind}s"], strict=True):
            assert described["name"] == told["name"]
            assert described["data_type"] == {"BYTES": "TYPE_STRING"}.get(told["datatype"], f"TYPE_{told['datatype']}")
            assert batch + described["dims"] == told["shape"]
    assert client.get_model_config(model, metadata["versions"][-1])["input"] == config["input"]


def _entry(client: Client, model: str, version: str = "") -> dict[str, Any]:
    found = client.get_inference_statistics(model, version)["model_stats"]
    return next(entry for entry in found if entry["name"] == model)


def test_statistics_are_whole_integers_and_add_up(client: Client, model: str) -> None:
    before = _entry(client, model)
    for seed in range(3):
        client.infer(model, example(client.get_model_metadata(model), seed=seed))
    entry = _entry(client, model)
    assert isinstance(entry["version"], str)
    for key in ("last_inference", "inference_count", "execution_count"):
        assert type(entry[key]) is int
    stats = entry["inference_stats"]
    assert set(stats) >= set(DURATIONS)
    for name in DURATIONS:
        assert type(stats[name]["count"]) is type(stats[name]["ns"]) is int
    assert stats["success"]["count"] - before["inference_stats"]["success"]["count"] == 3
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert stats["success"]["ns"] >= sum(stats[name]["ns"] for name in parts) > 0
    assert entry["last_inference"] >= before["last_inference"]
    batches = entry["batch_stats"]
    assert sum(batch["compute_infer"]["count"] for batch in batches) == entry["execution_count"]
    rows = sum(max(1, batch["batch_size"]) * batch["compute_infer"]["count"] for batch in batches)
    assert rows == entry["inference_count"]
    for batch in batches:
        for name in ("compute_input", "compute_infer", "compute_output"):
            assert type(batch[name]["count"]) is type(batch[name]["ns"]) is int


def test_statistics_of_a_version_and_of_all_models(client: Client, model: str) -> None:
    version = client.get_model_metadata(model)["versions"][-1]
    assert _entry(client, model, version)["version"] == version
    everything = client.get_inference_statistics()["model_stats"]
    assert model in {entry["name"] for entry in everything}
    with pytest.raises(InferenceServerException, match=r"no_such_model"):
        client.get_inference_statistics("no_such_model")


def test_failed_requests_count_as_failed(client: Client, target: Target, add_sub: str) -> None:
    if not target.ours:
        pytest.skip("a server may leave requests out that it refuses before they are queued")
    before = _entry(client, add_sub)["inference_stats"]["fail"]["count"]
    with pytest.raises(InferenceServerException):
        client.infer(add_sub, pair()[2][:1])
    assert _entry(client, add_sub)["inference_stats"]["fail"]["count"] == before + 1


def test_repository_index(client: Client, model: str) -> None:
    entries = [entry for entry in client.get_model_repository_index() if entry["name"] == model]
    assert any(entry["state"] == "READY" for entry in entries)
    assert all(isinstance(entry.get("version", ""), str) for entry in entries)


def _or_skip(call: Any, *arguments: Any, **keys: Any) -> None:
    """Skip where the server does not let its models be changed."""
    try:
        call(*arguments, **keys)
    except InferenceServerException as error:
        if "explicit model" in str(error) or "restricted" in str(error) or error.status() in ("401", "403", "404"):
            pytest.skip(f"the server does not load and unload: {error}")
        raise


def test_unload_and_load_again(client: Client, model: str) -> None:
    _or_skip(client.unload_model, model, headers=ADMIN)
    assert not client.is_model_ready(model)
    with pytest.raises(
        InferenceServerException, match=r"unknown model: '\w+' (is not found|has no available versions)|not ready"
    ):
        client.get_model_metadata(model)
    client.load_model(model, headers=ADMIN)
    assert client.is_model_ready(model)


def test_load_of_an_unknown_model_fails(client: Client, model: str) -> None:
    _or_skip(client.load_model, model, headers=ADMIN)
    with pytest.raises(InferenceServerException, match=r"failed to load 'no_such_model'"):
        client.load_model("no_such_model", headers=ADMIN)
    with pytest.raises(InferenceServerException, match=r"no_such_model"):
        client.unload_model("no_such_model", headers=ADMIN)


def test_config_override_lasts_until_the_next_load(client: Client, add_sub: str) -> None:
    before = client.get_model_config(add_sub)
    override = {**before, "max_batch_size": 4, "dynamic_batching": {"preferred_batch_size": [2]}}
    _or_skip(client.load_model, add_sub, config=json.dumps(override), headers=ADMIN)
    config = client.get_model_config(add_sub)
    assert config["max_batch_size"] == 4
    assert config["dynamic_batching"]["preferred_batch_size"] == [2]
    with pytest.raises(InferenceServerException, match="batch-size must be <= 4"):
        client.infer(add_sub, pair(rows=5)[2])
    client.load_model(add_sub, headers=ADMIN)
    assert client.get_model_config(add_sub)["max_batch_size"] == before["max_batch_size"]


def test_config_of_the_server_can_be_sent_back(client: Client, model: str) -> None:
    before = client.get_model_config(model)
    _or_skip(client.load_model, model, config=json.dumps(before), headers=ADMIN)
    assert client.get_model_config(model) == before
    client.load_model(model, headers=ADMIN)
    assert client.get_model_config(model) == before


def test_files_brought_by_load_stand_in_until_the_next_load(client: Client, target: Target, add_sub: str) -> None:
    if not target.ours:
        pytest.skip("whether files may be brought is a server's setting")
    brought = onnx_models.linear(width=2, outputs=2).SerializeToString()
    client.load_model(add_sub, config="{}", files={"file:7/model.onnx": brought}, headers=ADMIN)
    metadata = client.get_model_metadata(add_sub)
    assert (metadata["versions"], [tensor["name"] for tensor in metadata["inputs"]]) == (["7"], ["x"])
    client.load_model(add_sub, headers=ADMIN)
    metadata = client.get_model_metadata(add_sub)
    assert (metadata["versions"], [tensor["name"] for tensor in metadata["inputs"]]) == (["1"], ["INPUT0", "INPUT1"])


def test_a_file_that_cannot_be_loaded_leaves_the_model_as_it_was(client: Client, target: Target, add_sub: str) -> None:
    if not target.ours:
        pytest.skip("whether files may be brought is a server's setting")
    with pytest.raises(InferenceServerException, match="is not an ONNX model"):
        client.load_model(add_sub, config="{}", files={"file:1/model.onnx": b"anything"}, headers=ADMIN)
    assert client.is_model_ready(add_sub)
    client.load_model(add_sub, headers=ADMIN)


def test_a_file_can_bring_a_model_that_is_not_on_disk(client: Client, target: Target) -> None:
    if not target.ours:
        pytest.skip("whether files may be brought is a server's setting")
    brought = onnx_models.linear(width=2, outputs=2).SerializeToString()
    client.load_model("brought", config="{}", files={"file:1/model.onnx": brought}, headers=ADMIN)
    assert client.is_model_ready("brought")
    client.unload_model("brought", headers=ADMIN)
    assert not client.is_model_ready("brought")


def test_log_settings_change_one_by_one(client: Client) -> None:
    before = client.get_log_settings()
    assert {"log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"} <= set(before)
    try:
        changed = client.update_log_settings({"log_verbose_level": 1}, headers=ADMIN)
        assert changed == {**before, "log_verbose_level": 1}
        assert client.get_log_settings() == changed
    finally:
        client.update_log_settings(before, headers=ADMIN)
    assert client.get_log_settings() == before
