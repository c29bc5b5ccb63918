"""A world whose mean ratings change abruptly at a known moment."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import ClassVar

import numpy as np

from stream.worlds.base import (
    BLOCK,
    Floats,
    Truth,
    World,
    WorldBlock,
    by_item,
    interactions,
    times,
)


@dataclass(frozen=True)
class ChangePoint(World):
    """Ratings around the items' means; from one event on, the means are reflected about `middle`.

    What was best is worst after the change. Ratings are given without impressions, of items chosen
    uniformly.
    """

    name: ClassVar[str] = "change-point"
    users: int = 200
    items: int = 40
    middle: float = 3.0
    reach: float = 1.5  # means lie within middle +- reach
    noise: float = 0.5  # half the width of the uniform noise
    change_at: int = 10_000  # the first rating under the new means

    @cached_property
    def before(self) -> Floats:
        """Return the items' mean ratings (items,) before the change."""
        return self.middle + self.draws(-1).permutation(
            np.linspace(-self.reach, self.reach, self.items)
        )

    def blocks(self) -> Iterator[WorldBlock]:
        """Yield ratings."""
        after = 2 * self.middle - self.before
        for number in count():
            rng = self.draws(number)
            item = rng.integers(self.items, size=BLOCK)
            old = number * BLOCK + np.arange(BLOCK) < self.change_at
            mean = np.where(old, self.before[item], after[item])
            rating = mean + rng.uniform(-self.noise, self.noise, BLOCK)
            yield WorldBlock(
                [],
                interactions(
                    rng.integers(self.users, size=BLOCK),
                    item,
                    times(number),
                    rating=rating,
                    treated=mean,
                ),
            )

    @property
    def truth(self) -> Truth:
        """Return the moment of the change, and the mean ratings before and after it."""
        return {
            "change_at": self.change_at,
            "change_ts_ms": int(times(0)[0] + (times(0)[1] - times(0)[0]) * self.change_at),
            "mean_rating_before": by_item(self.before),
            "mean_rating_after": by_item(2 * self.middle - self.before),
        }
