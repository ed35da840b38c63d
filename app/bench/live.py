"""What is shown on stderr while a run goes on: a live line on a terminal, else a line for each level that is done."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from app.bench.seen import Seen
from app.bench.sweep import Level, Phase, Settings
from app.bench.table import results
from app.bench.words import heading, line
from app.words import printable

__all__ = ["Display", "Terminal", "live"]

_REFRESH_S = 0.25
_KEPT_RATES = 40
_BLOCKS = " ▁▂▃▄▅▆▇█"


class Display:
    """Shows nothing: the base, and what a test may use."""

    def show(self, level: Level, phase: Phase, seen: Seen) -> None:
        """The level goes on."""

    def finished(self, level: dict[str, Any]) -> None:
        """Its figures."""


class _Lines(Display):
    def finished(self, level: dict[str, Any]) -> None:
        print(printable(line(level)), file=sys.stderr, flush=True)


class Terminal(Display):
    """The levels that are done as a table, and a line of the one that runs: its last second, and its rates as bars."""

    def __init__(
        self, document: dict[str, Any], settings: Settings, update: Callable[[Any], None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._document, self._settings, self._update, self._clock_s = document, settings, update, clock_s
        self._at: tuple[Level, Phase] | None = None
        self._begun_s = self._shown_s = 0.0
        self._counted = 0
        self._rates: deque[float] = deque(maxlen=_KEPT_RATES)

    def show(self, level: Level, phase: Phase, seen: Seen) -> None:
        now_s = self._clock_s()
        if self._at != (level, phase):
            self._at, self._begun_s, self._shown_s, self._counted = (level, phase), now_s, now_s, 0
            self._rates.clear()
        if now_s - self._shown_s < _REFRESH_S:
            return
        answers = len(seen.latencies_ns)
        self._rates.append((answers - self._counted) / (now_s - self._shown_s))
        self._update(self._renderable(level, phase, seen, now_s - self._begun_s))
        self._counted, self._shown_s = answers, now_s

    def _renderable(self, level: Level, phase: Phase, seen: Seen, since_s: float) -> Any:
        from rich.console import Group
        from rich.text import Text

        whole_s = self._settings.warmup_s if phase == "warm-up" else self._settings.seconds
        done = f"{since_s:.0f} of {whole_s:g} s" if whole_s else f"{self._counted} of {self._settings.requests}"
        text = f"{level}, {phase} {done}: {self._rates[-1]:.0f} requests/s {_bars(self._rates)}{_latest(seen, self)}"
        failed = Text(f" {seen.failed_requests} failed: {printable(seen.first_failure())[:60]}", style="red")
        parts = [Text(printable(heading(self._document)), style="bold")]
        if self._document["levels"]:
            parts.append(results(self._document["levels"]))  # type: ignore[arg-type]
        return Group(*parts, Text.assemble((text, "cyan"), failed if seen.failed_requests else ""))

    @property
    def fresh(self) -> int:
        """How many of the latencies seen were shown already."""
        return self._counted


def _latest(seen: Seen, display: Terminal) -> str:
    latest = np.array(seen.latencies_ns[display.fresh :], np.int64)
    if not latest.size:
        return ""
    p50, p99 = np.percentile(latest, [50, 99], method="inverted_cdf") / 1e6
    return f" p50 {p50:.2f} ms, p99 {p99:.2f} ms"


def _bars(rates: deque[float]) -> str:
    most = max(rates, default=0.0)
    return "".join(_BLOCKS[round(8 * rate / most)] if most else " " for rate in rates)


@contextlib.contextmanager
def live(document: dict[str, Any], settings: Settings) -> Iterator[Display]:
    """For the time of a run."""
    from rich.console import Console

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        yield _Lines()
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False, transient=True) as shown:
        yield Terminal(document, settings, lambda what: shown.update(what, refresh=True))
