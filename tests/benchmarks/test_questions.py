"""Answers are held against the reference: a wrong number, a mix-up and a made-up answer are all seen."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.peers.models import largest, tiny
from benchmarks.peers.questions import Questions, WrongAnswer, questions_for, questions_over
from benchmarks.peers.wording import Binary, Json

MODEL = tiny()
QUESTIONS = questions_for(MODEL)


def test_inputs_differ_and_their_own_answers_are_right() -> None:
    assert len({one.tobytes() for one in QUESTIONS.inputs}) == 16
    for number, answer in enumerate(QUESTIONS.answers):
        QUESTIONS.check(number, answer)
        QUESTIONS.check(None, answer)


def test_the_answer_to_another_question_is_wrong() -> None:
    with pytest.raises(WrongAnswer, match="question 3"):
        QUESTIONS.check(3, QUESTIONS.answers[4])


@pytest.mark.parametrize("change", [1e-2, np.nan, np.inf])
@pytest.mark.parametrize("number", [5, None])
def test_a_number_that_is_off_is_wrong(number: int | None, change: float) -> None:
    answer = QUESTIONS.answers[5].copy()
    answer[0, 2] += change
    with pytest.raises(WrongAnswer):
        QUESTIONS.check(number, answer)


def test_another_shape_is_wrong() -> None:
    with pytest.raises(WrongAnswer):
        QUESTIONS.check(0, QUESTIONS.answers[0][:, :9])
    with pytest.raises(WrongAnswer):
        QUESTIONS.check(0, QUESTIONS.answers[0].repeat(2, axis=0))


def test_a_number_that_nobody_asked_is_wrong() -> None:
    for number in (-1, 16):
        with pytest.raises(WrongAnswer):
            QUESTIONS.check(number, QUESTIONS.answers[-1])


def test_answers_that_are_alike_make_no_questions() -> None:
    with pytest.raises(ValueError, match="alike"):
        dataclasses.replace(QUESTIONS, answers=(QUESTIONS.answers[0],) * 16)


def test_questions_over_models_are_each_for_its_own() -> None:
    models = [tiny(f"tiny_{seed}", seed) for seed in range(20)]
    questions = questions_over(models)
    assert [one.name for one in questions.served] == [one.name for one in models]
    assert len(questions_over(models[:3]).inputs) == 16
    alone = questions_for(models[7], count=20)
    assert np.array_equal(questions.inputs[7], alone.inputs[7])
    questions.check(7, alone.answers[7])
    with pytest.raises(WrongAnswer):
        questions.check(7, questions_for(models[8], count=20).answers[7])


def test_the_largest_number_is_exact() -> None:
    questions = questions_for(largest(64), rows=3)
    assert all(
        np.array_equal(x.max(1, keepdims=True), y) for x, y in zip(questions.inputs, questions.answers, strict=True)
    )
    with pytest.raises(WrongAnswer):
        questions.check(0, np.nextafter(questions.answers[0], np.float32(9)))


def answered(questions: Questions, number: int) -> tuple[bytes, bytes]:
    """As a server says it: binary and JSON."""
    values = questions.answers[number]
    tensor = {"name": "y", "datatype": "FP32", "shape": list(values.shape)}
    as_bytes = {**tensor, "parameters": {"binary_data_size": values.nbytes}}
    binary = json.dumps({"id": str(number), "outputs": [as_bytes]}).encode() + values.tobytes()
    return binary, json.dumps({"id": str(number), "outputs": [{**tensor, "data": values.tolist()}]}).encode()


def test_both_wordings_read_what_a_server_says() -> None:
    for wording, body in zip((Binary(), Json()), answered(QUESTIONS, 7), strict=True):
        number, values = wording.read(MODEL, 1, body)
        assert number == 7
        QUESTIONS.check(number, values)


def test_both_wordings_ask_with_the_number_and_the_very_values() -> None:
    x = QUESTIONS.inputs[7]
    binary, as_json = (wording.put(MODEL, 7, x) for wording in (Binary(), Json()))
    assert binary.path == as_json.path == "/v2/models/tiny/infer"
    head = json.loads(binary.body[: int(binary.headers["Inference-Header-Content-Length"])])
    assert head["id"] == json.loads(as_json.body)["id"] == "7"
    assert binary.body.endswith(x.tobytes())
    sent = np.array(json.loads(as_json.body)["inputs"][0]["data"], np.float32)
    assert np.array_equal(sent, x[0])
