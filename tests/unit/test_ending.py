"""The end of a process of the command: its code and its output are whole, whatever threads are left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.servers import ROOT

BEFORE = """
import atexit, sys, threading
from app.ending import run_to_the_end
atexit.register(lambda: print("at the end"))
threading.Thread(target=threading.Event().wait).start()  # it would be waited for
def main():
    print("done")
"""


def ended(main: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    source = f"{BEFORE}    {main}\nrun_to_the_end(main)\n"
    return subprocess.run(
        [sys.executable, "-c", source], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT,
        timeout=60, env={**os.environ, "PYTHONUNBUFFERED": ""},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("main", "code", "said"),
    [
        ("pass", 0, ""), ("sys.exit()", 0, ""), ("sys.exit(3)", 3, ""), ("sys.exit('what was so')", 1, "what was so"),
        ("raise ValueError('what')", 1, "ValueError: what"), ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
    ],
)  # fmt: skip
def test_the_code_and_all_that_was_said(main: str, code: int, said: str) -> None:
    done = ended(main)
    assert (done.returncode, done.stdout) == (code, "done\nat the end\n")
    assert said in done.stderr
    assert bool(done.stderr) == bool(said)


def test_output_that_nobody_reads_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert ended("sys.exit(4)", writer).returncode == 4
    os.close(writer)
