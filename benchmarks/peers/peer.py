"""A server that is up: where it is, how it is spoken to, how what it says is checked."""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from benchmarks.peers.arrivals import Arrived, arrivals
from benchmarks.peers.processes import Tree
from benchmarks.peers.questions import Questions, WrongAnswer
from benchmarks.peers.wording import JSON, Wording
from benchmarks.wrk import Expected, Run, Sent, run_wrk

__all__ = ["Peer"]


@dataclass(frozen=True)
class Peer:
    """`base`: scheme, host and port. `wordings`: by kind, those that it speaks. `constants`: by kind, its only answer,
    where it computes none.
    """

    name: str
    base: str
    tree: Tree
    wordings: Mapping[str, Wording]
    constants: Mapping[str, bytes] | None = None

    def sent(self, kind: str, questions: Questions) -> list[Sent]:
        """The requests, in the order of their numbers."""
        put = self.wordings[kind].put
        pairs = zip(questions.served, questions.inputs, strict=True)
        return [put(served, number, array) for number, (served, array) in enumerate(pairs)]

    def ask_all(self, kind: str, questions: Questions) -> list[bytes]:
        """Put each question once, check each answer, and give the bodies. WrongAnswer, with what is wrong."""
        place = urlsplit(self.base)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        bodies = []
        try:
            for number, one in enumerate(self.sent(kind, questions)):
                try:
                    connection.request("POST", one.path, one.body, one.headers)
                    answer = connection.getresponse()
                    body = answer.read()
                except http.client.HTTPException as error:
                    raise WrongAnswer(f"{self.name} breaks off: {error!r}") from error
                if answer.status != http.client.OK:
                    raise WrongAnswer(f"{self.name} answers {answer.status}: {body[:200]!r}")
                self.check(kind, questions, body, number)
                bodies.append(body)
        finally:
            connection.close()
        return bodies

    def check(self, kind: str, questions: Questions, body: bytes, asked: int | None = None) -> None:
        """`asked`: the question's number, where it is known. WrongAnswer unless this is its answer."""
        if self.constants is not None:
            if body != self.constants[kind]:
                raise WrongAnswer(f"{self.name} answers {body[:80]!r}, not its constant")
            return
        number, values = self._read(kind, questions, body)
        if None not in (number, asked) and number != asked:
            raise WrongAnswer(f"{self.name} answers question {number} where {asked} was asked")
        questions.check(asked if number is None else number, values)

    def _read(self, kind: str, questions: Questions, body: bytes) -> tuple[int | None, np.ndarray]:
        try:
            return self.wordings[kind].read(questions.served[0], questions.rows, body)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise WrongAnswer(f"{self.name} answers {body[:80]!r}: {error!r}") from error

    def load(self, kind: str, questions: Questions, folder: Path, connections: int, seconds: int) -> Run:
        """Wrk with these questions in rotation: answers checked before, after, and some of those between."""
        expected = self._expected(kind, questions)
        run = run_wrk(self.base, self.sent(kind, questions), folder, self.tree.cpu_s, connections, seconds, expected)
        self._check_after(kind, questions, run.kept)
        return replace(run, kept=())

    def arrive(self, kind: str, questions: Questions, folder: Path, connections: int, due_s: np.ndarray) -> Arrived:
        """The same with requests at these instants."""
        expected = self._expected(kind, questions)
        run = arrivals(self.base, self.sent(kind, questions), due_s, folder, connections, expected)
        self._check_after(kind, questions, run.kept)
        return replace(run, kept=())

    def _expected(self, kind: str, questions: Questions) -> Expected:
        lengths = [len(body) for body in self.ask_all(kind, questions)]
        # digits of floats differ from one answer to the next, by where in a batch it was computed
        slack = 0 if kind != JSON or self.constants else 2 * questions.answers[0].size + 8
        return Expected(min(lengths) - slack, max(lengths) + slack)

    def _check_after(self, kind: str, questions: Questions, kept: Sequence[bytes]) -> None:
        for body in kept:
            self.check(kind, questions, body)
        self.ask_all(kind, questions)
