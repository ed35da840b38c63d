"""Flags of several values."""

from __future__ import annotations

import pytest

from app.bench.errors import BenchFailed
from app.bench.flags import headers_of, levels_of, sizes_of
from app.bench.sweep import MOST_ARRIVALS, Level, Settings, loads


def test_levels_keep_their_order() -> None:
    assert levels_of("16,1, 64", None) == (Level(concurrency=16), Level(concurrency=1), Level(concurrency=64))
    assert levels_of(None, "500,0.5,1e3") == (Level(rate=500.0), Level(rate=0.5), Level(rate=1000.0))
    assert [str(level) for level in (*levels_of("4", None), *levels_of(None, "2.5"))] == [
        "concurrency 4", "2.5 requests/s"
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["", "0", "-1", "1.5", "x", "1,,2", "9999", "٣", "1e2"])
def test_a_concurrency_that_is_none(word: str) -> None:
    with pytest.raises(BenchFailed, match=r"--concurrency: .* is none; expected 1 to 4096, such as 1,16,64"):
        levels_of(word, None)


@pytest.mark.parametrize("word", ["", "0", "-1", "x", "nan", "inf", "1,,2", "1e7"])
def test_a_rate_that_is_none(word: str) -> None:
    with pytest.raises(BenchFailed, match=r"--rate: .* is none; expected requests a second"):
        levels_of(None, word)


def test_one_of_two_loops() -> None:
    with pytest.raises(BenchFailed, match="not both"):
        levels_of("1", "1")
    with pytest.raises(BenchFailed, match="101 levels are given; expected 100 at most"):
        levels_of(",".join(["1"] * 101), None)


def test_shapes() -> None:
    assert sizes_of(["image=3,8,8", "a=b=2"]) == {"image": (3, 8, 8), "a=b": (2,)}
    for word in ("image", "=3", "image=x", "image=0", "image=-1", "image=1.5"):
        with pytest.raises(BenchFailed, match="expected NAME=N,N"):
            sizes_of([word])


def test_headers() -> None:
    assert headers_of(["Authorization: Bearer a:b", "x-y:z"]) == (("Authorization", "Bearer a:b"), ("x-y", "z"))
    for word in ("x", "x:", ": y", "a b: c", "x: y\r\nz: 1", "x: ä"):
        with pytest.raises(BenchFailed, match="expected 'NAME: VALUE'"):
            headers_of([word])


def test_a_load_that_is_too_long_or_none_at_all() -> None:
    def settings(seconds: float | None, requests: int | None = None) -> Settings:
        return Settings(seconds, requests, 0.0, 8, "constant", 0)

    with pytest.raises(BenchFailed, match=f"more than {MOST_ARRIVALS} requests; ask less"):
        loads(settings(60), Level(rate=1e6))
    with pytest.raises(BenchFailed, match="no request would be due"):
        loads(Settings(0.1, None, 0.0, 8, "poisson", 0), Level(rate=0.001))
    warm, load = loads(settings(None, 7), Level(rate=100))
    assert warm is None
    assert load.dues is not None
    assert len(load.dues) == 7 * 8
