"""A plan on GPUs, and the CPU's engine for the sizes that it was not built for.

A plan has ranges: rows up to a number, variable dimensions up to a few times what they were proven with. What is beyond
is rare, and answered all the same: the CPU's engine is imported when the first such batch comes, in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from engines.errors import EngineError, EngineFailed, OutsidePlan
from engines.runtime.session import Done, Session, Slot, run_launched
from engines.tensor import TensorSpec, datatype

__all__ = ["WithCpu"]


class _OnCpu:
    """The CPU's session, once there is one; its batches run one after the other. Thread-safe."""

    def __init__(self, load: Callable[[], Session]) -> None:
        self._load = load
        self._session: Session | None = None
        self._thread = ThreadPoolExecutor(1, "beside-gpu")

    def launch(self, slot: _Slot, done: Done) -> None:
        self._thread.submit(self._run, slot, done)

    def _run(self, slot: _Slot, done: Done) -> None:
        try:
            error = self._answered(slot)
        except Exception as raised:
            error = raised if isinstance(raised, EngineError) else EngineFailed(str(raised))
        done(error)

    def _answered(self, slot: _Slot) -> BaseException | None:
        if self._session is None:
            self._session = self._load()
        own = self._session.slots[0]
        for name, view in own.bind({name: array.shape for name, array in slot.given.items()}).items():
            np.copyto(view, slot.given[name])
        error = own.run()
        if error is None:
            slot.answers = {name: array.copy() for name, array in own.outputs().items()}
        return error

    def close(self) -> None:
        self._thread.shutdown()
        if self._session is not None:
            self._session.close()


class _Slot:
    """One of the GPU's. `given` holds the inputs of a batch that is not for it."""

    def __init__(self, gpu: Slot, cpu: _OnCpu, inputs: Sequence[TensorSpec]) -> None:
        self._gpu, self._cpu = gpu, cpu
        self._dtypes = {spec.name: datatype(spec.datatype).numpy for spec in inputs}
        self.lanes = gpu.lanes
        self.given: dict[str, np.ndarray] = {}
        self.answers: Mapping[str, np.ndarray] = {}

    def bind(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        try:
            self.given = {}
            return self._gpu.bind(shapes)
        except OutsidePlan:
            self.given = {name: np.empty(shape, self._dtypes[name]) for name, shape in shapes.items()}
            return self.given

    def launch(self, done: Done) -> None:
        if self.given:
            self._cpu.launch(self, done)
        else:
            self._gpu.launch(done)

    def run(self) -> BaseException | None:
        return run_launched(self)

    def outputs(self) -> dict[str, np.ndarray]:
        return dict(self.answers) if self.given else self._gpu.outputs()


class WithCpu:
    """A session of one whose slots raise OutsidePlan; `load_cpu` imports the engine that runs those batches."""

    is_on_gpu = True
    inline_rows = 0
    inline_slot = None

    def __init__(self, gpu: Session, load_cpu: Callable[[], Session], inputs: Sequence[TensorSpec]) -> None:
        self._gpu, self._cpu = gpu, _OnCpu(load_cpu)
        self._slots = [_Slot(slot, self._cpu, inputs) for slot in gpu.slots]

    @property
    def slots(self) -> Sequence[Slot]:
        return self._slots

    @property
    def most_rows(self) -> int:
        return self._gpu.most_rows

    @property
    def threads_per_batch(self) -> int:
        return self._gpu.threads_per_batch

    @property
    def memory_bytes(self) -> int:
        return self._gpu.memory_bytes

    def open_inline(self) -> Slot:
        """None of its batches runs on the caller's thread: that one would wait for the GPU."""
        return self._slots[0]

    def close_inline(self) -> None:
        """There is none."""

    def close(self) -> None:
        self._cpu.close()
        self._gpu.close()
