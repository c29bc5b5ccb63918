"""A price that changes, and what a change of it does."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import ClassVar

import numpy as np

from stream.worlds.base import (
    BLOCK,
    Block,
    Change,
    Floats,
    Truth,
    World,
    by_item,
    interactions,
    times,
)


@dataclass(frozen=True)
class PriceEffects(World):
    """rating = base + quality_i + beta (price_i(t) - centre) + noise; good items cost more.

    Every block of decisions reprices all items by item events. Over items, price and quality go
    together so much that dear items are rated higher; within an item, a higher price lowers the
    rating. Ratings come unasked, of items chosen uniformly, so nothing but quality confounds.
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
        """Return the items' quality (items,), -.8 to .8: ratings then stay on their scale."""
        return self.draws(-1).permutation(np.linspace(-0.8, 0.8, self.items))

    def prices(self, block: int) -> Floats:
        """Return the prices (items,) that hold in a block, in cents' precision."""
        drawn = self.draws(block, 1).uniform(-self.swing, self.swing, self.items)
        out: Floats = (self.centre + self.markup * self.quality + drawn).round(2)
        return out

    def blocks(self) -> Iterator[Block]:
        """Yield the new prices, then ratings."""
        for number in count():
            rng = self.draws(number)
            price, ts_ms = self.prices(number), times(number)
            item = rng.integers(self.items, size=BLOCK)
            mean = self.base + self.quality + self.beta * (price - self.centre)
            rating = mean[item] + rng.uniform(-self.noise, self.noise, BLOCK)
            before_ms = int(ts_ms[0]) - 1
            yield Block(
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
        """Return beta, the mean rating by item at the centre price, and the slope over items."""
        return {
            "beta": self.beta,
            "quality": by_item(self.quality),
            "mean_rating_at_centre": by_item(self.base + self.quality),
            "naive_slope": self._naive(),
        }

    def _naive(self) -> float:
        """Return cov(rating, price) / var(price), quality left out of the regression."""
        between = self.markup**2 * self.quality.var()
        within = self.swing**2 / 3
        return float(self.beta + self.markup * self.quality.var() / (between + within))
