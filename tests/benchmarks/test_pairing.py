"""Rounds are interleaved, a run with a failure takes its runner out, and ratios are of pairs within a round."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pytest

from benchmarks.peers.pairing import Rounds, Void, interleaved, turn
from benchmarks.peers.words import against


def rates(*values: float) -> Iterator[Mapping[str, float]]:
    return iter([{"rate": value} for value in values])


def test_every_other_round_goes_backwards() -> None:
    order: list[str] = []

    def runner(name: str) -> Mapping[str, float]:
        order.append(name)
        return {"rate": 1}

    interleaved({"a": lambda: runner("a"), "b": lambda: runner("b"), "c": lambda: runner("c")}, 3)
    assert order == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert turn(["a", "b"], 1) == ["b", "a"]


def test_a_ratio_is_the_median_of_ratios_and_not_the_ratio_of_medians() -> None:
    a, b = rates(10, 40, 90), rates(10, 10, 30)
    found = interleaved({"a": lambda: next(a), "b": lambda: next(b)}, 3)
    assert found.ratio("rate", "a", "b") == 3.0
    assert found.difference("rate", "a", "b") == 30
    assert (found.median("a", "rate"), found.median("b", "rate")) == (40, 10)
    assert against(found, "rate", "a", "b", "requests/s") == "3.00x (40 against 10 requests/s)"


def test_one_failure_voids_a_runner_for_good_and_the_others_go_on() -> None:
    asked: list[int] = []

    def unsound() -> Mapping[str, float]:
        asked.append(1)
        if len(asked) == 2:
            raise Void("3 not 2xx")
        return {"rate": 1000}

    found = interleaved({"a": unsound, "b": lambda: {"rate": 1}, "c": lambda: {"rate": 2}}, 4)
    assert len(asked) == 2
    assert found.void == {"a": "3 not 2xx"}
    assert found.ratio("rate", "a", "b") is None
    assert found.median("a", "rate") is None, "what it did before does not count either"
    assert found.ratio("rate", "c", "b") == 2
    assert against(found, "rate", "a", "b", "requests/s") == "void: a, 3 not 2xx"
    assert against(found, "rate", "b", "a", "requests/s") == "void: a, 3 not 2xx"


def test_who_was_not_there_has_no_ratio() -> None:
    found = interleaved({"a": lambda: {"rate": 1}}, 2)
    assert against(found, "rate", "a", "b", "requests/s") == "not measured"


def test_rounds_come_back_from_json() -> None:
    a = rates(1, 2, 4)
    found = interleaved({"a": lambda: next(a), "b": lambda: {"rate": 2}}, 3)
    assert Rounds.from_dict(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_void_first_round_leaves_nothing(rounds: int) -> None:
    def fails() -> Mapping[str, float]:
        raise Void("no answer")

    found = interleaved({"a": fails, "b": lambda: {"rate": 2}}, rounds)
    assert found.ratio("rate", "b", "a") is None
    assert [set(one) for one in found.rounds] == [{"b"}] * rounds
