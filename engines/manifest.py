"""The manifest: what a compiled version is, what was proven of it, and what it was made with. Written last."""

from __future__ import annotations

import hashlib

import msgspec

from engines.errors import PlanInvalid
from engines.tensor import ShapeRange, TensorSpec

__all__ = [
    "GUARD_OUTPUT", "BatchProof", "EngineFile", "Manifest", "PlanFile", "Source", "StreamTiming", "decode", "encode",
]  # fmt: skip

FORMAT = 1
GUARD_OUTPUT = "bitserve.guards"
"""FP32 [number of guards], an output beside the model's own: how many values each guard found wrong."""


class Source(msgspec.Struct, frozen=True):
    """The model file that the plan was made from."""

    file: str
    sha256: str
    size_bytes: int


class EngineFile(msgspec.Struct, frozen=True):
    """The compiled artefact beside the manifest; its hash is checked before every import."""

    file: str
    sha256: str
    size_bytes: int


class PlanFile(msgspec.Struct, frozen=True, kw_only=True):
    """A plan for GPUs beside the engine. It fits the version of the library that built it alone, and these GPUs (`sms`:
    10 * major + minor of their compute capability); `profiles` are the smallest, best and largest shapes of its inputs,
    `profile_sets` times over, one set after another; `plugins` is what must be registered before it is read, `guards`
    are like those of the engine.
    """

    target: str
    file: str
    sha256: str
    size_bytes: int
    precision: str
    version: str
    sms: tuple[int, ...]
    profiles: tuple[dict[str, ShapeRange], ...]
    compatibility: str = "none"
    plugins: tuple[str, ...] = ()
    guards: tuple[str, ...] = ()
    profile_sets: int = 1


class StreamTiming(msgspec.Struct, frozen=True):
    """Throughput of one stream configuration, measured at build time on the machine that built."""

    streams: int
    threads: int
    batch_rows: int
    rows_per_s: float


class BatchProof(msgspec.Struct, frozen=True):
    """Whether requests may share a batch, and the evidence.

    `reason` says why not where `batchable` is False. `checks` lists what was run, `worst_difference` the largest
    |alone - together| seen over all rows and outputs, `bound` the bound it had to stay under. `rows` is the largest
    batch that was run.
    """

    batchable: bool
    reason: str = ""
    checks: tuple[str, ...] = ()
    worst_difference: float = 0.0
    bound: float = 0.0
    rows: int = 1
    full_batch_s: float = 0.0
    """What one run of 32 rows took, on one stream with all threads; 0 where none was made."""


class Manifest(msgspec.Struct, frozen=True):
    """One compiled version. `tools` and `hardware` are what its cache key was made of."""

    key: str
    source: Source
    engine: EngineFile
    target: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    proof: BatchProof
    streams: int
    threads: int
    stream_timings: tuple[StreamTiming, ...]
    tools: dict[str, str]
    hardware: str
    created: str
    build_s: float
    sample_shapes: dict[str, tuple[int, ...]] = {}
    """Shapes of one row that the engine is known to run; the server warms up with them."""
    fails_on_values: bool = False
    """Sizes are computed from the inputs' values: a run that fails may be the request's fault."""
    guards: tuple[str, ...] = ()
    """What the elements of the engine's guard output count; a run in which one is not 0 has failed. Empty texts are
    guards that fire where the answers are right, and count for nothing.
    """
    notes: tuple[str, ...] = ()
    enough_rows: int = 0
    """Rows of a batch beyond which the engine gets no faster, measured; 0 = it does, or nothing is known."""
    max_batch: int = 0
    """Rows of a batch that the sender asked for; 0 = nothing was asked."""
    plans: tuple[PlanFile, ...] = ()
    format: int = FORMAT
    seal: str = ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of a version that serves; empty where all is as one would expect."""
        return self.notes if self.proof.batchable else (f"not batched: {self.proof.reason}", *self.notes)

    """SHA-256 of the manifest without this field: a flipped digit in it would be believed otherwise."""


# made once and here: threads that all are the first to decode a type would meet msgspec's half-made notion of it
_DECODER = msgspec.json.Decoder(Manifest)


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented JSON, for people to read, sealed."""
    sealed = msgspec.structs.replace(manifest, seal=_seal(manifest))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n"


def _seal(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, seal=""))).hexdigest()


def decode(data: bytes) -> Manifest:
    """Parse a manifest; PlanInvalid where it is not one of this format, or not what was written."""
    try:
        manifest = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanInvalid(f"manifest is not readable: {error}") from error
    if manifest.format != FORMAT:
        raise PlanInvalid(f"manifest has format {manifest.format}, expected {FORMAT}")
    if manifest.seal != _seal(manifest):
        raise PlanInvalid("manifest does not match its own seal: it was changed after it was written")
    return manifest
