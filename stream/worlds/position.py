"""A world of slates whose lower positions are examined less often."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import ClassVar

import numpy as np

from stream.worlds.base import (
    BLOCK,
    STEP_MS,
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
class PositionBias(World):
    """P(click on i at position k) = theta_k mu_i, theta_k = k^-decay (position-based model).

    A share of the slates are the first positions of a uniform permutation. The others have the
    order of the policy, which puts the worst items first, so that by click rate the worst items
    look good. The probability of an item at its position is logged.
    """

    name: ClassVar[str] = "position"
    users: int = 200
    items: int = 20
    places: int = 5
    decay: float = 0.7
    randomised: float = 0.4

    @cached_property
    def theta(self) -> Floats:
        """Return the examination probabilities (places,); the first is 1."""
        out: Floats = np.arange(1, self.places + 1, dtype=np.float64) ** -self.decay
        return out

    @cached_property
    def attraction(self) -> Floats:
        """Return mu (items,), the click probabilities at the first position."""
        return self.draws(-1).permutation(np.linspace(0.3, 0.6, self.items))

    def blocks(self) -> Iterator[WorldBlock]:
        """Yield slates of `places` items, BLOCK items per block."""
        slates = BLOCK // self.places
        order = np.argsort(self.attraction)[: self.places]
        for number in count():
            rng = self.draws(number)
            random = rng.random(slates) < self.randomised
            shuffled = rng.random((slates, self.items)).argsort(1)[:, : self.places]
            item = np.where(random[:, None], shuffled, order).ravel()
            position = np.tile(np.arange(self.places), slates)
            chance = self.theta[position] * self.attraction[item]
            slate = number * slates + np.arange(slates)
            yield WorldBlock(
                [],
                interactions(
                    np.repeat(rng.integers(self.users, size=slates), self.places),
                    item,
                    np.repeat(times(0)[0] + STEP_MS * slate, self.places),
                    slate=np.repeat(slate, self.places),
                    position=position + 1,
                    propensity=self.randomised / self.items
                    + (1 - self.randomised) * (order[position] == item),
                    click=rng.random(len(item)) < chance,
                    treated=chance,
                ),
            )

    @property
    def truth(self) -> Truth:
        """Return theta by position, mu by item, and the ranking by mu."""
        return {
            "theta": self.theta.tolist(),
            "outcome_if_shown": by_item(self.attraction),
            "ranking": [item_id(n) for n in np.argsort(-self.attraction).tolist()],
        }
