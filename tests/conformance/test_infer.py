"""Inference by unmodified tritonclient: tensors as bytes and as JSON, both ways, and every option of `infer`."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from tritonclient import http
from tritonclient.utils import InferenceServerException

from tests.conformance.conftest import Target
from tests.conformance.tensors import example, infer_input, pair, weights

Client = http.InferenceServerClient


def _check(result: http.InferResult, first: np.ndarray, second: np.ndarray) -> None:
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), first + second)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), first - second)


def test_any_model_answers_the_same_as_bytes_and_as_json(client: Client, model: str) -> None:
    metadata = client.get_model_metadata(model)
    answers = []
    for binary in (True, False):
        wanted = [http.InferRequestedOutput(spec["name"], binary_data=binary) for spec in metadata["outputs"]]
        answers.append(client.infer(model, example(metadata, binary=binary), outputs=wanted))
    for spec in metadata["outputs"]:
        as_bytes, as_json = (answer.as_numpy(spec["name"]) for answer in answers)
        assert as_bytes.dtype == as_json.dtype
        np.testing.assert_array_equal(as_bytes, as_json)
        described = answers[0].get_output(spec["name"])
        assert described["datatype"] == spec["datatype"]
        assert len(described["shape"]) == len(spec["shape"])
        assert described["parameters"]["binary_data_size"] >= 0


@pytest.mark.parametrize("inputs", list(itertools.product((True, False), repeat=2)))
@pytest.mark.parametrize("outputs", [None, *itertools.product((True, False), repeat=2)])
def test_bytes_and_json_mix(
    client: Client, add_sub: str, inputs: tuple[bool, bool], outputs: tuple[bool, bool] | None
) -> None:
    first, second, tensors = pair(rows=3, binary=inputs)
    wanted = outputs and [
        http.InferRequestedOutput(name, binary_data=way)
        for name, way in zip(("OUTPUT0", "OUTPUT1"), outputs, strict=True)
    ]
    result = client.infer(add_sub, tensors, outputs=wanted)
    _check(result, first, second)
    for name, way in zip(("OUTPUT0", "OUTPUT1"), outputs or (True, True), strict=True):
        assert ("data" in result.get_output(name)) is not way


def test_one_output_of_two(client: Client, add_sub: str) -> None:
    first, second, inputs = pair()
    result = client.infer(add_sub, inputs, outputs=[http.InferRequestedOutput("OUTPUT1")])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), first - second)
    assert result.as_numpy("OUTPUT0") is None
    assert result.get_output("OUTPUT0") is None


def test_answer_names_model_and_version_and_echoes_the_id(client: Client, add_sub: str) -> None:
    version = client.get_model_metadata(add_sub)["versions"][-1]
    response = client.infer(add_sub, pair()[2], request_id="request 7 / é", model_version=version).get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("request 7 / é", add_sub, version)
    assert "id" not in client.infer(add_sub, pair()[2]).get_response()


def test_rows_up_to_the_limit_come_back_in_order(client: Client, add_sub: str) -> None:
    limit = client.get_model_config(add_sub)["max_batch_size"]
    first, second, inputs = pair(rows=limit)
    _check(client.infer(add_sub, inputs), first, second)
    with pytest.raises(InferenceServerException, match=f"batch-size must be <= {limit}"):
        client.infer(add_sub, pair(rows=limit + 1)[2])


@pytest.mark.parametrize("answer", [None, "gzip", "deflate"])
@pytest.mark.parametrize("request_", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compression_both_ways(
    client: Client, add_sub: str, request_: str | None, answer: str | None, binary: bool
) -> None:
    first, second, inputs = pair(rows=4, binary=binary)
    wanted = [http.InferRequestedOutput(name, binary_data=binary) for name in ("OUTPUT0", "OUTPUT1")]
    result = client.infer(
        add_sub,
        inputs,
        outputs=wanted,
        request_compression_algorithm=request_,
        response_compression_algorithm=answer,
    )
    _check(result, first, second)


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 1},
        {"priority": 99},
        {"timeout": 10_000_000},
        {"sequence_id": 42, "sequence_start": True, "sequence_end": True},
        {"sequence_id": "a sequence", "sequence_start": True},
        {"parameters": {"text": "x", "number": 3, "flag": True}},
        {"headers": {"x-request-id": "from the client", "Authorization": "Bearer nothing"}},
        {"query_params": {"key": "a value"}},
    ],
    ids=str,
)
def test_options_are_taken(client: Client, add_sub: str, options: dict[str, object]) -> None:
    first, second, inputs = pair()
    _check(client.infer(add_sub, inputs, **options), first, second)


def test_many_in_flight_from_one_client(client: Client, add_sub: str) -> None:
    asked = [pair(rows=1 + seed % 3, seed=seed) for seed in range(24)]
    waiting = [client.async_infer(add_sub, inputs, request_id=f"{n}") for n, (_, _, inputs) in enumerate(asked)]
    for number, ((first, second, _), handle) in enumerate(zip(asked, waiting, strict=True)):
        result = handle.get_result()
        assert result.get_response()["id"] == f"{number}"
        _check(result, first, second)


def test_many_clients_each_get_their_own_rows(target: Target, add_sub: str) -> None:
    faults: list[BaseException] = []

    def one_client(number: int) -> None:
        try:
            with target.client() as own:
                for turn in range(15):
                    first, second, inputs = pair(rows=1 + (number + turn) % 4, seed=1000 * number + turn)
                    _check(own.infer(add_sub, inputs), first, second)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=one_client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_versions_answer_for_themselves(client: Client, target: Target) -> None:
    model = target.need("versions")
    x = np.arange(16, dtype=np.float32)[np.newaxis]
    assert client.get_model_metadata(model)["versions"] == ["1", "2"]
    for version, scale in (("1", 1.0), ("2", 2.0), ("", 2.0)):
        result = client.infer(model, [infer_input("x", x, "FP32")], model_version=version)
        np.testing.assert_allclose(result.as_numpy("y"), x @ weights(scale), rtol=1e-6)
        assert result.get_response()["model_version"] == (version or "2")
    with pytest.raises(InferenceServerException, match=r"unknown model: 'versions' version 3 is not found"):
        client.infer(model, [infer_input("x", x, "FP32")], model_version="3")


@pytest.mark.parametrize("binary", [True, False])
def test_classes_with_labels(client: Client, target: Target, binary: bool) -> None:
    model = target.need("linear")
    x = np.zeros((2, 16), np.float32)
    x[0, 2], x[0, 7], x[1, 4] = 16, 1, 4  # y = [0 0 3 0.5], [1.25 0 0 0]
    wanted = [http.InferRequestedOutput("y", class_count=2, binary_data=binary)]
    result = client.infer(model, [infer_input("x", x, "FP32")], outputs=wanted)
    assert result.get_output("y")["datatype"] == "BYTES"
    best = result.as_numpy("y")
    assert best.shape == (2, 2)
    texts = [[v.decode() if isinstance(v, bytes) else v for v in row] for row in best]
    right = [["3.000000:2:two", "0.500000:3:three"], ["1.250000:0:zero", "0.000000:1:one"]]
    if not target.ours:  # whose model may have no labels
        texts, right = ([[":".join(v.split(":")[:2]) for v in row] for row in table] for table in (texts, right))
    assert texts == right


def test_more_classes_than_there_are(client: Client, target: Target) -> None:
    x = np.ones((1, 16), np.float32)
    wanted = [http.InferRequestedOutput("y", class_count=100)]
    result = client.infer(target.need("linear"), [infer_input("x", x, "FP32")], outputs=wanted)
    assert result.as_numpy("y").shape == (1, 4)


@pytest.mark.parametrize("binary", [True, False])
def test_half_precision(client: Client, target: Target, binary: bool) -> None:
    x = np.array([[0.0, 1.5, -65504, 6e-8]], np.float16)
    wanted = [http.InferRequestedOutput("y", binary_data=binary)]
    result = client.infer(target.need("half"), [infer_input("x", x, "FP16", binary=binary)], outputs=wanted)
    assert result.as_numpy("y").dtype == np.float16
    np.testing.assert_array_equal(result.as_numpy("y"), -x)


@pytest.mark.parametrize("binary", [True, False])
def test_booleans(client: Client, target: Target, binary: bool) -> None:
    x = np.array([[True, False, True, True], [False] * 4])
    wanted = [http.InferRequestedOutput("y", binary_data=binary)]
    result = client.infer(target.need("bools"), [infer_input("x", x, "BOOL", binary=binary)], outputs=wanted)
    np.testing.assert_array_equal(result.as_numpy("y"), ~x)


def test_variable_length_rows(client: Client, target: Target) -> None:
    model = target.need("lstm")
    rng = np.random.default_rng(1)
    for rows, steps in ((1, 1), (2, 5), (3, 2)):
        x = rng.standard_normal((rows, steps, 3), dtype=np.float32)
        together = client.infer(model, [infer_input("x", x, "FP32")]).as_numpy("y")
        assert together.shape == (rows, steps, 8)
        for row in range(rows):
            alone = client.infer(model, [infer_input("x", x[row : row + 1], "FP32")]).as_numpy("y")
            np.testing.assert_allclose(together[row], alone[0], atol=1e-6)  # float32 sums of 11 terms below 10


FLOATS = np.ones((1, 16), np.float32)
ONES = np.ones((1, 16), np.int32)
TWO = [infer_input("INPUT0", ONES, "INT32"), infer_input("INPUT1", ONES, "INT32")]
NARROW = np.ones((1, 15), np.int32)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([TWO[0]], None, r"expected 2 inputs but got 1 inputs for model"),
        ([*TWO, infer_input("INPUT2", ONES, "INT32")], None, r"expected 2 inputs but got 3 inputs for model"),
        ([TWO[0], infer_input("OTHER", ONES, "INT32")], None, r"unexpected inference input 'OTHER'"),
        (
            [TWO[0], infer_input("INPUT1", NARROW, "INT32")],
            None,
            r"unexpected shape for input 'INPUT1' for model '\w+'. Expected \[-1,16\], got \[1,15\]",
        ),
        ([TWO[0], infer_input("INPUT1", ONES[0], "INT32")], None, r"unexpected shape for input 'INPUT1'.*got \[16\]"),
        (
            [TWO[0], infer_input("INPUT1", FLOATS, "FP32")],
            None,
            r"input 'INPUT1' data-type is 'FP32', but model '\w+' expects 'INT32'",
        ),
        (TWO, ["OUTPUT0", "NOPE"], r"unexpected inference output 'NOPE' for model"),
        (TWO, ["OUTPUT0", "OUTPUT0"], r"output 'OUTPUT0' already exists in request"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_with_words(
    client: Client, add_sub: str, inputs: list[http.InferInput], outputs: list[str] | None, message: str
) -> None:
    wanted = outputs and [http.InferRequestedOutput(name) for name in outputs]
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.infer(add_sub, inputs, outputs=wanted)
    assert caught.value.status() == "400"
    first, second, good = pair()
    _check(client.infer(add_sub, good), first, second)


def test_unknown_models_and_versions_are_not_found(client: Client, add_sub: str) -> None:
    for ask in (
        lambda: client.infer("no_such_model", TWO),
        lambda: client.get_model_metadata("no_such_model"),
        lambda: client.get_model_config("no_such_model"),
        lambda: client.infer(add_sub, TWO, model_version="987654"),
    ):
        with pytest.raises(InferenceServerException, match=r"unknown model: '(no_such_model|\w+' version 987654)"):
            ask()
