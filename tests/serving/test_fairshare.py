"""Deficit round robin: equal time for all that have work, whatever a batch costs them."""

from __future__ import annotations

import pytest

from app.serving.fairshare import FairShare

QUANTUM_NS = 10


def share(*keys: str) -> FairShare[str]:
    made: FairShare[str] = FairShare(QUANTUM_NS)
    for key in keys:
        made.enter(key, 0)
    return made


def run(made: FairShare[str], costs: dict[str, int], turns: int) -> dict[str, int]:
    """Time used by each of `costs` in so many turns, all of them always able."""
    used = dict.fromkeys(costs, 0)
    for _ in range(turns):
        chosen = made.take(list(costs))
        made.charge(chosen, costs[chosen])
        used[chosen] += costs[chosen]
    return used


def test_equal_costs_take_turns() -> None:
    made = share("a", "b", "c")
    order = []
    for _ in range(6):
        order.append(made.take(["a", "b", "c"]))
        made.charge(order[-1], QUANTUM_NS)
    assert order == ["a", "b", "c", "a", "b", "c"]


@pytest.mark.parametrize("turns", [100, 1001, 5000])
def test_unequal_costs_get_equal_time(turns: int) -> None:
    """All are given the same credit, and what is left of it lies in (-cost, quantum]."""
    costs = {"short": 1, "middle": 7, "long": 300}
    used = run(share(*costs), costs, turns)
    assert max(used.values()) - min(used.values()) < QUANTUM_NS + max(costs.values())


def test_looking_changes_nothing() -> None:
    made, looked = share("a", "b"), share("a", "b")
    order = []
    for _ in range(20):
        for able in (["a"], ["b"], ["a", "b"]):
            looked.next(able)
        assert looked.next(["a", "b"]) == made.next(["a", "b"])
        order.append((made.take(["a", "b"]), looked.take(["a", "b"])))
        for one, key in zip((made, looked), order[-1], strict=True):
            one.charge(key, 7 if key == "a" else 3)
    assert all(one == other for one, other in order)


def test_those_who_cannot_run_are_passed_over() -> None:
    made = share("a", "b")
    assert [made.take(["b"]) for _ in range(3)] == ["b", "b", "b"]


def test_unused_credit_is_lost_on_leaving() -> None:
    made = share("a", "b")
    made.take(["a", "b"])
    assert made.deficit_ns("b") == QUANTUM_NS
    made.leave("b", 100)
    made.enter("b", 100_000)
    assert made.deficit_ns("b") == 0


def test_debt_is_forgiven_by_time_away_and_no_faster() -> None:
    made = share("a")
    made.take(["a"])
    made.charge("a", 110)
    made.leave("a", 1000)
    made.enter("a", 1040)
    assert made.deficit_ns("a") == -60
    made.leave("a", 2000)
    made.enter("a", 9000)
    assert made.deficit_ns("a") == 0


def test_a_charge_is_corrected_when_the_cost_is_known() -> None:
    made = share("a")
    made.charge("a", 50)
    made.charge("a", 20 - 50)
    assert made.deficit_ns("a") == -20


def test_a_forgotten_member_may_come_again_without_its_debt() -> None:
    made = share("a", "b")
    made.charge("a", 500)
    made.forget("a")
    made.charge("a", 5)
    made.enter("a", 10)
    assert made.deficit_ns("a") == 0
    assert {made.take(["a", "b"]) for _ in range(2)} == {"a", "b"}
