"""The server's runtime runs the samples' plans, from their signed folders. A GPU has not run this yet: what runs in its
place is simulated, and its times say nothing.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from engines.reference import Arrays
from engines.runtime.buckets import Shapes
from engines.runtime.session import Slot
from engines.runtime.tensorrt_instance import TensorRtInstance
from engines.targets.tensorrt_binary import lowerings
from engines.targets.tensorrt_options import PlanOptions
from engines.targets.tensorrt_process import build_apart
from tests.gpu.golden import GOLDEN, MOST_ROWS, Golden, golden
from tests.gpu.growth import grown, held
from tests.gpu.places import Place, SimulatedPlace
from tests.gpu.planes import MOST_SHAPES, images, planes

FIRST = 1024
"""They come before anything is counted: what is made once is then there, and what is kept of as many shapes, full."""
CHANGES = 30 * FIRST
assert FIRST + CHANGES <= MOST_SHAPES
PRECISIONS = ["letter_mlp-fp32", "fashion_cnn-fp16", "fashion_cnn-int8", "fashion_binary-fp16"]


def fill(slot: Slot, inputs: Arrays) -> None:
    views = slot.bind({name: array.shape for name, array in inputs.items()})
    for name, array in inputs.items():
        np.copyto(views[name], array)


def answers(slot: Slot, inputs: Arrays) -> Arrays:
    fill(slot, inputs)
    assert slot.run() is None
    return copied(slot)


def copied(slot: Slot) -> Arrays:
    return {name: array.copy() for name, array in slot.outputs().items()}


def require_within(made: Golden, found: Arrays, expected: Arrays) -> None:
    for name, within in made.within.items():
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=within, err_msg=f"{made.name}: {name}")


@pytest.mark.timeout(900)  # on a GPU an engine is built first
@pytest.mark.parametrize("name", GOLDEN)
def test_a_sample_answers_as_its_file_says(place: Place, name: str) -> None:
    made = golden(name)
    with place.opened(made) as session:
        for slot in session.slots:
            for count in (1, 3, MOST_ROWS):
                rows = made.rows(count, count)
                require_within(made, answers(slot, rows), made.expected(rows))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_tolerance_tells_one_row_from_another(name: str) -> None:
    made = golden(name)
    whole = made.expected(made.rows(MOST_ROWS))
    rolled = {output: np.roll(array, 1, axis=0) for output, array in whole.items()}
    with pytest.raises(AssertionError, match=name.partition("-")[0]):
        require_within(made, rolled, whole)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PRECISIONS)
def test_with_cuda_graphs_and_without_the_answers_are_the_same(place: Place, name: str) -> None:
    """To the last bit: the same kernels run."""
    made, counts, found = golden(name), (1, 2, 5, MOST_ROWS, 3), []
    for graphs in (True, False):
        with place.opened(made, graphs=graphs) as session:
            found.append([answers(slot, made.rows(n, n)) for slot in session.slots for n in counts])
    for one, other in zip(*found, strict=True):
        for output, array in one.items():
            np.testing.assert_array_equal(array, other[output])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PRECISIONS)
def test_two_contexts_have_one_profile_at_once(place: Place, name: str) -> None:
    """Two instances, whose four slots are all under way, answer as one of them alone."""
    made = golden(name)
    with place.opened(made, instances=2) as session:
        slots = session.slots
        assert len(slots) == 4
        rows = [made.rows(1 + number % MOST_ROWS, number) for number in range(40)]
        alone = [answers(slots[0], one) for one in rows]
        for number, found in run_at_once(slots, rows):
            for output, array in alone[number].items():
                np.testing.assert_array_equal(found[output], array)


def run_at_once(slots: Sequence[Slot], rows: Sequence[Arrays]) -> Iterator[tuple[int, Arrays]]:
    """The answer of each, by its number, all slots busy as long as there are enough."""
    ended: queue.SimpleQueue[tuple[int, int, BaseException | None]] = queue.SimpleQueue()

    def start(at: int, number: int) -> None:
        fill(slots[at], rows[number])
        slots[at].launch(lambda error: ended.put((at, number, error)))

    for number in range(min(len(slots), len(rows))):
        start(number, number)
    for later in range(len(slots), len(rows) + len(slots)):
        at, number, error = ended.get(timeout=60)
        assert error is None
        yield number, copied(slots[at])
        if later < len(rows):
            start(at, later)


@pytest.mark.timeout(900)
def test_shapes_change_and_nothing_is_left_of_it(place: Place) -> None:
    is_brief = not place.is_real and place.target == "tensorrt-rtx"  # the same again, all but the contexts
    assert changed(place, CHANGES // 10 if is_brief else CHANGES) == []


def test_what_is_left_of_each_change_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hundred bytes are kept of each."""
    kept: list[bytes] = []
    shaped = TensorRtInstance._shaped

    def leaking(self: TensorRtInstance, profile: int, shapes: Shapes) -> tuple[tuple[int, ...], ...]:
        kept.append(bytes(100))
        return shaped(self, profile, shapes)

    monkeypatch.setattr(TensorRtInstance, "_shaped", leaking)
    found = changed(SimulatedPlace("tensorrt", monkeypatch, tmp_path), 2 * FIRST)
    assert any(problem.startswith("blocks: ") for problem in found), found


def changed(place: Place, changes: int) -> list[str]:
    """What has grown, of shapes of which none comes again: the context is told each anew."""
    made = planes()
    with place.opened(made) as session:
        before = None
        for change, rows in zip(range(-FIRST, changes), images(), strict=False):
            if change == 0:
                before = held(place)
            found = answers(session.slots[change % len(session.slots)], rows)
            if change % 97 == 0:
                require_within(made, found, made.expected(rows))
        assert before is not None
        return grown(before, held(place), changes)


@pytest.mark.parametrize("name", GOLDEN)
def test_its_plan_can_be_built(name: str) -> None:
    """By TensorRT-RTX, without a GPU."""
    made = golden(name)
    (lowering,) = lowerings(made.graph, (86,))
    assert lowering.has_plugins == made.has_binary_layers
    options = PlanOptions(profiles=made.profiles, sms=lowering.sms, has_plugins=lowering.has_plugins)
    data, built = build_apart("tensorrt-rtx", lowering.graph, options)
    assert (data[:4], built.sms) == (b"vtrt", (86,))
