"""Different inputs, what the reference answers to them, and whether an answer is one of those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from benchmarks.peers.models import Served

__all__ = ["COUNT", "Questions", "WrongAnswer", "questions_for", "questions_over"]

COUNT = 16
"""At least."""


class WrongAnswer(Exception):
    """A server said something else than the reference."""


@dataclass(frozen=True)
class Questions:
    """By number: the model that is asked, its input [rows, ...], and the answer [rows, classes] by ONNX Runtime."""

    served: tuple[Served, ...]
    inputs: tuple[np.ndarray, ...]
    answers: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        for number in range(len(self.answers)):
            if any(self._near(self.answers[number], other, 4) for other in range(number)):
                raise ValueError("two of the answers are alike: a mix-up of them would not be seen")

    @property
    def rows(self) -> int:
        """Of each."""
        return len(self.inputs[0])

    def check(self, number: int | None, answer: np.ndarray) -> None:
        """Raise WrongAnswer unless it is the answer to that question, or to any where the server tells no number."""
        numbers: Sequence[int] = range(len(self.answers)) if number is None else (number,)
        if any(0 <= at < len(self.answers) and self._near(answer, at) for at in numbers):
            return
        shown = np.array2string(answer.ravel()[:4])
        raise WrongAnswer(f"{shown}... answers question {'any' if number is None else number}")

    def _near(self, answer: np.ndarray, number: int, times: float = 1) -> bool:
        right = self.answers[number]
        bound = times * self.served[number].tolerance * float(np.abs(right).max())
        return answer.shape == right.shape and bool(np.all(np.abs(answer - right) <= bound))


def questions_for(served: Served, rows: int = 1, count: int = COUNT) -> Questions:
    """Seeded normal numbers."""
    return questions_over([served], rows, count)


def questions_over(models: Sequence[Served], rows: int = 1, count: int = COUNT) -> Questions:
    """The same to each model in turn, all at least once."""
    rng = np.random.default_rng(rows)
    served = tuple(models[number % len(models)] for number in range(max(count, len(models))))
    inputs = tuple(rng.standard_normal((rows, *one.row), dtype=np.float32) for one in served)
    sessions = {one.name: _session(one) for one in models}
    answers = (sessions[one.name].run([one.output], {one.input: x})[0] for one, x in zip(served, inputs, strict=True))
    return Questions(served, inputs, tuple(answers))


def _session(served: Served) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(served.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
