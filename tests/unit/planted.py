"""A search whose answer is known: the loss and the cost of every assignment are formulas."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise

from engines.trials import Outcome

__all__ = ["BUDGET", "Planted", "cheapest"]

BUDGET = 0.5


class Planted:
    """Layers of which two or more are sensitive; the budget holds where all of these are float, and nowhere else.

    The damage saturates: with one of the sensitive layers mended, the loss is nearly as bad as with none, as it is in
    networks. Two neighbours that are both low do more than the sum of their own. Costs in microseconds differ.
    """

    def __init__(self, count: int, sensitive: Collection[int]) -> None:
        self.layers = [f"layer{i}" for i in range(count)]
        self.sensitive = frozenset(self.layers[i] for i in sensitive)
        self.asked: list[frozenset[str]] = []

    def outcome(self, kept: frozenset[str]) -> Outcome:
        low = [name not in kept for name in self.layers]
        damages = [3.0 + i % 2 for i, name in enumerate(self.layers) if name in self.sensitive - kept]
        main = max(damages, default=0.0) + 0.25 * sum(damages)
        pairs = sum(a and b for a, b in pairwise(low))
        small = (sum(low) + pairs) * 0.2 / max(1, len(self.layers))
        return Outcome(
            main + small, sum(self._cost_us(i) * (1 if is_low else 2 + i % 3) for i, is_low in enumerate(low))
        )

    def evaluate(self, kept: frozenset[str]) -> Outcome:
        self.asked.append(kept)
        return self.outcome(kept)

    def sensitivity(self) -> dict[str, float]:
        """The loss with each layer alone in the low precision."""
        return {name: self.outcome(frozenset(self.layers) - {name}).loss for name in self.layers}

    @staticmethod
    def _cost_us(i: int) -> int:
        return 10 + 7 * i % 11


def cheapest(planted: Planted, assignments: Iterable[frozenset[str]]) -> frozenset[str]:
    """The cheapest of them that holds the budget, by looking at every one."""
    good = [kept for kept in assignments if planted.outcome(kept).loss <= BUDGET]
    return min(good, key=lambda kept: planted.outcome(kept).cost)
