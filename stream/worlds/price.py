"""A world in which prices change and have a known effect on ratings."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import ClassVar

import numpy as np

from stream.worlds.base import (
    BLOCK,
    Change,
    Floats,
    Truth,
    World,
    WorldBlock,
    by_item,
    interactions,
    times,
)


@dataclass(frozen=True)
class PriceEffects(World):
    """rating = base + quality_i + beta (price_i(t) - centre) + noise; better items cost more.

    Each block changes the prices of all items by item events. Between items, price and quality are
    correlated so strongly that expensive items have higher ratings; within an item, a higher price
    lowers the rating. Ratings are given without impressions, of items chosen uniformly, so quality
    is the only confounder.
    """

    name: ClassVar[str] = "price"
    users: int = 200
    items: int = 40
    base: float = 3.0
    beta: float = -0.1  # rating per unit of price
    centre: float = 10.0
    markup: float = 5.0  # price per unit of quality
    swing: float = 2.0  # half the width of a price's changes
    noise: float = 0.5  # half the width of the uniform noise

    @cached_property
    def quality(self) -> Floats:
        """Return the items' quality (items,), in [-.8, .8] so that ratings stay on their scale."""
        return self.draws(-1).permutation(np.linspace(-0.8, 0.8, self.items))

    def prices(self, block: int) -> Floats:
        """Return the prices (items,) of a block, rounded to cents."""
        drawn = self.draws(block, 1).uniform(-self.swing, self.swing, self.items)
        out: Floats = (self.centre + self.markup * self.quality + drawn).round(2)
        return out

    def blocks(self) -> Iterator[WorldBlock]:
        """Yield the new prices, then ratings."""
        for number in count():
            rng = self.draws(number)
            price, ts_ms = self.prices(number), times(number)
            item = rng.integers(self.items, size=BLOCK)
            mean = self.base + self.quality + self.beta * (price - self.centre)
            rating = mean[item] + rng.uniform(-self.noise, self.noise, BLOCK)
            before_ms = int(ts_ms[0]) - 1
            yield WorldBlock(
                [Change("item", n, {"price": p}, before_ms) for n, p in enumerate(price.tolist())],
                interactions(
                    rng.integers(self.users, size=BLOCK),
                    item,
                    ts_ms,
                    rating=rating,
                    treated=mean[item],
                ),
            )

    @property
    def truth(self) -> Truth:
        """Return beta, the mean rating by item at the centre price, and the slope between items."""
        return {
            "beta": self.beta,
            "quality": by_item(self.quality),
            "mean_rating_at_centre": by_item(self.base + self.quality),
            "naive_slope": self._naive(),
        }

    def _naive(self) -> float:
        """Return cov(rating, price) / var(price), the slope of a regression without quality."""
        between = self.markup**2 * self.quality.var()
        within = self.swing**2 / 3
        return float(self.beta + self.markup * self.quality.var() / (between + within))
