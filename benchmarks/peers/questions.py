"""Sixteen different inputs, what the reference answers to them, and whether an answer is one of those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from benchmarks.peers.models import Served

__all__ = ["COUNT", "Questions", "WrongAnswer", "questions_for"]

COUNT = 16


class WrongAnswer(Exception):
    """A server said something else than the reference."""


@dataclass(frozen=True)
class Questions:
    """`inputs`: [rows, ...] each; `answers`: [rows, classes] each, by ONNX Runtime. A number is an index of both."""

    served: Served
    inputs: tuple[np.ndarray, ...]
    answers: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        for number, one in enumerate(self.answers):
            for other in self.answers[:number]:
                if self._near(one, other, 4):
                    raise ValueError("two of the answers are alike: a mix-up of them would not be seen")

    def check(self, number: int | None, answer: np.ndarray) -> None:
        """Raise WrongAnswer unless it is the answer to that question, or to any where the server tells no number."""
        numbers: Sequence[int] = range(len(self.answers)) if number is None else (number,)
        if any(0 <= at < len(self.answers) and self._near(answer, self.answers[at]) for at in numbers):
            return
        shown = np.array2string(answer.ravel()[:4])
        raise WrongAnswer(f"{self.served.name} answers {shown}... to question {'any' if number is None else number}")

    def _near(self, a: np.ndarray, b: np.ndarray, times: float = 1) -> bool:
        bound = times * self.served.tolerance * float(np.abs(b).max())
        return a.shape == b.shape and bool(np.all(np.abs(a - b) <= bound))


def questions_for(served: Served, rows: int = 1, count: int = COUNT) -> Questions:
    """Seeded normal numbers."""
    rng = np.random.default_rng(rows)
    inputs = tuple(rng.standard_normal((rows, *served.row), dtype=np.float32) for _ in range(count))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(served.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answers = tuple(session.run([served.output], {served.input: one})[0] for one in inputs)
    return Questions(served, inputs, answers)
