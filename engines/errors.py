"""Errors of the compiler and the runtimes.

EngineError
├── ModelRefused      the source model cannot be compiled; the message names what was seen
├── BadRepository     names, versions or files on disk break the repository's rules
├── PlanInvalid       a compiled plan is absent, corrupt, foreign or stale: rebuild it, never trust it
├── EngineFailed      a session raised while it ran a batch
│   └── OutsidePlan   a plan on a GPU was built for other sizes
├── DeviceLost        a GPU does nothing more in this process, which must be started anew
├── OutOfMemory       a GPU has not the memory that was asked for; what it holds is as it was
├── CaptureRefused    something cannot be part of a CUDA graph: it runs without one
└── ValuesRefused     the engine ran, but some value would have been answered wrongly: nothing of the batch counts
"""

__all__ = [
    "BadRepository", "CaptureRefused", "DeviceLost", "EngineError", "EngineFailed", "ModelRefused", "OutOfMemory",
    "OutsidePlan", "PlanInvalid", "ValuesRefused",
]  # fmt: skip


class EngineError(Exception):
    """Base of all errors raised by `engines`."""


class ModelRefused(EngineError):
    """The model cannot be compiled for this target."""


class BadRepository(EngineError):
    """A name, a version or a file breaks the rules of the model repository."""


class PlanInvalid(EngineError):
    """A compiled plan must not be loaded: corrupt, truncated, foreign, or made by other tools."""


class EngineFailed(EngineError):
    """The engine raised while it ran a batch; only that batch is lost."""


class OutsidePlan(EngineFailed):
    """A plan on a GPU was built for other sizes than a batch has."""


class DeviceLost(EngineError):
    """Sticky: every later call of the driver fails as well, until the process ends."""


class OutOfMemory(EngineError):
    """The message has the sizes."""


class CaptureRefused(EngineError):
    """The message is the driver's."""


class ValuesRefused(EngineError):
    """A guard of the engine found values that it would answer wrongly; the message names the operator."""
