"""A feedback loop: clicked items are shown more, and popular items are clicked more."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled
from stream.worlds.base import (
    BLOCK,
    Floats,
    Truth,
    World,
    WorldBlock,
    by_item,
    interactions,
    item_id,
    logistic,
    times,
)


@compiled
def _run(item, score, kappa, middle, draw, clicks, chance, click):  # type: ignore[no-untyped-def]
    """Simulate the windows one by one, since each click raises the probability of the next."""
    for n in range(len(item)):
        i = item[n]
        popularity = np.log(1.0 + clicks[i]) - middle
        chance[n] = 1.0 / (1.0 + np.exp(-(score[i] + kappa * popularity)))
        click[n] = draw[n] < chance[n]
        clicks[i] += click[n]


@dataclass(frozen=True)
class PopularityLoop(World):
    """P(click) = sigmoid(base + taste_i + kappa (log(1 + clicks of i so far) - middle)).

    With probability 1 - `explore` the policy shows items in proportion to their clicks so far,
    updated at each block, and otherwise uniformly; it logs the probability. Early luck is
    amplified, so counts rank the items wrongly, while taste ranks them correctly.
    """

    name: ClassVar[str] = "popularity"
    users: int = 200
    items: int = 20
    base: float = -1.0
    spread: float = 0.5  # standard deviation of taste
    kappa: float = 0.3
    middle: float = 5.0  # of log(1 + clicks)
    explore: float = 0.3

    @cached_property
    def taste(self) -> Floats:
        """Return the items' own appeal (items,) on the logit scale, with mean 0."""
        drawn = self.draws(-1).normal(0, self.spread, self.items)
        out: Floats = drawn - drawn.mean()
        return out

    def blocks(self) -> Iterator[WorldBlock]:
        """Yield windows of one shown item each."""
        clicks: NDArray[Any] = np.zeros(self.items)
        for number in count():
            rng = self.draws(number)
            greedy = (clicks + 1) / (clicks + 1).sum()
            policy = self.explore / self.items + (1 - self.explore) * greedy
            item = rng.choice(self.items, BLOCK, p=policy)
            chance, click = np.empty(BLOCK), np.empty(BLOCK, np.bool_)
            _run(
                item, self.base + self.taste, self.kappa, self.middle, rng.random(BLOCK),
                clicks, chance, click,
            )  # fmt: skip
            yield WorldBlock(
                [],
                interactions(
                    rng.integers(self.users, size=BLOCK),
                    item,
                    times(number),
                    slate=number * BLOCK + np.arange(BLOCK),
                    position=1,
                    propensity=policy[item],
                    click=click,
                    treated=chance,
                ),
            )

    @property
    def truth(self) -> Truth:
        """Return kappa, taste, and the click probabilities at equal popularity (`middle`)."""
        return {
            "kappa": self.kappa,
            "taste": by_item(self.taste),
            "outcome_if_shown": by_item(logistic(self.base + self.taste)),
            "ranking": [item_id(n) for n in np.argsort(-self.taste).tolist()],
        }
