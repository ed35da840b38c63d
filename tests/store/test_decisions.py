"""What a listing means and what a mirror does about it, without a store."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.store.bucket import Object, is_address
from app.store.errors import StoreRefused
from app.store.published import File, Published, decode, encode, signed
from app.store.remote import LARGEST_FILE_BYTES, Held, Step, evictions, remote_of, steps
from app.store.writer import leftovers

SHA = "0" * 64
FILES = {"model.onnx": File(3, SHA)}


def of(**changes: Any) -> bytes:
    """A publication that is one but for what is changed."""
    return encode(Published(**{"attempt": "0123456789abcdef", "files": FILES, **changes}))


def listed(*keys: str, size_bytes: int = 1, changed_s: float = 0.0) -> list[Object]:
    return [Object(key, size_bytes, f"tag of {key}", changed_s) for key in keys]


def test_only_what_is_published_is_seen():
    remote = remote_of(
        listed(
            "m/1/published.json", "m/2/0123456789abcdef/model.onnx", "m/config.toml", "m/labels.txt",
            "m/01/published.json",
            "m/x/published.json", "stats/1/published.json", "../1/published.json", "published.json", "m/.hidden",
            "m/1/0123456789abcdef/published.json", ".plans/k/published.json", "m/1", "m/7",
            "m/1234567890123456789/published.json",
        )
    )  # fmt: skip
    assert remote.versions == {"m": {1: "tag of m/1/published.json"}}
    assert remote.files == {"m": {"config.toml": "tag of m/config.toml", "labels.txt": "tag of m/labels.txt"}}


def test_a_file_that_is_too_large_is_no_file_of_a_model():
    assert remote_of(listed("m/config.toml", size_bytes=LARGEST_FILE_BYTES + 1)).files == {}


def test_what_is_gone_is_removed_and_what_is_wanted_is_fetched():
    remote = remote_of(listed("m/2/published.json", "m/3/published.json", "n/1/published.json"))
    held = {"m": {1: Held("old", 5, 0.0), 2: Held("another", 5, 0.0)}, "gone": {7: Held("old", 5, 0.0)}}
    made = steps(remote, held, lambda model, numbers: {max(numbers)})
    assert made == [
        Step("m", 1, ""), Step("gone", 7, ""), Step("m", 2, "tag of m/2/published.json"),
        Step("m", 3, "tag of m/3/published.json"), Step("n", 1, "tag of n/1/published.json"),
    ]  # fmt: skip


def test_what_is_here_already_stays():
    remote = remote_of(listed("m/1/published.json", "m/2/published.json"))
    held = {"m": {2: Held("tag of m/2/published.json", 5, 0.0)}}
    assert steps(remote, held, lambda model, numbers: {2}) == []


def test_those_go_first_that_were_wanted_longest_ago():
    held = {"m": {1: Held("", 40, 3.0), 2: Held("", 40, 1.0)}, "n": {1: Held("", 40, 2.0)}}
    unwanted = lambda model, number: (model, number) == ("m", 1)  # noqa: E731
    assert evictions(held, unwanted, 0, 120) == []
    assert evictions(held, unwanted, 1, 120) == [Step("m", 2, "")]
    assert evictions(held, unwanted, 41, 120) == [Step("m", 2, ""), Step("n", 1, "")]
    assert evictions(held, unwanted, 81, 120) == [], "what would not fit without them either takes nobody's room"


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 9), st.booleans()), max_size=12), st.integers(0, 99))
def test_no_more_goes_than_is_needed(sizes: list[tuple[int, float, bool]], needed: int) -> None:
    held = {"m": {number: Held("", size, used) for number, (size, used, _) in enumerate(sizes)}}
    keeps = {number for number, (_, _, kept) in enumerate(sizes) if kept}
    gone = [step.version for step in evictions(held, lambda _, number: number in keeps, needed, 100)]
    total = sum(size for size, _, _ in sizes) + needed
    assert not keeps & set(gone)
    left = total - sum(sizes[number][0] for number in gone)
    assert left <= 100 or (not gone and total - sum(size for size, _, kept in sizes if not kept) > 100)
    assert not gone or left + sizes[gone[-1]][0] > 100


def test_a_publication_is_read_as_it_was_written():
    made = signed(Published("0123456789abcdef", FILES), b"key")
    assert decode(encode(made), "m/1") == made
    assert made.is_signed(b"key")
    assert not made.is_signed(b"another")
    assert not Published(made.attempt, {"model.onnx": File(4, SHA)}, made.signature).is_signed(b"key")
    assert not Published(made.attempt, FILES).is_signed(b"key")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b'{"attempt": "0123456789abcdef"}', b'{"attempt": "0123456789abcdef", "files": {}}',
        *(of(**changes) for changes in (
            {"attempt": "../../../escape0"}, {"files": {"../x": File(1, SHA)}}, {"files": {".x": File(1, SHA)}},
            {"files": {"a/b": File(1, SHA)}}, {"files": {"x": File(-1, SHA)}}, {"files": {"x": File(1, "0")}},
            {"format": 2},
        )), of()[:-1],
    ],
)  # fmt: skip
def test_anything_else_is_refused(data):
    with pytest.raises(StoreRefused, match=r"m/1/published\.json"):
        decode(data, "m/1")


def test_attempts_that_do_not_count_go_when_they_are_old():
    old = listed("m/1/aaaaaaaaaaaaaaaa/model.onnx", "m/1/bbbbbbbbbbbbbbbb/model.onnx", "m/1/published.json", ".probe/x")
    young = listed("m/2/aaaaaaaaaaaaaaaa/model.onnx", ".probe/y", changed_s=9.0)
    mixed = [*listed("m/3/cccccccccccccccc/a"), *listed("m/3/cccccccccccccccc/b", changed_s=9.0)]
    theirs = listed("datasets/0123456789abcdef/a.csv", "x/y/z/0123456789abcdef/a", "backups/2026-01/0123456789abcdef/a")
    plans = listed(f".plans/{'a' * 32}/eeeeeeeeeeeeeeee/engine.blob", ".plans/mine/eeeeeeeeeeeeeeee/engine.blob")
    strange = listed("m/4/dddddddddddddddd/a", "m/4/published.json")
    gone = leftovers([*old, *young, *mixed, *theirs, *plans, *strange], {"m/1": "aaaaaaaaaaaaaaaa", "m/4": None}, 5.0)
    assert sorted(gone) == [plans[0].key, ".probe/x", "m/1/bbbbbbbbbbbbbbbb/model.onnx"]


@pytest.mark.parametrize("text", ["s3://b/p", "file:///x", "gs://b", "az://c"])
def test_addresses(text):
    assert is_address(text)


@pytest.mark.parametrize("text", ["model_repo", "/abs/olute", "http://x", "C:\\x", ""])
def test_folders(text):
    assert not is_address(text)
