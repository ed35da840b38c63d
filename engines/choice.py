"""What will be compiled: the first assignment of batch axes that is proven, else the model as it is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import onnx
import openvino as ov

from engines import batchproof
from engines.agreement import WrongEngine, agree_at, check_agreement, integer_bits, prove_at, twin_of
from engines.batchproof import Blind, Proven, Refuted
from engines.errors import EngineFailed, ModelRefused
from engines.frontend.kinds import exact_outputs
from engines.frontend.ranges import takes_sizes_from_values
from engines.guarded import Guards, first_difference, is_integer
from engines.hardware import usable_threads
from engines.manifest import BatchProof
from engines.passes.dynamic_batch import with_batch_axes
from engines.passes.fixed_shapes import with_sizes
from engines.reference import Arrays
from engines.samples import SCALES, Dim, GivenSampler, Sampler, find_sampler, integer_limits, other_samplers
from engines.targets import openvino as target
from engines.tensor import DYNAMIC, TensorSpec
from engines.verify import agreement_bound, rounding_bound

__all__ = ["Choice", "Run", "Subject", "agrees", "choose", "with_axis"]

_ROUNDING = "the answers change when weights move by one unit in the last place"
Run = Callable[[Arrays], Arrays]


class Subject(NamedTuple):
    """The model whose engine is wanted. `reference` answers what a client sends; `own` are samples of its sender.

    Where the model is a coarser form of what was sent, `reference` has the meaning of that form, which the engine must
    have too, and `ideal` what it should have answered.
    """

    model: onnx.ModelProto
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    reference: Run
    own: Sequence[Arrays] = ()
    ideal: Run | None = None

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.outputs]


class Choice(msgspec.Struct):
    """A graph, its inputs, and whether its rows were proven independent. `steady` is False where the model's own
    answers are only rounding, so that nothing can be compared with them.
    """

    graph: ov.Model
    inputs: list[TensorSpec]
    axes: dict[str, int]
    output_axes: dict[str, int]
    proof: BatchProof
    sampler: Sampler
    notes: list[str]
    integer_bits: int
    guards: Guards
    seed: int
    """Of the first drawn sample that the engine runs."""
    bounds: dict[str, int]
    """Of integer inputs that the engine computes rightly below this number only."""
    steady: bool


def choose(subject: Subject) -> Choice:
    """Raises WrongEngine where the engine is not right, batched or not, and ModelRefused where there is none."""
    reasons: list[str] = []
    wrong: list[Arrays] = []
    for axes in batchproof.axis_candidates(subject.inputs):
        try:
            found = _try_axes(subject, axes)
        except (ModelRefused, WrongEngine) as refused:  # as it is, the model may still be right
            reasons.append(str(refused))
            wrong += [refused.row] if isinstance(refused, WrongEngine) and refused.row else []
            continue
        if isinstance(found, Choice):
            return found
        reasons.append(found.reason)
    # what showed an engine to be wrong has to be answered rightly by the one that is taken instead
    return _unbatched(subject._replace(own=[*subject.own, *wrong]), _why_not(subject.inputs, reasons))


def _why_not(inputs: list[TensorSpec], reasons: list[str]) -> str:
    """One sentence for the index; the reason of the first (most natural) assignment stands for all."""
    if reasons:
        return reasons[0]
    fixed = [f"{spec.name!r} {list(spec.shape)}" for spec in inputs if not {DYNAMIC, 1} & set(spec.shape)]
    if fixed:
        return f"no batch axis: input {fixed[0]} has no dimension that is variable or 1"
    return "no batch axis: no input carries rows in its first dimension"


class _Trial:
    """One engine under test: what it is asked, what it answers, what its guards say."""

    def __init__(self, subject: Subject, axes: dict[str, int], sampler: Sampler | None = None) -> None:
        self.subject, self.axes = subject, axes
        by_values = takes_sizes_from_values(subject.model)
        limits = integer_limits(by_values)
        given, sampler = sampler, sampler or _sampler(subject, axes, limits)
        self.graph = target.read_model(with_batch_axes(subject.model, axes) if axes else subject.model)
        self.run = _runner(self.graph, subject.names)
        if given is None:
            sampler = _taken_by_both(sampler, subject, self.run, limits)
        self.rounding = rounding_bound(subject.model)
        bound, exact = agreement_bound(subject.model), exact_outputs(subject.model)
        self.guards = Guards(target.guards_of(self.graph), bound, exact)
        self.sampler, self.bounds = self.guards.narrowed(
            sampler, subject.inputs, axes, self.run.watched, subject.reference, limits
        )
        self.rows = self.sampler.rows()
        self.others, pinned = other_samplers(self.sampler, subject.reference, subject.own)
        self.pinned = {} if by_values else pinned  # other sizes may need other values

    def is_steady(self) -> bool:
        """Raises WrongEngine where the engine is not right on synthetic samples, or on those of the sender."""
        given = [row for row in self.subject.own if not any(row is other for other in self.rows)]
        checks = [agrees(self.subject, self.run, rows, self.guards) for rows in (self.rows, given) if rows]
        return all(checks)

    def agree_elsewhere(self) -> None:
        """The same at other sizes of the variable dimensions."""
        subject = self.subject
        agree_at(
            self.others, self.run.watched, subject.reference, subject.model, _runner_of(subject), self.guards
        )  # fmt: skip

    def first_seed(self) -> int:
        """Of a sample that can be timed. Raises ModelRefused where there is none."""
        failed: EngineFailed | None = None
        for seed in range(len(SCALES) if self.guards.raises else 0):
            try:
                self.run(self.sampler.draw(seed))
                return seed
            except EngineFailed as error:
                failed = error
        if failed is not None:
            raise ModelRefused(f"the engine refuses every sample: {failed}")
        return 0

    def integer_bits(self) -> int:
        subject = self.subject
        return integer_bits(self.run.watched, subject.reference, subject.model, subject.inputs, self.sampler)


def _trial(subject: Subject, axes: dict[str, int]) -> tuple[_Trial, list[str]]:
    """An engine whose dimensions have the one size that the reference takes, where it takes no other: engines do not
    look at all that they are given. And what is to be said of that.
    """
    trial, notes = _Trial(subject, axes), list[str]()
    while trial.pinned:
        for (name, axis), size in trial.pinned.items():
            notes.append(f"dimension {axis} of input {name!r} is {size} alone: ONNX Runtime took no other size")
        trial = _Trial(_with_sizes(trial.subject, trial.pinned), axes)
    return trial, notes


def _with_sizes(subject: Subject, sizes: Mapping[Dim, int]) -> Subject:
    inputs = [
        msgspec.structs.replace(spec, shape=tuple(sizes.get((spec.name, i), d) for i, d in enumerate(spec.shape)))
        for spec in subject.inputs
    ]
    return subject._replace(model=with_sizes(subject.model, sizes), inputs=inputs)


def agrees(subject: Subject, run: target.runner, rows: Sequence[Arrays], guards: Guards) -> bool:
    """`check_agreement` for an engine of the subject: raises WrongEngine where it does not answer as the reference."""
    return check_agreement(run.watched, subject.reference, rows, subject.model, _runner_of(subject), guards)


def _runner_of(subject: Subject) -> Callable[[onnx.ModelProto], Run]:
    return functools.partial(_runner, outputs=subject.names)


def _sampler(subject: Subject, axes: dict[str, int], limits: Sequence[int]) -> Sampler:
    try:
        return find_sampler(subject.inputs, axes, subject.reference, limits)
    except ModelRefused:
        if len(subject.own) < 2:
            raise
        return GivenSampler(subject.inputs, axes, subject.own)


def _taken_by_both(sampler: Sampler, subject: Subject, run: Run, limits: Sequence[int]) -> Sampler:
    """Samples on which the engine does not raise either, where there are some: else those that the reference takes."""

    def both(row: Arrays) -> Arrays:
        run(row)
        return subject.reference(row)

    try:
        for row in sampler.rows():
            run(row)
    except EngineFailed:
        with contextlib.suppress(ModelRefused):
            return find_sampler(subject.inputs, sampler.axes, both, limits)
    return sampler


def _try_axes(subject: Subject, axes: dict[str, int]) -> Choice | Refuted | Blind:
    trial, notes = _trial(subject, axes)
    subject = trial.subject
    steady, verdict = _first_verdict(trial)
    if isinstance(verdict, Blind) and _shows_more_of_own(trial):
        trial = _Trial(subject, axes, GivenSampler(subject.inputs, axes, subject.own))
        steady, verdict = _first_verdict(trial)
    prove_run: Run = trial.run
    if isinstance(verdict, Blind):
        prove_run = _runner(with_batch_axes(twin_of(subject.model, trial.rows), axes), subject.names)
        blind, verdict = verdict, batchproof.prove(prove_run, trial.rows, axes, trial.rounding)
        if isinstance(verdict, Proven):
            notes.append(f"{blind.reason}; proven on a twin with random weights instead")
    if not isinstance(verdict, Proven):
        return verdict
    if steady and all(spec.shape[axes[spec.name]] == DYNAMIC for spec in subject.inputs):
        meaning = _meaning_of_rows(trial, batchproof.join(trial.rows[:3], axes))
        if meaning:
            return Refuted(meaning)
    trial.agree_elsewhere()
    verdict = prove_at(trial.others, prove_run, axes, trial.rounding, verdict)
    if isinstance(verdict, Refuted):
        return verdict
    if trial.sampler.is_variable and not trial.others:
        notes.append(f"proven with variable dimensions of {trial.sampler.size} alone: others would have taken too long")
    batched = [with_axis(spec, axes[spec.name]) for spec in subject.inputs]
    return _choice(trial, batched, axes, verdict.output_axes, verdict.proof, notes, steady)


def _first_verdict(trial: _Trial) -> tuple[bool, Proven | Refuted | Blind]:
    """Whether it is steady, and what its rows prove by its own answers."""
    if not trial.is_steady():
        return False, Blind(_ROUNDING)
    return True, batchproof.prove(trial.run, trial.rows, trial.axes, trial.rounding)


def _shows_more_of_own(trial: _Trial) -> bool:
    """An engine of few bits knows the ranges of samples like the sender's: of others, it may answer all alike."""
    subject = trial.subject
    floats = not any(is_integer(spec) for spec in subject.inputs)
    return subject.ideal is not None and floats and not trial.sampler.is_variable and len(subject.own) >= len(SCALES)


def _unbatched(subject: Subject, reason: str) -> Choice:
    trial, notes = _trial(subject, {})
    steady = trial.is_steady()
    notes += [] if steady else [f"{_ROUNDING}; the engine was checked on a twin with random weights instead"]
    trial.agree_elsewhere()
    return _choice(trial, trial.subject.inputs, {}, {}, BatchProof(False, reason), notes, steady)


def _choice(
    trial: _Trial, inputs: list[TensorSpec], axes: dict[str, int], output_axes: dict[str, int], proof: BatchProof,
    notes: list[str], steady: bool,
) -> Choice:  # fmt: skip
    return Choice(
        trial.graph, inputs, axes, output_axes, proof, trial.sampler, notes, trial.integer_bits(), trial.guards,
        trial.first_seed(), trial.bounds, steady,
    )  # fmt: skip


def _meaning_of_rows(trial: _Trial, company: Arrays) -> str:
    """Why several rows mean something else to the model as its file has it (one cloud of points, say), or nothing."""
    try:
        trial.subject.reference(company)
    except Exception:  # it takes one row only, whatever its shapes say: there is no meaning to change
        return ""
    guards = trial.guards
    wrong = first_difference(trial.run, trial.subject.reference, [company], guards.bound, guards.exact)
    return f"rows belong together: {wrong}" if wrong else ""


def _runner(graph: ov.Model | onnx.ModelProto, outputs: list[str]) -> target.runner:
    if isinstance(graph, onnx.ModelProto):
        graph = target.read_model(graph)
    return target.runner(target.compile_model(graph, 1, usable_threads()), outputs)


def with_axis(spec: TensorSpec, axis: int) -> TensorSpec:
    """The tensor with any number of rows along this axis."""
    shape = tuple(DYNAMIC if i == axis else d for i, d in enumerate(spec.shape))
    return msgspec.structs.replace(spec, shape=shape, batch_axis=axis)
