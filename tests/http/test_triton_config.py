"""Triton's ModelConfig as load's override: what is taken, what must agree with the model, what is refused by name."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from app.config import ModelConfig, config_of, model_options
from app.http.errors import BadRequest
from app.http.schemas import model_config
from app.http.triton_config import from_triton, is_triton
from app.serving.device import Device
from app.serving.endpoint import Endpoint
from app.serving.limits import Limits, ModelOptions, QueueOptions, QueuePolicy
from engines.errors import BadRepository
from engines.tensor import TensorSpec
from tests.support.fakes import HeldLoop, HeldSession, endpoint_on

X, Y = TensorSpec("x", "FP32", (-1, 16), 0), TensorSpec("y", "FP32", (-1, -1, 4), 0)


def _translate(document: dict[str, Any]) -> ModelConfig:
    return config_of(from_triton(document, "m", [X], [Y]), "config")


@pytest.mark.parametrize(
    ("document", "ours"),
    [
        ({"max_batch_size": 8}, {"batching": {"max_batch_size": 8}}),
        ({"max_batch_size": 0}, {"batching": {"max_batch_size": 0}}),
        ({"maxBatchSize": "8"}, {"batching": {"max_batch_size": 8}}),
        ({"version_policy": {"latest": {"num_versions": 1}}}, {"versions": "latest"}),
        ({"version_policy": {"latest": {}}}, {"versions": "latest"}),
        ({"version_policy": {"all": {}}}, {"versions": "all"}),
        ({"version_policy": {"specific": {"versions": [1, "3"]}}}, {"versions": [1, 3]}),
        ({"instance_group": [{"count": 2}]}, {"instances": 2}),
        ({"instance_group": [{"kind": "KIND_CPU", "count": 2}, {"kind": "KIND_AUTO", "name": "b"}]}, {"instances": 3}),
        ({"instance_group": []}, {}),
        ({"instance_group": [{"kind": "KIND_GPU", "count": 2}]}, {"instances": 2}),
        ({"instance_group": [{"kind": "KIND_GPU", "gpus": [1]}, {"gpus": [0, 1]}]}, {"instances": 1, "gpus": [0, 1]}),
        ({"instance_group": [{"kind": "KIND_GPU", "gpus": [1]}, {"kind": "KIND_GPU"}]}, {"instances": 1}),
        ({"dynamic_batching": {}}, {}),
        (
            {"dynamic_batching": {
                "preferred_batch_size": [4, 8], "max_queue_delay_microseconds": "100", "preserve_ordering": True}},
            {"batching": {"preferred_batch_size": [4, 8], "max_queue_delay_us": 100, "preserve_ordering": True}},
        ),
        (
            {"dynamic_batching": {
                "default_queue_policy": {"timeout_action": "DELAY", "default_timeout_microseconds": 5}}},
            {"queue": {"timeout_action": "delay", "default_timeout_us": 5, "allow_timeout_override": False}},
        ),
        (
            {"dynamicBatching": {"priorityLevels": "3", "defaultPriorityLevel": "2", "priorityQueuePolicy": {
                "1": {"maxQueueSize": 7, "allowTimeoutOverride": True}}}},
            {"priorities": {"levels": 3, "default_level": 2, "queue": {
                "1": {"max_queue_size": 7, "allow_timeout_override": True}}}},
        ),
        ({"parameters": {"max_queue_rows": {"string_value": "64"}}}, {"queue": {"max_rows": 64}}),
        (
            {"max_batch_size": 0, "parameters": {"max_batch_rows": {"string_value": "16"}}},
            {"batching": {"max_batch_size": 16}},
        ),
        ({"output": [{"name": "y", "label_filename": "l.txt"}]}, {"labels": {"y": "l.txt"}}),
    ],
    ids=range(20),
)  # fmt: skip
def test_what_is_taken(document: dict[str, Any], ours: dict[str, Any]) -> None:
    assert is_triton(document)
    assert _translate(document) == config_of(ours, "config")


@pytest.mark.parametrize(
    "document",
    [
        {"name": "m"}, {"platform": "onnxruntime_onnx"}, {"backend": "onnxruntime"}, {"backend": ""}, {"runtime": ""},
        {"default_model_filename": "model.onnx"}, {"optimization": {"input_pinned_memory": {"enable": True}}},
        {"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [16], "format": "FORMAT_NONE", "optional": False}]},
        {"input": [{"name": "x", "dims": [-1, "16"]}], "output": [{"name": "y", "dims": [7, 4]}]},
        {"sequence_batching": {}, "response_cache": {"enable": False}, "model_warmup": [], "metric_tags": {}},
        {"model_transaction_policy": {"decoupled": False}, "parameters": {}, "instance_group": [{"gpus": []}]},
    ],
)  # fmt: skip
def test_what_describes_the_model_changes_nothing(document: dict[str, Any]) -> None:
    assert _translate(document) == ModelConfig(**({"instances": 1} if "instance_group" in document else {}))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"name": "other"}, "config: name = 'other' is not allowed; expected 'm', or leave it out"),
        ({"platform": "tensorrt_plan"}, "config: platform = 'tensorrt_plan' is not allowed; expected 'onnx_onnxv1'"),
        ({"backend": "pytorch"}, "config: backend = 'pytorch' is not allowed; expected 'openvino'"),
        ({"default_model_filename": "../m"}, "config: default_model_filename = '../m' is not allowed"),
        ({"max_batch_size": 8, "batching": {}}, "config: batching: unknown key; allowed here: name, platform"),
        ({"name": "m", "max_batchsize": 8}, "config: max_batchsize: unknown key"),
        ({"sequence_batching": {"direct": {"x": 1}}}, "config: sequence_batching: this server does not do that"),
        ({"ensemble_scheduling": {"step": [1]}}, "config: ensemble_scheduling: this server does not do that"),
        ({"response_cache": {"enable": True}}, "config: response_cache: this server does not do that; leave it out"),
        ({"model_transaction_policy": {"decoupled": True}}, "config: model_transaction_policy: this server does not"),
        ({"version_policy": {"latest": {"num_versions": 2}}}, "config: version_policy.latest.num_versions = '2' is"),
        ({"version_policy": {"newest": {}}}, "config: version_policy.newest: unknown key; allowed here: latest, all"),
        ({"version_policy": {"all": {}, "latest": {}}}, "config: version_policy = \"['all', 'latest']\" is not"),
        ({"version_policy": {"specific": {"versions": 1}}}, "config: version_policy.specific.versions = '1' is not"),
        ({"version_policy": "all"}, "config: version_policy = 'all' is not allowed; expected an object"),
        ({"instance_group": {"count": 1}}, "config: instance_group = \"{'count': 1}\" is not allowed; expected a list"),
        ({"instance_group": [{"kind": "KIND_TPU"}]}, "config: instance_group.0.kind = 'KIND_TPU' is not allowed"),
        ({"instance_group": [{"count": 1}, {"gpus": [0]}]}, "config: instance_group: expected as many"),
        ({"instance_group": [{"gpus": [0]}, {"gpus": [1], "count": 2}]}, "config: instance_group: expected as many"),
        ({"instance_group": [{"gpus": [-1]}]}, "config: instance_group.0.gpus = '[-1]' is not allowed"),
        ({"instance_group": [{"kind": "KIND_CPU", "gpus": [0]}]}, "config: instance_group.0.gpus = '[0]' is"),
        ({"instance_group": [{"count": "two"}]}, "config: instance_group.0.count = 'two' is not allowed"),
        ({"dynamic_batching": {"max_delay": 1}}, "config: dynamic_batching.max_delay: unknown key; allowed here: pref"),
        ({"dynamic_batching": {"preferred_batch_size": 4}}, "config: dynamic_batching.preferred_batch_size = '4' is"),
        ({"dynamic_batching": {"default_priority_level": 1}}, "config: dynamic_batching: it has priorities but no"),
        ({"dynamic_batching": {"priority_levels": 1, "priority_queue_policy": []}}, "config: dynamic_batching.priori"),
        (
            {"dynamic_batching": {"default_queue_policy": {"timeout_action": "DROP"}}},
            "config: dynamic_batching.default_queue_policy.timeout_action = 'DROP' is not allowed; expected 'REJECT'",
        ),
        ({"parameters": {"threads": {"string_value": "1"}}}, "config: parameters.threads: unknown key; allowed here"),
        ({"parameters": {"max_queue_rows": "1"}}, "config: parameters.max_queue_rows = '1' is not allowed"),
        ({"input": [{"name": "z"}]}, "config: input.0.name = 'z' is not allowed; expected one of x"),
        ({"input": [{"name": ["x"]}]}, "config: input.0.name = \"['x']\" is not allowed"),
        ({"input": [{"name": "x", "data_type": "TYPE_INT8"}]}, "config: input.0.data_type = 'TYPE_INT8' is not"),
        ({"input": [{"name": "x", "dims": [17]}]}, "config: input.0.dims = '[17]' is not allowed; expected [16]"),
        ({"input": [{"name": "x", "optional": True}]}, "config: input.0.optional: this server does not do that"),
        ({"input": [{"name": "x", "format": "FORMAT_NCHW"}]}, "config: input.0.format = 'FORMAT_NCHW' is not allowed"),
        ({"output": [{"name": "y"}, 5]}, "config: output.1 = '5' is not allowed; expected an object"),
    ],
    ids=range(36),
)  # fmt: skip
def test_what_is_refused_by_name(document: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest) as refused:
        from_triton(document, "m", [X], [Y])
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"max_batch_size": "many"}, 'config: batching.max_batch_size = "many" is not allowed'),
        ({"max_batch_size": True}, "config: batching.max_batch_size = true is not allowed"),
        ({"max_batch_size": 2, "dynamic_batching": {"preferred_batch_size": [4]}}, "config: batching"),
        ({"instance_group": [{"count": 65}]}, "config: instances = 65 is not allowed"),
        ({"dynamic_batching": {"priority_levels": 2, "default_priority_level": 3}}, "config: priorities"),
        ({"dynamic_batching": {"preserve_ordering": "yes"}}, "config: batching.preserve_ordering"),
    ],
)
def test_values_are_checked_as_those_of_config_toml(document: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRepository) as refused:
        _translate(document)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("document", [{}, [], None, "name", 5, {"batching": {}}, {"instances": 2}, {"nonsense": 1}])
def test_config_tomls_own_terms_are_left_alone(document: object) -> None:
    assert not is_triton(document)


def test_the_two_vocabularies_share_no_word() -> None:
    assert not any(is_triton({key: None}) for key in ModelConfig.model_fields)


def test_without_a_served_version_tensors_go_unchecked() -> None:
    assert from_triton({"input": [{"name": "anything", "dims": [1]}]}, "m") == {}


POLICY = QueuePolicy(max_queue_requests=5, default_timeout_ns=7000, allow_timeout_override=False, delay_expired=True)


@pytest.mark.parametrize(
    "options",
    [
        ModelOptions(),
        ModelOptions(Limits(max_batch_rows=0)),
        ModelOptions(Limits(max_batch_rows=0), QueueOptions(policy=POLICY)),
        ModelOptions(Limits(8, (2, 4), 300_000), QueueOptions(max_rows=9, policy=POLICY), preserve_ordering=True),
        ModelOptions(version_policy="all"),
        ModelOptions(version_policy="2,5"),
        ModelOptions(
            queue=QueueOptions(
                levels=3,
                default_level=2,
                level_policies=MappingProxyType({1: POLICY, 3: QueuePolicy(default_timeout_ns=1000)}),
            )
        ),
    ],
    ids=range(7),
)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_servers_own_answer_sent_back_changes_nothing(options: ModelOptions, axis: int) -> None:
    device = Device(HeldLoop(), 1)
    specs = [TensorSpec("x", "FP32", (-1, -1, 3), axis)], [TensorSpec("y", "FP32", (-1, -1, 8), axis)]
    endpoint = Endpoint("m", 1, *specs, HeldSession(slots=2), options, device)
    config = model_config(endpoint)
    assert config["max_batch_size"] == (options.limits.max_batch_rows if axis == 0 else 0)
    again = _options(config_of(from_triton(config, "m", *specs), "config"))
    assert model_config(Endpoint("m", 1, *specs, HeldSession(slots=2), again, device)) == config
    assert again.queue == options.queue
    assert again.limits.max_batch_rows == options.limits.max_batch_rows
    assert again.limits.max_queue_delay_ns == options.limits.max_queue_delay_ns


def _options(config: ModelConfig) -> ModelOptions:
    return model_options(config, Path(), batchable=True, max_batch_rows=32, max_queue_rows=1024)


def test_what_a_config_does_not_say_is_the_default() -> None:
    sent = model_config(endpoint_on(Device(HeldLoop(), 1), HeldSession()))
    assert _options(_translate({"dynamic_batching": {}})) == ModelOptions()
    assert set(sent) >= {"name", "platform", "backend", "version_policy", "max_batch_size", "input", "output"}
