"""The pure parts of `bitserve tune`: loads, spaces, samplers, verdicts, and what is written. Needs optuna."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from app.tune.config_edit import with_values, write_config
from app.tune.errors import TuneFailed
from app.tune.load import drawn, recorded
from app.tune.sampling import SEARCHES, Sampler
from app.tune.search import search
from app.tune.space import Parameters, Space, changes, space_of
from app.tune.verdict import Measured, best, finalists, front, is_better

CURRENT = Parameters(2, 2, 32, 0)


def measured(
    p99_ms: float, peak: float, parameters: Parameters = CURRENT, failures: int = 0
) -> Measured:  # fmt: skip
    return Measured(parameters, 100, failures, "", p99_ms / 2, p99_ms, 50.0, peak, 1.0, 0.1)


# -- loads -----------------------------------------------------------------------------------------------------------


def test_arrivals_are_poisson_and_seeded() -> None:
    load = drawn(500, 3, 20, seed=4)
    assert np.array_equal(load.due_s, drawn(500, 3, 20, seed=4).due_s)
    assert not np.array_equal(load.due_s[:50], drawn(500, 3, 20, seed=5).due_s[:50])
    assert load.due_s[0] == 0
    assert load.due_s[-1] < 20
    assert abs(len(load.due_s) - 10_000) < 500  # five standard deviations
    gaps = np.diff(load.due_s)
    assert gaps.min() >= 0
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05), "as an exponential's"
    assert load.total_rows == 3 * len(load.due_s)


RECORDINGS = {
    "lines": '{"at_s": 12.5, "rows": 2}\n\n{"at_s": 12.0, "rows": 1}\n{"at_s": 13.0, "rows": 4}\n',
    "csv": "at_s,rows\n12.5,2\n12,1\n13.0,4\n",
    "log": 'library: no JSON\n{"message": "Started"}\n'.join(
        [
            '{"message": "m/1 is ready"}\n',
            '{"message": "infer", "model": "m", "received_s": 12.5, "rows": 2, "status": 200}\n'
            '{"message": "infer", "model": "other", "received_s": 12.1, "rows": 9}\n'
            '{"message": "infer", "model": "m", "received_s": 12.0, "rows": 1}\n'
            '{"message": "infer", "model": "m", "received_s": 12.2, "rows": 0, "status": 400}\n'
            '{"message": "infer", "model": "m", "received_s": 13.0, "rows": 4}\n',
        ]
    ),
}


@pytest.mark.parametrize("kind", RECORDINGS)
def test_a_recording_is_read_in_its_order_from_its_first_request(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "load"
    file.write_text(RECORDINGS[kind])
    load = recorded(file, "m")
    assert load.due_s.tolist() == [0, 0.5, 1]
    assert load.rows.tolist() == [1, 2, 4]
    assert recorded(file, "m", seconds=0.5).rows.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no request to 'm' in it"),
        ("hello", "line 1 is no JSON"),
        ("[1]", "line 1 is no JSON object"),
        ('{"at": 1}', "line 1 has no at_s"),
        ('{"at_s": "x", "rows": 1}', "line 1 has no numbers: x, 1"),
        ('{"at_s": 1}', "line 1 has no numbers: 1, None"),
        ('{"at_s": 1, "rows": 0}', "line 1 is at 1 s with 0 rows; expected"),
        ('{"at_s": NaN, "rows": 1}', "line 1 is at nan s"),
        ("at_s,rows\n1,2,3", "row 2 has 3 values"),
        ("at_s,rows\n1,x", "row 2 has no numbers"),
    ],
)
def test_what_is_no_recording_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "load"
    file.write_text(text)
    with pytest.raises(TuneFailed, match=said):
        recorded(file, "m")


# -- spaces and samplers ---------------------------------------------------------------------------------------------


def test_a_space_holds_what_can_differ_and_the_current_setting() -> None:
    odd = Parameters(3, 1, 24, 700)
    space = space_of(odd, threads=2, proven_rows=32, preferred=[8], rows=[1, 6], p99_limit_ms=4)
    assert space.lanes == ((1, 1), (1, 2), (2, 2), (3, 1))
    assert space.batches == (8, 16, 24, 32)
    assert space.delays_us == (0, 200, 500, 700, 1000, 2000)
    assert space.at(*space.position_of_current()) == odd
    alone = space_of(Parameters(2, 2, 0, 0), threads=2, proven_rows=1)
    assert (alone.batches, alone.delays_us) == ((0,), (0,))


def test_a_delay_for_which_no_batch_grows_is_no_setting_of_its_own() -> None:
    space = Space(((1, 1),), (4, 16), (0, 500), Parameters(1, 1, 4, 500), smallest_rows=4)
    assert space.at(0, 0, 1) == space.current
    assert space.at(0, 0, 0) == Parameters(1, 1, 4, 0)
    assert space_of(CURRENT, threads=2, proven_rows=32, rows=[20]).at(0, 0, 3).max_queue_delay_us == 0


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_begins_with_the_current_setting_and_finds_the_best(name: str) -> None:
    space, wanted = space_of(CURRENT, threads=2, proven_rows=32), Parameters(1, 1, 8, 0)
    sampler = Sampler(space, name, seed=1, trials=30)  # type: ignore[arg-type]
    seen: list[Parameters] = []
    while (parameters := sampler.next()) is not None:
        seen.append(parameters)
        bad = abs(parameters.streams - 1) + abs(parameters.max_batch_size - 8) + parameters.max_queue_delay_us / 1000
        sampler.tell(None if parameters.max_batch_size == 1 else (1.0 + bad, 100.0 - bad))
        if wanted in seen and name != "grid":
            break
    assert seen[0] == CURRENT
    assert len(set(seen)) == len(seen), "nothing is measured twice"
    if name == "grid":
        assert len(seen) == space.distinct()
    assert wanted in seen


def test_a_search_is_seeded() -> None:
    def first(seed: int) -> list[Parameters]:
        sampler = Sampler(space_of(CURRENT, threads=4, proven_rows=32), "bayesian", seed=seed, trials=9)
        found = []
        for _ in range(9):
            parameters = sampler.next()
            assert parameters is not None
            found.append(parameters)
            sampler.tell((float(parameters.streams), float(parameters.max_batch_size)))
        return found

    assert first(3) == first(3) != first(4)


# -- verdicts --------------------------------------------------------------------------------------------------------


def test_the_front_is_of_those_within_the_limit() -> None:
    slow, fast, middle = measured(30, 300), measured(10, 100), measured(20, 200)
    trials = [slow, middle, fast, measured(25, 150), measured(5, 900, failures=1)]
    assert front(trials, None) == [fast, middle, slow]
    assert front(trials, 20) == [fast, middle]
    assert front(trials, 9) == []


def test_the_choice_is_the_lowest_p99_and_with_a_limit_the_highest_peak() -> None:
    settings = [Parameters(1, 1, size, 0) for size in (1, 2, 4, 8)]
    trials = [
        measured(1, 999),
        *(measured(p99, peak, s) for p99, peak, s in zip((10, 20, 30, 5), (100, 300, 400, 50), settings, strict=True)),
    ]
    assert finalists(trials, None) == [settings[3], settings[0]]
    assert finalists(trials, 25) == [settings[1], settings[0]], "the first is the current one, and no finalist"
    assert finalists(trials, 1) == []


@pytest.mark.parametrize(
    ("current", "other", "limit_ms", "better"),
    [
        ([10, 10, 10], [8, 8, 8], None, True),
        ([10, 10, 10], [9.8, 9.8, 9.8], None, False),  # less than 5 %
        ([10, 10, 10], [5, 5, 11], None, False),  # one round was lost
        ([10, 30, 10], [8, 9, 8], None, True),
        ([30, 30, 10], [12, 40, 12], 20, True),  # only the other holds the limit
        ([30, 30, 30], [25, 25, 25], 20, False),  # neither does
        ([10, 10, 10], [8, 8, 8], 20, False),  # within the limit it is the peak that counts
    ],
)
def test_better_is_what_wins_every_round(
    current: Sequence[float], other: Sequence[float], limit_ms: float | None, better: bool
) -> None:
    ours = [measured(p99, 100, Parameters(1, 1, 8, 0)) for p99 in other]
    now = [measured(p99, 100) for p99 in current]
    assert is_better(now, ours, limit_ms) is better
    assert best(now, [ours], limit_ms) == (Parameters(1, 1, 8, 0) if better else None)
    assert not is_better(now, [measured(1, 1000, failures=1) for _ in other], limit_ms)


def test_the_last_rounds_fit_into_the_time() -> None:
    """A clock that a run moves by ten seconds: of 200, eleven are kept for the rounds and the next trial."""
    now_s = 0.0

    def run(parameters: Parameters) -> Measured:
        nonlocal now_s
        now_s += 10
        return measured(10 if parameters == CURRENT else 5 + parameters.max_batch_size / 100, 100, parameters)

    sampler = Sampler(space_of(CURRENT, threads=4, proven_rows=32), "random", seed=0, trials=99)
    found = search(run, sampler, 99, 200, None, lambda what, done: None, lambda: now_s)
    assert (len(found.trials), now_s, found.unconfirmed) == (11, 200, False)
    assert [len(runs) for runs in found.rounds] == [3, 3, 3]
    assert found.rounds[0][0].parameters == found.trials[0].parameters == CURRENT
    assert found.best == min(found.trials, key=lambda trial: trial.p99_ms).parameters


def test_a_setting_that_cannot_be_served_fails_alone() -> None:
    def run(parameters: Parameters) -> Measured:
        if parameters.streams == 1:
            raise TuneFailed("its server ended")
        return measured(10 - parameters.max_queue_delay_us / 10000, 100, parameters)

    sampler = Sampler(space_of(CURRENT, threads=2, proven_rows=2), "grid", seed=0, trials=99)
    found = search(run, sampler, 99, 1e9, None, lambda what, done: None)
    failed = [trial for trial in found.trials if trial.failures]
    assert {trial.why for trial in failed} == {"its server ended"}
    assert all(trial.parameters.streams == 1 for trial in failed)
    assert found.best is not None
    assert (found.best.streams, found.best.max_queue_delay_us) == (2, 10000)

    def broken(parameters: Parameters) -> Measured:
        raise TuneFailed("nothing can be served")

    with pytest.raises(TuneFailed, match="nothing can be served"):
        search(
            broken, Sampler(space_of(CURRENT, threads=2, proven_rows=2), "grid", seed=0, trials=9), 9, 9, None, print
        )


# -- config.toml -----------------------------------------------------------------------------------------------------

COMMENTED = """# ours
instances = 2   # as many as cores

[batching]  # see below
  max_batch_size = 32 # rows
# preferred_batch_size = [8]
preserve_ordering = true

[queue]
max_rows = 64
"""


def test_values_change_and_all_else_stays() -> None:
    made = with_values(COMMENTED, changes(CURRENT, Parameters(1, 3, 16, 500)))
    assert made == (
        COMMENTED.replace("instances = 2   # as", "instances = 3   # as")
        .replace("cores\n", "cores\nstreams = 1\n")
        .replace("size = 32 # rows", "size = 16 # rows")
        .replace("= true\n", "= true\nmax_queue_delay_us = 500\n")
    )


def test_a_comment_stays_with_its_section() -> None:
    made = with_values("# rows\n[batching]\nmax_batch_size = 32\n", changes(CURRENT, Parameters(1, 2, 32, 0)))
    assert made == "streams = 1\ninstances = 2\n\n# rows\n[batching]\nmax_batch_size = 32\n"


@pytest.mark.parametrize("before", ["", "[labels]\ny = 'l.txt'\n", "# only words", "versions = 'all'\r\n[queue]\r\n"])
def test_sections_and_keys_are_added(before: str) -> None:
    made = with_values(before, changes(CURRENT, Parameters(1, 1, 8, 0)))
    wanted = {**tomllib.loads(before), "streams": 1, "instances": 1, "batching": {"max_batch_size": 8}}
    assert tomllib.loads(made) == wanted
    assert all(line in made.splitlines() for line in before.splitlines())
    assert made.count("\r\n") == (made.count("\n") if "\r" in before else 0)


@pytest.mark.parametrize(
    "before",
    ["batching = {max_batch_size = 32}\n", "batching.max_batch_size = 32\n", "[batching]\nmax_batch_size = 0x20\n"],
)
def test_what_cannot_be_kept_whole_is_said_and_left(before: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(before)
    with pytest.raises(TuneFailed, match=r"set in it: \[batching\] max_batch_size = 8"):
        write_config(file, before, changes(CURRENT, Parameters(2, 2, 8, 0)))
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


def test_an_edit_of_another_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    values = changes(CURRENT, Parameters(2, 2, 8, 0))
    write_config(file, "", values)
    assert file.read_text() == "[batching]\nmax_batch_size = 8\n"
    with pytest.raises(TuneFailed, match="was changed meanwhile; set in it"):
        write_config(file, "", values)
    file.chmod(0o600)
    write_config(file, file.read_text(), changes(CURRENT, Parameters(2, 2, 4, 0)))
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("[batching]\nmax_batch_size = 4\n", 0o600)
