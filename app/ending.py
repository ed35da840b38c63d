"""How a process of the `bitserve` command ends: at once, after what it has to do at its end."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

__all__ = ["run_to_the_end"]


def run_to_the_end(main: Callable[[], None]) -> NoReturn:
    """Run it, then what is registered for the end, and leave; the exit code is what `main` raised SystemExit with.

    The interpreter is not taken apart: threads of libraries that come back into it meanwhile (a store's answers, an
    engine that is still being imported) would abort the process, whose exit code others go by.
    """
    code = _code_of(main)
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(code)


def _code_of(main: Callable[[], None]) -> int:
    try:
        main()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        sys.stderr.write(f"{ended.code}\n")
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0
