"""OpenVINO on the CPU: a compiled blob becomes a session. Imports blobs whose hash was checked; never compiles ONNX."""

from __future__ import annotations

import hashlib
import hmac
import logging
import queue
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from engines.errors import EngineFailed, PlanInvalid, ValuesRefused
from engines.manifest import GUARD_OUTPUT, Manifest
from engines.plugins.extension import extension_path
from engines.runtime.openvino_engine import Engine, first_line
from engines.runtime.session import Done, divided

__all__ = [
    "OpenVinoSession", "OpenVinoSlot", "core", "first_line", "has_binary_operators", "load_session", "stream_config",
]  # fmt: skip

_core: ov.Core | None = None
_has_binary_operators = False
log = logging.getLogger(__name__)


def core() -> ov.Core:
    """The process's one Core (it owns the plugin and its thread pools), with the operators of binary layers where they
    were compiled.
    """
    global _core, _has_binary_operators
    if _core is None:
        _core, extension = ov.Core(), extension_path()
        if extension is not None:
            try:
                _core.add_extension(str(extension))
                _has_binary_operators = True
            except Exception as error:  # it was compiled for another OpenVINO
                log.warning("binary layers run as convolutions, the native kernels do not load: %s", first_line(error))
    return _core


def has_binary_operators() -> bool:
    """Whether binary layers have native kernels here: they were compiled, and fit this OpenVINO."""
    core()
    return _has_binary_operators


def stream_config(streams: int, threads: int) -> dict[str, Any]:
    """The properties passed at compile and, because a blob forgets them, at every import.

    Threads are not pinned: OpenVINO pins the caller of a run too, to the same first cores for every engine, by two
    system calls a run (1.6 of 9.6 us of a small model), and now and then leaves it pinned, with all threads it starts.
    """
    return {
        "ENABLE_CPU_PINNING": False,
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }


class OpenVinoSlot:
    """One infer request; its own tensors are the batch buffers, so rows are copied once.

    A thread of its own waits for each batch. OpenVINO's completion callback would save the thread, but 2026.4 never
    calls it when the engine raises, and a batch that fails must be answered.
    """

    lanes: tuple[Hashable, ...] = ()

    def __init__(
        self, engine: Engine, inputs: Sequence[str], outputs: Sequence[str], guards: Sequence[str] = ()
    ) -> None:
        compiled = engine.compiled
        self._engine, self._guards = engine, guards
        self._judged = np.flatnonzero([bool(text) for text in guards])
        self._guard_output = _port(compiled.outputs, GUARD_OUTPUT) if self._judged.size else -1
        self._inputs = [(name, _port(compiled.inputs, name)) for name in inputs]
        self._outputs = [(name, _port(compiled.outputs, name)) for name in outputs]
        self._request: ov.InferRequest | None = compiled.create_infer_request()
        self._filled = [self._request.get_input_tensor(index) for _, index in self._inputs]
        self._bound: dict[str, tuple[int, ...]] = {}
        self._answers: list[ov.Tensor] = []
        self._is_inline = False
        engine.on_renewal(self._forget)
        self._work: queue.SimpleQueue[Done | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="openvino-slot", daemon=True)
        self._thread.start()

    def bind(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        views: dict[str, np.ndarray] = {}
        for (name, _), tensor in zip(self._inputs, self._filled, strict=True):
            shape = shapes[name]
            if self._bound.get(name) != shape:  # kept here: to read a tensor's own takes 10 us, as long as a small run
                self._bound.pop(name, None)
                tensor.shape = list(shape)
                self._bound[name] = shape
            views[name] = tensor.data
        return views

    def launch(self, done: Done) -> None:
        self._work.put(done)

    def run(self) -> BaseException | None:
        """Without a hand-over inside OpenVINO, either: to wake its threads takes as long as a small model runs."""
        self._is_inline = True
        try:
            return self._answered()
        finally:
            self._is_inline = False

    def _serve(self) -> None:
        while (done := self._work.get()) is not None:
            done(self._answered())

    def _answered(self) -> BaseException | None:
        try:
            return self._answer()
        except Exception as raised:
            return raised if isinstance(raised, EngineFailed) else EngineFailed(first_line(raised))

    def _answer(self) -> BaseException | None:
        """Run the batch; once more, alone, where a run beside it has spoilt the engine. Afterwards that is whole."""
        request = self._engine.begin(self._current)
        if request is not None:
            error = self._run(request)
            raised = isinstance(error, EngineFailed)
            if self._engine.end(request, raised=raised):
                if raised:
                    self._engine.recover()
                return error
        with self._engine.alone():
            error = self._run(self._current())
            if isinstance(error, EngineFailed):
                self._engine.spoil()
        return error

    def _run(self, request: ov.InferRequest) -> EngineFailed | ValuesRefused | None:
        try:
            if self._is_inline:
                request.infer(share_outputs=True)  # else it copies them into arrays that nobody reads
            else:
                request.start_async()
                request.wait()
            self._answers = [request.get_output_tensor(index) for _, index in self._outputs]
            return self._refusal(request)
        except Exception as raised:
            return EngineFailed(first_line(raised))

    def _current(self) -> ov.InferRequest:
        """The request of the engine as it is now, filled."""
        if self._request is None:
            request = self._engine.compiled.create_infer_request()
            tensors = [request.get_input_tensor(index) for _, index in self._inputs]
            for tensor, filled in zip(tensors, self._filled, strict=True):
                tensor.shape = filled.shape
                np.copyto(tensor.data, filled.data)
            self._request, self._filled = request, tensors
        return self._request

    def _forget(self) -> None:
        self._request = None

    def _refusal(self, request: ov.InferRequest) -> ValuesRefused | None:
        """What the first guard that found something says."""
        if self._guard_output < 0:
            return None
        found = np.flatnonzero(request.get_output_tensor(self._guard_output).data[self._judged])
        return ValuesRefused(self._guards[self._judged[found[0]]]) if found.size else None

    def outputs(self) -> dict[str, np.ndarray]:
        return {name: tensor.data for (name, _), tensor in zip(self._outputs, self._answers, strict=True)}

    def setting(self, name: str) -> Any:
        """A property of its engine, as the compiled model itself reports it."""
        return self._engine.setting(name)

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()


def _port(ports: Sequence[ov.ConstOutput], name: str) -> int:
    """Position of a tensor name; a port may carry several names, and no import promises to keep their order."""
    for index, port in enumerate(ports):
        if name in port.names:
            return index
    raise PlanInvalid(f"the engine has no tensor {name!r}; it has {sorted(n for p in ports for n in p.names)}")


class OpenVinoSession:
    """An engine and one slot per instance."""

    is_on_gpu = False

    def __init__(
        self,
        engine: Engine,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        instances: int,
        threads_per_batch: int,
        memory_bytes: int = 0,
        guards: Sequence[str] = (),
        load_inline: Callable[[], Engine] | None = None,
    ) -> None:
        self.inline_rows = 0
        self.inline_slot: OpenVinoSlot | None = None
        self._engine: Engine | None = engine
        self._threads_per_batch = threads_per_batch
        self._memory_bytes = memory_bytes
        self._load_inline = load_inline
        self._of = inputs, outputs, guards
        self._slots = [OpenVinoSlot(engine, *self._of) for _ in range(instances)]

    @property
    def slots(self) -> Sequence[OpenVinoSlot]:
        return self._slots

    @property
    def threads_per_batch(self) -> int:
        return self._threads_per_batch

    @property
    def most_rows(self) -> int:
        return 0

    @property
    def memory_bytes(self) -> int:
        return self._memory_bytes

    def open_inline(self) -> OpenVinoSlot:
        """The slot for batches that the caller runs itself: on an engine of one thread, which is the caller's.

        With more, OpenVINO wakes its own threads for every run, which takes longer than a small model and leaves them
        spinning on the cores that the caller needs.
        """
        if self.inline_slot is None:
            if self._load_inline is None:  # it is such an engine
                return self._slots[0]
            self.inline_slot = OpenVinoSlot(self._load_inline(), *self._of)
        return self.inline_slot

    def close_inline(self) -> None:
        """Free what `open_inline` has made."""
        slot, self.inline_slot = self.inline_slot, None
        if slot is not None:
            slot.close()

    def setting(self, name: str) -> Any:
        """A property such as NUM_STREAMS, as the compiled model itself reports it."""
        assert self._engine is not None, "the session is closed"
        return self._engine.setting(name)

    def close(self) -> None:
        for slot in self._slots:
            slot.close()
        self.close_inline()
        self._slots = []
        self._engine = self._load_inline = None


def load_session(
    folder: Path, manifest: Manifest, *, streams: int | None = None, instances: int | None = None
) -> OpenVinoSession:
    """Import `<folder>/<engine file>` after checking its sha256 against the manifest.

    OpenVINO accepts a blob with flipped weight bytes, so the hash is the only guard. The very mapping that was
    hashed is the one imported. `streams` and `instances` (slots) override the measured number as `divided` says. Raises
    PlanInvalid where file, hash or import fail.
    """
    path = folder / manifest.engine.file
    try:
        blob = ov.tensor_from_file(str(path))
        digest = hashlib.sha256(memoryview(blob.data)).hexdigest()
    except Exception as error:
        raise PlanInvalid(f"{path.name} cannot be read: {first_line(error)}") from error
    if not hmac.compare_digest(digest, manifest.engine.sha256):
        raise PlanInvalid(f"{path.name} has sha256 {digest[:12]}, its manifest says {manifest.engine.sha256[:12]}")
    count, slots = divided(streams, instances, manifest.streams)
    threads = max(manifest.threads, count)

    def load(streams: int, threads: int) -> Engine:
        try:
            return Engine(lambda: core().import_model(blob, "CPU", stream_config(streams, threads)))
        except Exception as error:
            raise PlanInvalid(f"{path.name} was refused by OpenVINO: {first_line(error)}") from error

    engine = load(count, threads)
    names = [spec.name for spec in manifest.inputs], [spec.name for spec in manifest.outputs]
    return OpenVinoSession(
        engine, *names, instances=slots, threads_per_batch=max(1, threads // max(count, slots)),
        memory_bytes=manifest.engine.size_bytes, guards=manifest.guards,
        load_inline=None if threads == 1 else lambda: load(1, 1),
    )  # fmt: skip
