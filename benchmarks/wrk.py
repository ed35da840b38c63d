"""wrk on one thread, over loopback: bodies in rotation, answers looked at, what it saw as numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Expected", "Run", "Sent", "run_wrk"]

_MARK = "measured "
_TIMEOUT_S = 30


@dataclass(frozen=True)
class Sent:
    """A request. `path` begins with a slash."""

    path: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Expected:
    """Of every answer: its length in bytes lies between these. Every `every`th is kept whole, the first among them."""

    least_bytes: int
    most_bytes: int
    every: int = 101
    keep: int = 64


@dataclass(frozen=True)
class Run:
    """What one run saw, and the server's CPU seconds meanwhile.

    `refused`: answers that are not 2xx or 3xx. `broken`: connections that failed, and requests that timed out.
    `wrong`: answers whose length or status is not as expected. `kept`: bodies of some answers.
    """

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    refused: int
    broken: int
    wrong: int
    cpu_s_per_request: float
    kept: tuple[bytes, ...] = ()

    @property
    def failures(self) -> int:
        """All that no sound run has."""
        return self.refused + self.broken + self.wrong


def run_wrk(
    base: str, sent: Sequence[Sent], folder: Path, cpu_s: Callable[[], float], connections: int, seconds: int,
    expected: Expected | None = None,
) -> Run:  # fmt: skip
    """`base`: scheme, host and port. `cpu_s`: CPU seconds of the server so far. RuntimeError where wrk is missing.

    `folder` takes the script and the bodies. Without `expected` no answer is looked at, which costs wrk less.
    """
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed: apt-get install -y wrk")
    script, samples = _written(folder, sent, expected)
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        f"{_TIMEOUT_S}s",
        "-s",
        str(script),
        base,
    ]
    before = cpu_s()
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 4 * _TIMEOUT_S)
    spent_s = cpu_s() - before
    line = next((line for line in said.stdout.splitlines() if line.startswith(_MARK)), None)
    if line is None:
        raise RuntimeError(f"wrk ended with {said.returncode} and said no numbers: {said.stdout} {said.stderr}")
    seen = json.loads(line.removeprefix(_MARK))
    return Run(
        seen["requests"],
        1e6 * seen["requests"] / seen["duration_us"],
        seen["p50_us"] / 1000,
        seen["p99_us"] / 1000,
        seen["refused"],
        seen["broken"],
        seen["wrong"],
        spent_s / max(1, seen["requests"]),
        _kept(samples),
    )


def _written(folder: Path, sent: Sequence[Sent], expected: Expected | None) -> tuple[Path, Path]:
    """The script, and the file that it keeps answers in."""
    samples = folder / "answers.bin"
    samples.unlink(missing_ok=True)
    lines = ["local function read(path) local file = io.open(path, 'rb') return file:read('*a'), file:close() end"]
    lines += ["local sent = {}", "local function add(path, headers, file)"]
    lines += ["  sent[#sent + 1] = wrk.format('POST', path, headers, (read(file)))", "  collectgarbage()", "end"]
    lines.append("init = function(args)")
    for number, one in enumerate(sent):
        body = folder / f"body-{number}.bin"
        body.write_bytes(one.body)
        headers = ", ".join(f"[{json.dumps(key)}] = {json.dumps(value)}" for key, value in one.headers.items())
        lines.append(f"  add({json.dumps(one.path)}, {{{headers}}}, {json.dumps(str(body))})")
    lines += ["end", _ROTATE]
    if expected is not None:
        lines.append(_look(expected, samples))
    lines.append(_DONE)
    script = folder / "requests.lua"
    script.write_text("\n".join(lines))
    return script, samples


_ROTATE = """
local turn = 0
wrong = 0
local threads = {}
setup = function(thread) threads[#threads + 1] = thread end
request = function() turn = turn % #sent + 1 return sent[turn] end
"""


def _look(expected: Expected, samples: Path) -> str:
    """Cheap for most answers: they are looked at on the cores that the server needs."""
    return f"""
local seen, kept, samples = 0, 0, nil
response = function(status, headers, body)
  local size = #body
  if status ~= 200 or size < {expected.least_bytes} or size > {expected.most_bytes} then wrong = wrong + 1 end
  if seen % {expected.every} == 0 and kept < {expected.keep} then
    samples = samples or io.open({json.dumps(str(samples))}, "wb")
    samples:write(size, "\\n", body)
    samples:flush()
    kept = kept + 1
  end
  seen = seen + 1
end
"""


_KEYS = ("requests", "duration_us", "p50_us", "p99_us", "refused", "broken", "wrong")
_DONE = f"""
done = function(summary, latency, requests)
  local wrongs, errors = 0, summary.errors
  for _, thread in ipairs(threads) do wrongs = wrongs + thread:get("wrong") end
  local broken = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format(
    '{_MARK}{{{", ".join(f'"{key}": %d' for key in _KEYS)}}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status, broken, wrongs))
end
"""


def _kept(samples: Path) -> tuple[bytes, ...]:
    """Each as its length in a line of its own, then the bytes."""
    if not samples.exists():
        return ()
    found, rest = [], samples.read_bytes()
    while rest:
        length, rest = rest.split(b"\n", 1)
        found.append(rest[: int(length)])
        rest = rest[int(length) :]
    return tuple(found)
