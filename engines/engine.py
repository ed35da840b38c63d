"""One engine: its axes proven, its streams measured, compiled, held against the reference, and timed."""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Sequence
from typing import NamedTuple

import msgspec
import onnx
import openvino as ov

from engines import batchproof
from engines.accuracy import assess, budget_of, shortfall
from engines.agreement import WrongEngine
from engines.choice import Choice, Run, Subject, agrees, choose
from engines.clock import Clock, TimeLimit
from engines.errors import ModelRefused
from engines.hardware import usable_threads
from engines.layers import first_differing_layer
from engines.manifest import StreamTiming
from engines.npz import DrawnSamples, Samples, SomeSamples
from engines.reference import Arrays, Reference, Remembered
from engines.report import Accuracy, Layer, Speed
from engines.samples import SCALES
from engines.spec import USUAL_BATCH, Spec
from engines.targets import openvino as target
from engines.targets.openvino_batches import enough_rows
from engines.targets.openvino_profile import layers_of, speeds_of
from engines.tensor import DYNAMIC

__all__ = ["COARSE", "Engine", "batch_of", "counts_decisions", "judged_by", "make_engine", "run_sample"]

_TIMING_ROWS = 8
_ENOUGH, _UNSEEN = 1e-3, 8.0
"""Of the largest answer: what a sample may differ by that was not among those of the proof."""
COARSE = 2.0**-4
"""Of the largest answer: beyond it, a sample of an engine of few bits is pointed out."""
_ODD_SHARE = 0.01
"""Of samples, how many an engine of few bits may answer otherwise than its graph: a value in the middle between two
steps ends on either side, and now and then that decides. What overflows is wrong in most of them."""
_LAYER_BOUND = 1e-4
_CHECK_BUDGET_S = 10.0
"""For samples without a truth; a validation set is run to its end."""


class Engine(NamedTuple):
    """What was built, and what was found out about it. `blob` is what a server imports."""

    precision: str
    choice: Choice
    timings: list[StreamTiming]
    blob: bytes
    accuracy: Accuracy
    layers: tuple[Layer, ...]
    speeds: tuple[Speed, ...]
    max_batch: int
    enough_rows: int = 0


def make_engine(
    subject: Subject, samples: Sequence[Samples], spec: Spec, threads: int, clock: Clock, precision: str = "fp32"
) -> Engine:
    """Build it for this machine. Raises WrongEngine where it answers differently from the reference, naming the first
    layer that does; ModelRefused where there is no engine, or it loses too much.
    """
    clock.begin("prove")
    try:
        choice = choose(subject)
    except WrongEngine as wrong:
        raise WrongEngine(f"{wrong}{_first_layer(subject, wrong.row)}", wrong.row) from wrong
    clock.begin("measure")
    timings = _measure(choice, threads or usable_threads(), spec)
    clock.begin("compile")
    config = timings[0].streams, timings[0].threads
    blob = target.export(target.compile_model(choice.graph, *config))
    clock.begin("check")
    run = target.runner(target.reimported(blob, *config), subject.names, blob)  # as a server will run it
    accuracy = _checked(subject, choice, run, samples, spec, precision)
    max_batch = (spec.max_batch or USUAL_BATCH) if choice.axes else 1
    layers, speeds = layers_of(run.compiled, choice.graph), _speeds(choice, run.compiled, max_batch)
    enough = _enough_rows(choice, run.compiled, timings[0].rows_per_s)
    return Engine(precision, choice, timings, blob, accuracy, layers, speeds, max_batch, enough)


def _checked(
    subject: Subject, choice: Choice, run: target.runner, given: Sequence[Samples], spec: Spec, precision: str
) -> Accuracy:
    """The engine that will serve, held against the reference and the truth of the first samples that were given, and
    against the reference on all others. Raises WrongEngine or ModelRefused.
    """
    judged = given or [DrawnSamples(choice.sampler, len(SCALES))]
    if subject.ideal is None:
        accuracy = _compared(subject, choice, run, judged[0], spec)
        budget, by_decisions = spec.accuracy_budget, False
    else:
        answers = Remembered(run)  # held against two references
        _compared(subject, choice, run, judged[0], Spec(), budget_s=_CHECK_BUDGET_S, answers=answers)
        accuracy = judged_by(subject.ideal, run, choice, judged[0], spec, answers=answers)
        budget, by_decisions = budget_of(spec, accuracy), counts_decisions(spec, accuracy)
    for more in judged[1:]:
        _compared(subject, choice, run, more, Spec())
    lacking = shortfall(accuracy, budget, by_decisions=by_decisions, by_others=subject.ideal is not None)
    if lacking:
        raise ModelRefused(f"precision {precision}: {lacking}")
    return accuracy


def counts_decisions(spec: Spec, accuracy: Accuracy) -> bool:
    """Whether the largest scores count beside the metric: nobody said by what the answers are to be judged."""
    return spec.metric is None and accuracy.against == "reference"


def judged_by(
    ideal: Run, run: target.runner, choice: Choice, given: Samples, spec: Spec, budget_s: float | None = None, *,
    answers: Run | None = None,
) -> Accuracy:  # fmt: skip
    """What an engine of few bits loses against `ideal`, by the metric; no difference of one sample is too large.

    After `budget_s` no more samples are run (to see which are refused, and again to judge the others); None: a
    validation set is run to its end, other samples for 10 s. `answers` are those of `run`, if some are known.
    """
    return _assessed(answers or run, ideal, choice, _answered(run, choice, given, budget_s), spec, COARSE, budget_s)


def _budget_s(given: Samples, asked_s: float | None) -> float | None:
    return asked_s or (None if given.truth else _CHECK_BUDGET_S)


def _assessed(
    run: Run, reference: Run, choice: Choice, answered: _Answered, spec: Spec, tolerance: float,
    budget_s: float | None, exact: Container[str] = (),
) -> Accuracy:  # fmt: skip
    accuracy = assess(
        run, _naming(reference, answered.numbers), answered.samples, spec.metric, tolerance=tolerance,
        axes=choice.axes, output_axes=choice.output_axes, budget_s=_budget_s(answered.samples, budget_s), exact=exact,
        output=spec.output,
    )  # fmt: skip
    return msgspec.structs.replace(accuracy, available=answered.available)


def _compared(
    subject: Subject, choice: Choice, run: target.runner, given: Samples, spec: Spec, budget_s: float | None = None, *,
    answers: Run | None = None,
) -> Accuracy:  # fmt: skip
    answered, guards = _answered(run, choice, given, budget_s), choice.guards
    kept, judged = answered.numbers, answered.samples
    tolerance = min(guards.bound, max(_ENOUGH, _UNSEEN * guards.allowed))
    accuracy = _assessed(answers or run, subject.reference, choice, answered, spec, tolerance, budget_s, guards.exact)
    is_odd = subject.ideal is not None and accuracy.over_bound <= _ODD_SHARE * accuracy.samples
    if accuracy.over_bound and choice.steady and not is_odd:
        wanted = {one.index for one in accuracy.worst}
        rows = [sample.inputs for i, sample in enumerate(judged) if i in wanted]
        try:
            # rounding may do more to these than to those that the bound was measured on
            agrees(subject, run, rows, guards)
        except WrongEngine as wrong:
            raise WrongEngine(
                f"{accuracy.over_bound} of {accuracy.samples} samples differ from ONNX Runtime by more than rounding, "
                f"sample {kept[accuracy.worst[0].index]} the most: {wrong}{_first_layer(subject, wrong.row)}",
                wrong.row,
            ) from wrong
    worst = tuple(msgspec.structs.replace(one, index=kept[one.index]) for one in accuracy.worst)
    return msgspec.structs.replace(accuracy, worst=worst)


def _naming(reference: Run, numbers: Sequence[int]) -> Run:
    """The same for samples that come in this order: one that cannot be run is refused by its number."""
    numbered = iter(numbers)

    return lambda inputs: run_sample(reference, inputs, next(numbered))


def run_sample(reference: Run, inputs: Arrays, number: int) -> Arrays:
    """Run a sample that was sent. Raises ModelRefused with its number."""
    try:
        return reference(inputs)
    except Exception as error:
        said = str(error).splitlines()[0][:300]
        raise ModelRefused(f"sample {number} cannot be run by ONNX Runtime: {said}") from error


class _Answered(NamedTuple):
    """Samples that the engine does not refuse by a guard, their numbers, and how many such there may be."""

    samples: Samples
    numbers: Sequence[int]
    available: int


def _answered(run: target.runner, choice: Choice, samples: Samples, budget_s: float | None) -> _Answered:
    """Those looked at within the budget; where nothing can refuse, all. Raises ModelRefused for none."""
    guards = choice.guards
    if not any(guards.judged) and not guards.raises:
        return _Answered(samples, range(samples.count), samples.count)
    limit = TimeLimit(_budget_s(samples, budget_s) or math.inf)
    refused, seen = {}, 0
    for sample in samples:
        said = guards.refusal(run.watched, sample.inputs)
        if said:
            refused[seen] = said
        seen += 1
        if limit.is_over:
            break
    if len(refused) == seen:
        raise ModelRefused(f"the engine refuses every sample: {next(iter(refused.values()))}")
    if refused and not samples.synthetic:
        first, why = next(iter(refused.items()))
        note = f"{len(refused)} of {seen} samples are refused, the first is {first}: {why}"
        choice.notes.extend([] if note in choice.notes else [note])
    kept = [i for i in range(seen) if i not in refused]
    some = samples if len(kept) == samples.count else SomeSamples(samples, kept)
    return _Answered(some, kept, samples.count - len(refused))


def _first_layer(subject: Subject, row: Arrays) -> str:
    """Where the engine goes wrong, in words; nothing where that cannot be seen."""
    if not row:
        return ""

    def engine_of(opened: onnx.ModelProto, names: Sequence[str]) -> Run:
        return target.runner(target.compile_model(target.read_model(opened), 1, usable_threads()), names)

    try:
        first = first_differing_layer(subject.model, row, Reference, engine_of, _LAYER_BOUND)
    except Exception:  # a search for more words must not hide the reason itself
        return ""
    if first is None:
        return ""
    return (
        f"; the first layer that differs is {first.op_type} {first.node!r} (output {first.output!r}, off by "
        f"{first.difference:.3g}, bound {first.bound:.3g})"
    )


def _measure(choice: Choice, threads: int, spec: Spec) -> list[StreamTiming]:
    rows = _TIMING_ROWS if choice.axes else 1
    one_stream = spec.objective == "latency"  # all threads for each request, whatever that costs the others
    return target.time_streams(choice.graph, batch_of(choice, rows), rows, threads, one_stream=one_stream)


def _speeds(choice: Choice, compiled: ov.CompiledModel, max_batch: int) -> tuple[Speed, ...]:
    """At one row and at `max_batch`; where that takes too long to be timed again, the proof has run it once."""
    speeds = speeds_of(compiled, functools.partial(batch_of, choice), max_batch)
    full_s = choice.proof.full_batch_s
    if speeds[-1].rows < max_batch == batchproof.FULL_BATCH_ROWS and full_s:
        once = Speed(max_batch, round(full_s * 1e6, 1), round(max_batch / full_s, 1), 1)
        speeds = (speeds[0], once)
    return speeds


def _enough_rows(choice: Choice, compiled: ov.CompiledModel, rows_per_s: float) -> int:
    """Known for rows of one shape alone: a model whose rows are short now and long then has no such number."""
    has_one_shape = all(
        size != DYNAMIC for tensor in choice.inputs for at, size in enumerate(tensor.shape)
        if at != choice.axes.get(tensor.name)
    )  # fmt: skip
    if not choice.axes or not has_one_shape:
        return 0
    return enough_rows(compiled, functools.partial(batch_of, choice), rows_per_s)


def batch_of(choice: Choice, rows: int) -> Arrays:
    """An input of so many rows, all different; of one where the model is not batched."""
    drawn = [choice.sampler.draw(choice.seed + row) for row in range(rows)]
    return batchproof.join(drawn, choice.axes) if choice.axes else drawn[0]
