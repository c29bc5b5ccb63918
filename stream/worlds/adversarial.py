"""A world in which a ranking by correlation is exactly the wrong way round."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stream.worlds.base import (
    BLOCK,
    Floats,
    Truth,
    World,
    WorldBlock,
    by_item,
    interactions,
    item_id,
    times,
)


@dataclass(frozen=True)
class Adversarial(World):
    """Showing lowers the outcome of favourites and raises that of sleepers.

    Favourites are clicked with probability .6 if withheld and .5 if shown, sleepers with .05 and
    .45. So the outcome if shown ranks every favourite above every sleeper, and the effect of
    showing ranks them the other way round. The policy picks favourites four times as often and
    withholds a smaller share of them; it logs the probabilities.
    """

    name: ClassVar[str] = "adversarial"
    users: int = 200
    items: int = 20
    favourite: tuple[float, float] = (0.6, -0.1)  # outcome if withheld, effect
    sleeper: tuple[float, float] = (0.05, 0.4)
    picked: float = 0.8  # share of the windows that go to favourites
    show: tuple[float, float] = (0.8, 0.5)  # show_probability of favourites, sleepers

    @cached_property
    def favourites(self) -> NDArray[np.bool_]:
        """Return which items (items,) are favourites: a random half of them."""
        drawn: NDArray[np.bool_] = self.draws(-1).permutation(self.items) < self.items // 2
        return drawn

    @cached_property
    def control(self) -> Floats:
        """Return the outcomes (items,) if withheld."""
        return np.where(self.favourites, self.favourite[0], self.sleeper[0])

    @cached_property
    def effect(self) -> Floats:
        """Return the effects (items,) of showing."""
        return np.where(self.favourites, self.favourite[1], self.sleeper[1])

    @cached_property
    def policy(self) -> Floats:
        """Return the probabilities (items,) with which the policy picks an item for a window."""
        half = int(self.favourites.sum())
        return np.where(
            self.favourites, self.picked / half, (1 - self.picked) / (self.items - half)
        )

    def blocks(self) -> Iterator[WorldBlock]:
        """Yield windows of one item each."""
        for number in count():
            rng = self.draws(number)
            item = rng.choice(self.items, BLOCK, p=self.policy)
            show = np.where(self.favourites[item], *self.show)
            shown = rng.random(BLOCK) < show
            treated, control = (self.control + self.effect)[item], self.control[item]
            click = rng.random(BLOCK) < np.where(shown, treated, control)
            yield WorldBlock(
                [],
                interactions(
                    rng.integers(self.users, size=BLOCK),
                    item,
                    times(number),
                    slate=number * BLOCK + np.arange(BLOCK),
                    position=1,
                    propensity=np.where(shown, self.policy[item] * show, np.nan),
                    show_probability=show,
                    shown=shown,
                    click=click,
                    treated=treated,
                    control=control,
                ),
            )

    @property
    def truth(self) -> Truth:
        """Return effects and outcomes by item, and the average effects."""
        shown = self.control + self.effect
        return {
            "effect": by_item(self.effect),
            "outcome_if_shown": by_item(shown),
            "outcome_if_withheld": by_item(self.control),
            "average_effect_of_windows": float(self.policy @ self.effect),
            "average_effect_of_items": float(self.effect.mean()),
            "best_by_effect": [item_id(n) for n in np.flatnonzero(~self.favourites).tolist()],
            "best_by_outcome": [item_id(n) for n in np.flatnonzero(self.favourites).tolist()],
        }
