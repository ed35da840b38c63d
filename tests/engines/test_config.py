"""A wrong `config.toml` is answered with the key, the value, what is allowed, and the corrected line. Needs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config import ModelConfig, model_options, read_config
from app.serving.limits import ModelOptions
from engines.errors import BadRepository

MISTAKES = {
    '[batching]\nmax_batch_size = "8"': ['batching.max_batch_size = "8"', "integer", "max_batch_size = 32"],
    "[batching]\nmax_batch_size = 99999": ["= 99999", "less than or equal to 65536", "max_batch_size = 32"],
    "[batching]\nmax_batch_size = 8.5": ["= 8.5", "integer", "max_batch_size = 32"],
    "[batching]\nmax_batchsize = 8": ["unknown key", "max_queue_delay_us", "did you mean: max_batch_size = 8"],
    "[batchin]\nmax_batch_size = 8": ["batchin = {max_batch_size = 8}", "unknown key", "did you mean: [batching]"],
    "batching = 3": ["batching = 3", "expected a section", "for example: [batching]"],
    "[batching]\ninstances = 'x'": [
        'batching.instances = "x": unknown key',
        "it belongs above all sections; for example: instances = 2",
    ],
    "max_queue_delay_us = 5": ["it belongs in [batching]; for example: max_queue_delay_us ="],
    "[queue]\nzzz = 1": ["queue.zzz = 1: unknown key", "for example: max_queue_size = 64"],
    "[queue]\nlabels = 1": ["it belongs above all sections; for example: [labels]"],
    "instances = 0": ["instances = 0", "greater than or equal to 1", "instances = 2"],
    "instances = true": ["instances = true", "integer"],
    "streams = 65": ["streams = 65", "less than or equal to 64", "streams = 2"],
    "stream = 2": ["stream = 2", "unknown key", "did you mean: streams = 2"],
    'versions = "newest"': ['versions = "newest"', '"latest", "all" or a list', "versions = [1, 2]"],
    'versions = [1, "x"]': ['versions = [1, "x"]', "a list of version numbers"],
    "versions = [-1]": ["versions = [-1]", "a list of version numbers"],
    "[priorities]": ["priorities.levels is missing", "levels = 2"],
    "[priorities]\nlevels = 2\ndefault_level = 3": ["default_level = 3", "from 1 to 2", "default_level = 2"],
    "[priorities]\nlevels = 2\n[priorities.queue.3]\nmax_queue_size = 1": ["N from 1 to 2", "got 3"],
    "[priorities]\nlevels = 2\n[priorities.queue.1]\nmax_size = 1": ["queue.1.max_size", "max_queue_size = 1"],
    '[queue]\ntimeout_action = "drop"': ['"drop"', "'reject' or 'delay'", 'timeout_action = "reject"'],
    "[queue]\nmax_rows = -1": ["queue.max_rows = -1", "greater than or equal to 0", "max_rows = 1024"],
    "[labels]\nprob = 3": ["labels.prob = 3", "string", 'prob = "labels.txt"'],
    "[batching]\npreferred_batch_size = [4, 64]\nmax_batch_size = 32": ["got 64", "preferred_batch_size = [4]"],
    "instances = \nx = 1": ["is not TOML", "line 1"],
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_explained(text: str) -> None:
    with pytest.raises(BadRepository) as refused:
        read_config(text)
    assert str(refused.value).startswith("config.toml")
    for part in MISTAKES[text]:
        assert part in str(refused.value)


def test_every_mistake_is_in_one_message() -> None:
    with pytest.raises(BadRepository, match=r"instances = 0.*; config\.toml: batching\.max_queue_delay_us = -1"):
        read_config("instances = 0\n[batching]\nmax_queue_delay_us = -1")


def test_an_empty_file_is_all_defaults() -> None:
    assert read_config("") == ModelConfig()


def options(text: str, folder: Path, *, batchable: bool = True) -> ModelOptions:
    return model_options(
        read_config(text), folder, batchable=batchable, max_batch_rows=32, max_queue_rows=100, outputs=["prob", "y"]
    )


def test_options_in_serving_s_terms(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    found = options(
        "instances = 2\nstreams = 1\nversions = [1, 3]\n[batching]\nmax_batch_size = 16\n"
        "preferred_batch_size = [8, 4]\nmax_queue_delay_us = 7\n"
        "[queue]\nmax_rows = 5\ndefault_timeout_us = 9\n[priorities]\nlevels = 2\n"
        'default_level = 2\n[priorities.queue.1]\ntimeout_action = "delay"\n[labels]\nprob = "names.txt"',
        tmp_path,
    )
    assert (found.limits.max_batch_rows, found.limits.preferred_rows) == (16, (4, 8))
    assert (found.limits.max_queue_delay_ns, found.queue.policy.default_timeout_ns) == (7_000, 9_000)
    assert (found.queue.max_rows, found.queue.levels, found.queue.default_level) == (5, 2, 2)
    assert found.queue.policy_of(1).delay_expired
    assert not found.queue.policy_of(2).delay_expired
    assert found.labels["prob"] == ("a", "b")
    assert (found.instances, found.streams, found.version_policy) == (2, 1, "1,3")
    assert (options("", tmp_path).limits.max_batch_rows, options("", tmp_path).queue.max_rows) == (32, 100)


@pytest.mark.parametrize(
    ("text", "limit", "preferred"),
    [
        ("", 32, (4,)),
        ("[batching]\nmax_queue_delay_us = 100", 32, (4,)),
        ("[batching]\nmax_batch_size = 16", 16, ()),
        ("[batching]\npreferred_batch_size = [8]", 32, (8,)),
    ],
)
def test_the_size_that_is_fast_enough_is_preferred_where_the_file_names_none(
    text: str, limit: int, preferred: tuple[int, ...]
) -> None:
    found = model_options(
        read_config(text), Path(), batchable=True, max_batch_rows=32, max_queue_rows=100, enough_rows=4
    ).limits
    assert (found.max_batch_rows, found.preferred_rows) == (limit, preferred)


def test_without_a_proof_there_is_no_batching_whatever_the_file_asks(tmp_path: Path) -> None:
    found = options("[batching]\nmax_batch_size = 16\npreferred_batch_size = [8]", tmp_path, batchable=False)
    assert (found.limits.max_batch_rows, found.limits.preferred_rows) == (0, ())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('prob = "none.txt"', "one label a line in UTF-8"),
        ('prob = "../x"', "outside the model's folder"),
        ('prob = "/etc/passwd"', "outside the model's folder"),
        ('prop = "l.txt"', 'names no output of the model; expected one of prob, y; for example: prob = "l.txt"'),
    ],
)
def test_labels_that_cannot_be(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadRepository, match=said):
        options(f"[labels]\n{line}", tmp_path)
