"""Errors of the compiler and the runtimes.

EngineError
├── ModelRefused      the source model cannot be compiled; the message names what was seen
├── BadRepository     names, versions or files on disk break the repository's rules
├── PlanInvalid       a compiled plan is absent, corrupt, foreign or stale: rebuild it, never trust it
├── EngineFailed      a session raised while it ran a batch
└── ValuesRefused     the engine ran, but some value would have been answered wrongly: nothing of the batch counts
"""

__all__ = ["BadRepository", "EngineError", "EngineFailed", "ModelRefused", "PlanInvalid", "ValuesRefused"]


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


class ValuesRefused(EngineError):
    """A guard of the engine found values that it would answer wrongly; the message names the operator."""
