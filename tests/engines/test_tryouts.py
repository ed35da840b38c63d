"""What was tried is ranked and checked as it says, without an engine: figures are given, not measured."""

from __future__ import annotations

import msgspec
import onnx
import pytest

from engines import precision
from engines.choice import Subject
from engines.clock import Clock
from engines.guarded import Guards
from engines.report import Accuracy
from engines.search import Outcome
from engines.spec import Spec
from engines.targets.openvino_race import Pace
from engines.tryouts import Tried, Tryouts
from engines.variants import Variant

SAMPLES = 100


def accuracy(loss: float) -> Accuracy:
    return Accuracy(
        samples=SAMPLES, available=SAMPLES, synthetic=False, over_bound=0, worst=(), shares=(), samples_per_share=1,
        metric="top1", against="labels", output="y", reference_value=0.9, value=0.9 - loss, loss=loss,
        interval=(loss, loss), decisions_changed=0,
    )  # fmt: skip


def tried(name: str, outcome: Outcome, **changes: object) -> Tried:
    precision = name.split(maxsplit=1)[0]
    made = Tried(
        Variant(name, precision, onnx.ModelProto()), None, accuracy(outcome.loss), 1000, Guards((), 0.1, frozenset()),
        pace=Pace(outcome.cost, 1e6 / outcome.cost),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def tryouts(*found: Tried, spec: Spec | None = None) -> Tryouts:
    made = object.__new__(Tryouts)
    made.tried, made.variants, made.notes = list(found), [], []
    made._spec = spec or Spec(metric="top1", accuracy_budget=0.01)
    made._failed, made._glimpsed, made._elsewhere = [], [], []
    return made


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_of_engines_as_fast_as_each_other_the_one_that_loses_least_is_first(objective: str) -> None:
    """One of 3 % less time is the faster of two only by chance."""
    found = tryouts(
        tried("fp32", Outcome(0.0, 300.0)),
        tried("int8 mean_minmax", Outcome(0.009, 100.0)),
        tried("int8 minmax", Outcome(0.001, 102.0)),
        spec=Spec(metric="top1", accuracy_budget=0.01, objective=objective),  # type: ignore[arg-type]
    )
    assert [one.variant.name for one in found.by_merit()] == ["int8 minmax", "int8 mean_minmax", "fp32"]


def test_fp32_is_not_left_for_what_is_no_faster() -> None:
    """Also where that one is right more often by chance."""
    found = tryouts(tried("fp32", Outcome(0.0, 102.0)), tried("int8 minmax", Outcome(-0.02, 100.0)))
    assert found.by_merit()[0] is found.tried[0]


def test_engines_of_the_same_kernels_are_as_fast_as_each_other_whatever_was_measured() -> None:
    """Two calibrators give the same graph but for its numbers; a tenth between their times is the machine's."""

    def int8(name: str, form: str, outcome: Outcome) -> Tried:
        made = tried(name, outcome)
        return msgspec.structs.replace(made, variant=made.variant._replace(form=form))

    found = tryouts(
        tried("fp32", Outcome(0.0, 300.0)),
        int8("int8 mean_minmax, unsigned", "unsigned", Outcome(0.009, 100.0)),
        int8("int8 minmax, unsigned", "unsigned", Outcome(0.001, 110.0)),
        int8("int8 minmax, signed", "signed", Outcome(0.0005, 108.0)),
    )
    first, *_ = found.by_merit()
    assert first.variant.name == "int8 minmax, unsigned"
    assert any(one is first for one in found._front())


def test_a_search_begins_with_none_that_its_proof_showed_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a few samples it is the best, so that "all INT8" would hold the budget and end the search."""
    found = tryouts(
        tried("fp32", Outcome(0.0, 300.0)),
        tried("int8 minmax, 8-bit", Outcome(0.001, 100.0), reason="OpenVINO answers differently", is_wrong=True),
        tried("int8 minmax, 7-bit", Outcome(0.02, 100.0), reason="a loss of 0.02"),
    )
    begun: list[str] = []
    monkeypatch.setattr(Tryouts, "is_true", lambda self, one: True)
    monkeypatch.setattr(precision, "try_mixed", lambda found, start, *rest: begun.append(start.variant.name))
    subject = Subject(onnx.ModelProto(), [], [], lambda inputs: inputs)
    assert precision._search(found, subject, Spec(), 1.0, Clock(lambda stage, share: None))
    assert begun == ["int8 minmax, 7-bit"]
