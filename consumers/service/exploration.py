"""Which candidates stand at which places: by rank, by chance, or withheld, and how probably.

A share epsilon of the slates is a uniform permutation of the n candidates, the rest is by rank. In
a share omega of all slates the item at one of the k places, chosen uniformly, is withheld and the
next one of the order, its (k + 1)-th, takes that place; the others stay where they are. Both draws
are independent of the candidates, so item i of rank r is shown at place j with the probability

    (1 - epsilon) * ((1 - omega/k) * [r = j] + omega/k * [r = k + 1]) + epsilon / n

and an item that the order has put at a place is shown there with 1 - omega/k, else withheld. Where
n <= k no further item could take a place, and nothing is withheld.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consumers.settings import Exploration

Candidates = NDArray[np.intp]
Probabilities = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slate:
    """One list and what was withheld from it, as columns of length E: the shown ones by place."""

    candidate: Candidates  # (E,)
    position: NDArray[np.intp]  # (E,) from 1
    propensity: Probabilities  # (E,) of being shown at this place, over all that chance decides
    show_probability: Probabilities  # (E,) of being shown rather than withheld; 1: not randomised
    shown: NDArray[np.bool_]  # (E,)


def draw(
    ranked: Candidates,
    n: int,
    k: int,
    epsilon: float,
    withhold: float,
    random: np.random.Generator,
) -> Slate:
    """Return a slate of min(n, k) of the candidates 0..n-1, with its true probabilities.

    `ranked` holds the best min(n, k + 1) of them, best first. O(k): the permutation is never made
    beyond its head.
    """
    order = ranked
    if random.random() < epsilon:
        order = random.choice(n, len(ranked), replace=False)
    spare = n > k
    omega = withhold / k if spare else 0.0  # chance that this very place is the withheld one
    withheld = spare and random.random() < withhold
    length = min(n, k) + withheld
    candidate = order[:length].copy()
    position = np.arange(1, length + 1)
    show_probability = np.full(length, 1.0 - omega)
    shown = np.ones(length, np.bool_)
    if withheld:
        hole = int(random.integers(k))
        candidate[[hole, k]] = candidate[[k, hole]]
        position[k] = hole + 1
        show_probability[hole] = 1.0  # it stands in, and where it does not it is never logged
        shown[k] = False
    by_rank = (1.0 - omega) * (candidate == ranked[position - 1])
    if spare:
        by_rank += omega * (candidate == ranked[k])
    propensity = np.minimum((1.0 - epsilon) * by_rank + epsilon / max(n, 1), 1.0)
    return Slate(candidate, position, propensity, show_probability, shown)


class Explorer:
    """Draws the slates of one process; remembers only where its random numbers stand."""

    def __init__(self, settings: Exploration) -> None:
        self._epsilon, self._withhold = settings.epsilon, settings.withhold
        self._random = np.random.default_rng(settings.seed or None)
        self.chance = settings.epsilon > 0 or settings.withhold > 0

    def draw(self, ranked: Candidates, n: int, k: int) -> Slate:
        """Return the next slate of this process."""
        return draw(ranked, n, k, self._epsilon, self._withhold, self._random)


def greedy(ranked: Candidates) -> Slate:
    """Return the slate on which chance has no part: these candidates, each surely at its place."""
    size = len(ranked)
    return Slate(
        candidate=ranked,
        position=np.arange(1, size + 1),
        propensity=np.ones(size),
        show_probability=np.ones(size),
        shown=np.ones(size, np.bool_),
    )
