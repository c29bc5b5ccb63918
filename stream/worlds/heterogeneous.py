"""A world in which the effect of showing depends on the user's segment and the item's sort."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stream.worlds.base import (
    BLOCK,
    START_MS,
    Change,
    Floats,
    Truth,
    World,
    WorldBlock,
    interactions,
    item_id,
    times,
)

SEGMENTS = ("a", "b", "c")
SORTS = ("x", "y", "z")
# rows: segments, columns: sorts; each sort has the best effect on one segment and harms another
EFFECT = ((0.4, 0.1, -0.1), (-0.1, 0.4, 0.1), (0.1, -0.1, 0.4))


@dataclass(frozen=True)
class Heterogeneous(World):
    """The effect of showing depends on the user's segment and the item's sort.

    Users have the attribute `segment`, items `sort`; the outcome if withheld is the same for all.
    Half of the windows are withheld, and the probability is logged.
    """

    name: ClassVar[str] = "heterogeneous"
    users: int = 300
    items: int = 30
    control: float = 0.25
    effect: tuple[tuple[float, ...], ...] = EFFECT
    show: float = 0.5

    @cached_property
    def segment(self) -> NDArray[np.int64]:
        """Return the segment (users,) of each user."""
        return self.draws(-1).permutation(np.arange(self.users) % len(SEGMENTS))

    @cached_property
    def sort(self) -> NDArray[np.int64]:
        """Return the sort (items,) of each item."""
        return self.draws(-1, 1).permutation(np.arange(self.items) % len(SORTS))

    def blocks(self) -> Iterator[WorldBlock]:
        """Yield the attributes of users and items, then windows of one item each."""
        effect = np.array(self.effect)
        for number in count():
            rng = self.draws(number)
            user = rng.integers(self.users, size=BLOCK)
            item = rng.integers(self.items, size=BLOCK)
            shown = rng.random(BLOCK) < self.show
            control = np.full(BLOCK, self.control)
            treated = control + effect[self.segment[user], self.sort[item]]
            click = rng.random(BLOCK) < np.where(shown, treated, control)
            yield WorldBlock(
                [] if number else self._told(),
                interactions(
                    user,
                    item,
                    times(number),
                    slate=number * BLOCK + np.arange(BLOCK),
                    position=1,
                    propensity=np.where(shown, self.show / self.items, np.nan),
                    show_probability=self.show,
                    shown=shown,
                    click=click,
                    treated=treated,
                    control=control,
                ),
            )

    def _told(self) -> list[Change]:
        segments = [SEGMENTS[s] for s in self.segment]
        sorts = [SORTS[s] for s in self.sort]
        return [Change("user", n, {"segment": s}, START_MS) for n, s in enumerate(segments)] + [
            Change("item", n, {"sort": s}, START_MS) for n, s in enumerate(sorts)
        ]

    @property
    def truth(self) -> Truth:
        """Return the effects by segment and sort, and each segment's items of the best sort."""
        effect: Floats = np.array(self.effect)
        table = effect.tolist()
        counts = np.outer(np.bincount(self.segment), np.bincount(self.sort))
        return {
            "effect": {s: dict(zip(SORTS, table[n], strict=True)) for n, s in enumerate(SEGMENTS)},
            "outcome_if_withheld": self.control,
            "average_effect_of_windows": float((effect * counts).sum() / counts.sum()),
            "best_by_effect": {
                s: [item_id(int(i)) for i in np.flatnonzero(self.sort == effect[n].argmax())]
                for n, s in enumerate(SEGMENTS)
            },
        }
