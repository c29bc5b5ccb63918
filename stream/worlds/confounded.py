"""A world with a latent trait that affects both what is seen and its outcome."""

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
    Interactions,
    Truth,
    World,
    WorldBlock,
    by_item,
    interactions,
    logistic,
    times,
)


@dataclass(frozen=True)
class Confounded(World):
    """Each user has a latent Z; half of the decisions are windows, half are ratings.

    Windows: an item is shown with probability e = sigmoid(push Z). P(click | shown) = sigmoid(base
    + lift + pull Z); if withheld, lift is absent. So the difference between shown and withheld
    windows exaggerates the effect unless e is used.

    Ratings are given without impressions: item i is rated with probability proportional to exp(push
    Z r_i), and the value is 3 + taste_i + pull Z r_i / 2 + noise. So items that are rated are liked
    more than those that are not.

    If `logged` is false, neither probability is in the events.
    """

    name: ClassVar[str] = "confounded"
    users: int = 400
    items: int = 40
    push: float = 1.0
    pull: float = 0.8
    base: float = -1.0
    lift: float = 0.5
    noise: float = 0.3  # half the width of the ratings' uniform noise
    logged: bool = True

    @cached_property
    def latent(self) -> Floats:
        """Return Z (users,), within two standard deviations so that ratings stay on their scale."""
        drawn: Floats = self.draws(-1).normal(size=self.users).clip(-2, 2)
        return drawn

    @cached_property
    def response(self) -> Floats:
        """Return r (items,), the sign with which an item responds to Z."""
        return np.where(np.arange(self.items) % 2, 1.0, -1.0)

    @cached_property
    def taste(self) -> Floats:
        """Return the items' mean ratings (items,) minus 3."""
        return self.draws(-1, 1).uniform(-0.5, 0.5, self.items)

    @cached_property
    def selection(self) -> Floats:
        """Return the probabilities (users, items) that a rating of the user is of the item."""
        odds = np.exp(self.push * self.latent[:, None] * self.response)
        out: Floats = odds / odds.sum(1, keepdims=True)
        return out

    @cached_property
    def mean(self) -> Floats:
        """Return the expected ratings (users, items)."""
        trait = self.pull / 2 * self.latent[:, None] * self.response
        out: Floats = 3 + self.taste + trait
        return out

    def blocks(self) -> Iterator[WorldBlock]:
        """Yield windows and ratings alternately."""
        for number in count():
            rng = self.draws(number)
            user = rng.integers(self.users, size=BLOCK)
            yield WorldBlock([], self._decided(rng, number, user))

    def _decided(
        self,
        rng: np.random.Generator,
        number: int,
        user: NDArray[np.int64],
    ) -> Interactions:
        """Return the interactions of a block."""
        window = np.arange(BLOCK) % 2 == 0
        chosen = (rng.random((BLOCK, 1)) > self.selection.cumsum(1)[user]).sum(1)
        item = np.where(
            window, rng.integers(self.items, size=BLOCK), np.minimum(chosen, self.items - 1)
        )
        show = self.show[user]
        shown = rng.random(BLOCK) < show
        treated, control = self.treated[user], self.control[user]
        click = rng.random(BLOCK) < np.where(shown, treated, control)
        value = self.mean[user, item] + rng.uniform(-self.noise, self.noise, BLOCK)
        none = np.nan
        return interactions(
            user,
            item,
            times(number),
            slate=np.where(window, number * BLOCK + np.arange(BLOCK), -1),
            position=window,
            show_probability=np.where(window & self.logged, show, none),
            propensity=np.where(window & shown & self.logged, show / self.items, none),
            shown=shown | ~window,
            click=click & window,
            rating=np.where(window, none, value),
            treated=np.where(window, treated, self.mean[user, item]),
            control=np.where(window, control, none),
        )

    @cached_property
    def show(self) -> Floats:
        """Return e (users,), the probability of showing."""
        return logistic(self.push * self.latent)

    @cached_property
    def treated(self) -> Floats:
        """Return the click probabilities (users,) if shown."""
        return logistic(self.base + self.lift + self.pull * self.latent)

    @cached_property
    def control(self) -> Floats:
        """Return the click probabilities (users,) if withheld."""
        return logistic(self.base + self.pull * self.latent)

    @property
    def truth(self) -> Truth:
        """Return the average effect and the mean ratings, and their estimates if Z is ignored."""
        e = self.show
        seen = (self.selection * self.mean).sum(0) / self.selection.sum(0)
        return {
            "average_effect_of_windows": float((self.treated - self.control).mean()),
            "naive_difference": float(
                (e @ self.treated) / e.sum() - ((1 - e) @ self.control) / (1 - e).sum()
            ),
            "mean_rating": by_item(self.mean.mean(0)),
            "mean_rating_of_the_rated": by_item(seen),
        }
