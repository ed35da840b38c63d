"""The samples that come with a model: an npz of arrays by input name, first axis = samples. Never held as a whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from engines.errors import ModelRefused
from engines.samples import SCALES, Sampler
from engines.tensor import DYNAMIC, TensorSpec, datatype
from engines.zipped import Member, blocks, members

__all__ = ["DrawnSamples", "FileSamples", "Sample", "Samples", "SomeSamples", "Truth", "read_samples"]

Truth = Literal["labels", "targets"]
_TRUTHS: tuple[Truth, Truth] = ("labels", "targets")
_MAX_SAMPLES = 10**6
_HALF_VOID = np.dtype("V2")


class Sample(NamedTuple):
    """One request, and what its answer should be: a class number, an array, or None where that is not known."""

    inputs: dict[str, np.ndarray]
    truth: np.ndarray | None


class Samples(Protocol):
    """What an engine is judged on. Iterating reads from the start, one sample in memory at a time."""

    @property
    def count(self) -> int: ...

    @property
    def truth(self) -> Truth | None: ...

    @property
    def synthetic(self) -> bool: ...

    def __iter__(self) -> Iterator[Sample]: ...


class DrawnSamples:
    """Samples made up by the inputs' types, for a model that came without any: those that the proofs begin with."""

    truth: Truth | None = None
    synthetic = True

    def __init__(self, sampler: Sampler, count: int) -> None:
        self._sampler, self.count = sampler, count

    def __iter__(self) -> Iterator[Sample]:
        for seed in range(self.count):
            yield Sample(self._sampler.draw(seed, SCALES[seed] if seed < len(SCALES) else 1.0), None)


class SomeSamples:
    """Those of other samples that are numbered in `kept`, ascending."""

    def __init__(self, samples: Samples, kept: Sequence[int]) -> None:
        self._samples, self._kept = samples, kept
        self.count, self.truth, self.synthetic = len(kept), samples.truth, samples.synthetic

    def __iter__(self) -> Iterator[Sample]:
        kept = set(self._kept)
        first = itertools.islice(self._samples, max(kept, default=-1) + 1)  # what lies behind need not be read
        return (sample for i, sample in enumerate(first) if i in kept)


class FileSamples:
    """Samples of a file that `read_samples` has checked; the file must not change meanwhile."""

    synthetic = False

    def __init__(
        self, path: Path, arrays: Mapping[str, Member], inputs: Sequence[TensorSpec], truth: Truth | None
    ) -> None:
        self._path, self._arrays, self._inputs, self.truth = path, arrays, inputs, truth
        self.count = next(iter(arrays.values())).shape[0]

    def __iter__(self) -> Iterator[Sample]:
        streams = {spec.name: self._requests(spec) for spec in self._inputs}
        truths = self._truths()
        for _ in range(self.count):
            yield Sample({name: next(stream) for name, stream in streams.items()}, next(truths))

    def _requests(self, spec: TensorSpec) -> Iterator[np.ndarray]:
        """A sample is one row where it lacks the first axis, else a whole input."""
        member = self._arrays[spec.name]
        whole = len(member.shape) > len(spec.shape)
        for block in blocks(self._path, member):
            fitting = _converted(self._path, spec, block)
            for i in range(len(block)):
                yield np.asarray(fitting[i] if whole else fitting[i : i + 1])

    def _truths(self) -> Iterator[np.ndarray | None]:
        if self.truth is None:
            while True:
                yield None
        as_truth = _classes if self.truth == "labels" else _targets
        done = 0
        for block in blocks(self._path, self._arrays[self.truth]):
            yield from (np.asarray(one) for one in as_truth(self._path, block, done))
            done += len(block)


def read_samples(path: Path, inputs: Sequence[TensorSpec], *, with_truth: bool) -> FileSamples:
    """Check an npz against the inputs that clients send (see `engines.inputs`); every value of it is read once.

    An array has the input's shape with any number of samples in its first dimension, or in front of it. Its type is
    the input's, or one whose values the input's type holds (floats may be rounded). `with_truth` asks for `labels`
    ([samples], whole numbers of any type, or one-hot [samples, classes]) or `targets` ([samples, ...], numbers) beside
    them. Memory: some MiB, whatever the size of the file. Raises ModelRefused with what does not fit.
    """
    arrays = members(path)
    names = {spec.name for spec in inputs}
    truth = _truth_of(path, set(arrays), names) if with_truth else None
    expected = names | ({truth} if truth else set())
    if set(arrays) != expected:
        hint = (
            "; 'labels' and 'targets' belong into the validation file" if set(arrays) - expected <= set(_TRUTHS) else ""
        )
        raise _refusal(path, f"it has the arrays {sorted(arrays)}; expected {sorted(expected)}{hint}")
    for spec in inputs:
        _check_shape(path, spec, arrays[spec.name].shape)
    if truth:
        _check_truth(path, truth, arrays[truth])
    counts = {name: member.shape[0] for name, member in arrays.items()}
    if len(set(counts.values())) != 1 or not 1 <= min(counts.values()) <= _MAX_SAMPLES:
        raise _refusal(path, f"arrays must hold the same number of samples, 1 to {_MAX_SAMPLES}; they hold {counts}")
    samples = FileSamples(path, arrays, inputs, truth)
    for _ in samples:  # truncated data, values that do not fit
        pass
    return samples


def _truth_of(path: Path, found: set[str], inputs: set[str]) -> Truth:
    truths = [name for name in _TRUTHS if name in found - inputs]
    if len(truths) != 1:
        raise _refusal(path, f"a validation file holds either 'labels' or 'targets'; this one has {sorted(found)}")
    return truths[0]


def _check_truth(path: Path, truth: Truth, member: Member) -> None:
    kind, shape = member.dtype.kind, member.shape
    if truth == "labels" and (kind == "V" or sum(size != 1 for size in shape[1:]) > 1):
        raise _refusal(
            path, f"'labels' has type {member.dtype} and shape {list(shape)}; expected integers [samples], or one-hot "
            "[samples, classes]"
        )  # fmt: skip
    if truth == "targets" and kind == "V":
        raise _refusal(path, f"'targets' has type {member.dtype}; expected booleans, integers or floats")


def _classes(path: Path, block: np.ndarray, first: int) -> np.ndarray:
    """Labels [samples], int64, of class numbers of any type or of one-hot rows. `first` is the first one's number."""
    rows = block.reshape(len(block), -1)
    if rows.shape[1] > 1:
        wrong = ((rows != 0) & (rows != 1)).any(axis=1) | ((rows == 1).sum(axis=1) != 1)
        _refuse_first(path, wrong, first, "the label is not one-hot: expected a single 1, and 0 else")
        return np.asarray(rows.argmax(axis=1))
    labels = rows[:, 0]
    if labels.dtype.kind == "f":
        _refuse_first(path, ~np.isfinite(labels) | (labels != np.trunc(labels)), first, "the label is no whole number")
    if labels.size and labels.min() < 0:
        raise ModelRefused(f"{path.name}: a label is {labels.min()}; classes are numbered from 0 on")
    return labels.astype(np.int64)


def _targets(path: Path, block: np.ndarray, first: int) -> np.ndarray:
    if block.dtype.kind == "f":
        wrong = np.isnan(block.reshape(len(block), -1)).any(axis=1)
        _refuse_first(path, wrong, first, "the target is not a number (NaN)")
    return block


def _refuse_first(path: Path, wrong: np.ndarray, first: int, why: str) -> None:
    if wrong.any():
        raise _refusal(path, f"sample {first + int(wrong.argmax())}: {why}")


def _check_shape(path: Path, spec: TensorSpec, shape: tuple[int, ...]) -> None:
    """The first axis counts samples: in place of the input's own first one where that may have size 1, or before it."""
    forms = [spec.shape]
    if spec.shape and spec.shape[0] in (DYNAMIC, 1):
        forms.insert(0, spec.shape[1:])
    if not any(_fits(form, shape[1:]) for form in forms):
        expected = " or ".join(_dims(form) for form in forms)
        raise _refusal(path, f"{spec.name!r} has shape {list(shape)}; expected {expected}")


def _fits(form: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(form) == len(shape) and all(size in (DYNAMIC, got) for size, got in zip(form, shape, strict=True))


def _dims(form: Sequence[int]) -> str:
    return "[samples" + "".join(f", {'any' if size == DYNAMIC else size}" for size in form) + "]"


def _converted(path: Path, spec: TensorSpec, block: np.ndarray) -> np.ndarray:
    """In the input's own type; ModelRefused where that would change a value by more than rounding."""
    want = datatype(spec.datatype)
    if block.dtype == _HALF_VOID and want.name == "BF16":
        return block.view(want.numpy)
    if block.dtype == want.numpy:
        return block
    if block.dtype != _HALF_VOID:
        with np.errstate(all="ignore"):
            changed = block.astype(want.numpy)
            if _kept(block, changed, want.is_float):
                return changed
    raise _refusal(
        path, f"{spec.name!r} has type {block.dtype}; expected {want.numpy} ({want.name}) or values that it holds"
    )


def _kept(before: np.ndarray, after: np.ndarray, to_float: bool) -> bool:
    if to_float:
        return np.array_equal(np.isfinite(before), np.isfinite(after))
    return np.array_equal(before, after)


def _refusal(path: Path, reason: str) -> ModelRefused:
    return ModelRefused(f"{path.name}: {reason}")
