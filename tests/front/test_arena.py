"""Blocks of a shared mapping: none overlaps another, each is reused, and memory that is free goes back."""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.front import arena
from app.front.arena import Arena, ArenaFull, Block

SIZES = st.lists(st.tuples(st.booleans(), st.integers(1, 40_000)), max_size=200)


@settings(max_examples=200, deadline=None)
@given(SIZES)
def test_blocks_never_overlap_and_hold_what_was_asked_for(steps: list[tuple[bool, int]]) -> None:
    made = Arena(mmap.mmap(-1, 2**20))
    taken: list[Block] = []
    for gives_back, size in steps:
        if gives_back and taken:
            made.give_back(taken.pop(size % len(taken)))
            continue
        try:
            block = made.take(size)
        except ArenaFull:
            continue
        assert block.size_bytes >= size
        assert block.offset % 64 == 0
        assert block.offset + block.size_bytes <= len(made.view)
        taken.append(block)
        ordered = sorted(taken)
        assert all(a.offset + a.size_bytes <= b.offset for a, b in itertools.pairwise(ordered))
        assert made.taken_bytes == sum(block.size_bytes for block in taken)


def test_the_last_block_freed_is_the_next_of_its_size() -> None:
    made = Arena(mmap.mmap(-1, 2**16))
    first, second = made.take(600), made.take(700)
    made.give_back(first)
    made.give_back(second)
    assert made.take(1024) == second
    assert made.take(513) == first


def test_a_full_arena_says_so_and_has_room_again() -> None:
    made = Arena(mmap.mmap(-1, 4096))
    blocks = [made.take(512) for _ in range(8)]
    with pytest.raises(ArenaFull):
        made.take(1)
    made.give_back(blocks[3])
    assert made.take(1) == blocks[3]
    with pytest.raises(ArenaFull):
        made.take(4097)


def shared_kib() -> int:
    """Shared memory that this process has touched and the system still keeps for it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssShmem"))


def test_pages_of_many_large_free_blocks_go_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "_KEPT_BYTES", 4 * 2**20)
    made = Arena(mmap.mmap(-1, 2**28))
    before = shared_kib()
    blocks = [made.take(2**20) for _ in range(64)]
    for block in blocks:
        made.view[block.offset : block.offset + block.size_bytes] = b"\1" * block.size_bytes
    assert shared_kib() - before >= 64 * 1024
    for block in blocks:
        made.give_back(block)
    assert shared_kib() - before <= 5 * 1024
    again = made.take(2**20)
    assert again in blocks[:4], "one whose pages are still there"


def test_a_small_block_is_a_part_of_a_large_one_where_nothing_else_is_left() -> None:
    made = Arena(mmap.mmap(-1, 2**16))
    large = [made.take(2**14) for _ in range(4)]
    made.give_back(large[2])
    small = [made.take(600) for _ in range(16)]
    assert {block.offset for block in small} == set(range(large[2].offset, large[2].offset + 2**14, 1024))
    with pytest.raises(ArenaFull):
        made.take(1)


def test_what_was_cut_in_pieces_is_whole_again_when_all_are_free() -> None:
    made = Arena(mmap.mmap(-1, 2**16))
    for block in [made.take(1024) for _ in range(64)]:
        made.give_back(block)
    assert made.take(2**16) == Block(0, 2**16)
    with pytest.raises(ArenaFull):
        made.take(2**17)
