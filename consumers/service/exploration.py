"""Slates with exploration and withholding, and the exact probabilities with which they are drawn.

The candidates are ordered: in a share epsilon of the slates by a uniform permutation of all n, else
by rank. Each candidate is withheld with probability w, decided by a keyed hash of user, item and
clock window, so that a user who returns within the window meets the same decision. The first k of
the order stand at the k positions. Where one of them is withheld, the next candidate of the rest of
the order takes its position, unless that is withheld too; the others stay where they are. Once the
rest is used up, those behind an empty position move up.

Items count as withheld if another took their position, or if they could have taken one; each is
recorded with the position at which it would stand. Every shown and every withheld item was shown
with probability 1 - w, whatever k is. `place` is the probability, over keys, of an item standing at
a position by rank.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from consumers.settings import ExplorationSettings

Candidates = NDArray[np.intp]
Probabilities = NDArray[np.float64]
Withholds = Callable[[int], bool]  # says whether a candidate is withheld
NEGLIGIBLE = 1e-16  # smaller probabilities are treated as 0


@dataclass(frozen=True, slots=True)
class Slate:
    """One list and what was withheld from it, as columns of length E; shown items first."""

    candidate: Candidates  # (E,)
    position: NDArray[np.intp]  # (E,) from 1
    propensity: Probabilities  # (E,) probability, over all draws, of being shown at this position
    show_probability: Probabilities  # (E,) of being shown and not withheld; 1: not randomised
    shown: NDArray[np.bool_]  # (E,)


@lru_cache(256)
def reach(k: int, withhold: float) -> int:
    """Return how many of an order suffice for k that are not withheld, almost surely."""
    m = k
    while withhold and _below(m, k, withhold) > math.log(NEGLIGIBLE):
        m += 1 + m // 16
    return m


def _below(m: int, k: int, withhold: float) -> float:
    """Return a Chernoff bound of the log probability that fewer than k of m are not withheld."""
    share = (m - k + 1) / m  # smallest withheld share at which fewer than k remain
    if share <= withhold:
        return 0.0
    gain = share * math.log(share / withhold)
    if share < 1:
        gain += (1 - share) * math.log((1 - share) / (1 - withhold))
    return -m * gain


@lru_cache(1024)
def binomial(m: int, withhold: float) -> Probabilities:
    """Return the probabilities (m + 1,) of how many of m candidates are withheld."""
    if withhold == 0.0:
        surely: Probabilities = np.eye(1, m + 1)[0]
        return surely
    counts = np.arange(m + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    choose = logs[m] - logs - logs[::-1]
    of_each = counts * math.log(withhold) + (m - counts) * math.log1p(-withhold)
    found: Probabilities = np.exp(choose + of_each)
    return found


@lru_cache(4096)
def position_probability(r: int, j: int, n: int, k: int, withhold: float) -> float:
    """Return the probability that the r-th of an order of n is shown at position j of k.

    A candidate of the first k (r <= k) stands at its own position unless it is withheld; if the
    rest of the order is used up, it moves up by the number of empty positions before it. A
    candidate of the rest stands at position j if it is not withheld, and as many of the rest before
    it are not withheld as there are empty positions before j. These cases sum to one binomial
    coefficient.
    """
    w = withhold
    if r > k:
        rest = r - k
        if w == 0.0:
            return 0.0
        log = math.lgamma(j + rest - 1) - math.lgamma(j) - math.lgamma(rest)
        return math.exp(log + j * math.log1p(-w) + rest * math.log(w))
    if j > r:
        return 0.0
    spare = min(max(n - k, 0), reach(k, w))
    if spare == reach(k, w):  # the rest is never used up
        return 1.0 - w if j == r else 0.0
    empty = binomial(r - 1, w)
    taken = binomial(spare, w)[::-1]  # by the number of the rest that are not withheld
    if j == r:
        enough = np.cumsum(empty)
        return float((1 - w) * (taken @ enough[np.minimum(np.arange(spare + 1), r - 1)]))
    at = np.arange(spare + 1) + r - j
    inside = at < r
    return float((1 - w) * (taken[inside] @ empty[at[inside]]))


@lru_cache(4096)
def filled(j: int, n: int, withhold: float) -> float:
    """Return the probability that an order of n fills position j."""
    if j > n:
        return 0.0
    if n >= reach(j, withhold):
        return 1.0
    return float(binomial(n, withhold)[: n - j + 1].sum())


def draw(
    ranked: Candidates,
    n: int,
    k: int,
    epsilon: float,
    withhold: float,
    withholds: Withholds,
    random: np.random.Generator,
) -> Slate:
    """Draw a slate of at most k of the candidates 0..n-1, with its exact probabilities.

    Parameters
    ----------
    ranked : array of int
        The best min(n, reach(k, withhold)) candidates, best first.
    n, k : int
        Number of candidates and of positions.
    epsilon : float
        Share of slates whose order is a uniform permutation.
    withhold : float
        Probability that a candidate is withheld.
    withholds : callable
        Says whether a candidate is withheld.
    random : numpy.random.Generator
        Draws the permutations.
    """
    order = ranked
    explores = random.random() < epsilon
    if explores:
        order = random.choice(n, len(ranked), replace=False)
    kept, out = walk(order.tolist(), k, withholds if withhold else lambda _: False)
    chosen = kept + out
    index = [at for at, _ in chosen]
    position = [j for _, j in chosen]
    candidate = order[index]
    ranks = index
    if explores:
        of = {each: r for r, each in enumerate(ranked.tolist())}
        ranks = [of.get(each, -1) for each in candidate.tolist()]
    size = min(n, k + reach(k, withhold))  # more candidates do not change the probabilities
    by_rank = [
        position_probability(r + 1, j, size, k, withhold) if r >= 0 else 0.0
        for r, j in zip(ranks, position, strict=True)
    ]
    by_chance = [filled(j, n, withhold) / n for j in position]
    mixed = (1.0 - epsilon) * np.array(by_rank) + epsilon * np.array(by_chance)
    return Slate(
        candidate=candidate,
        position=np.array(position, np.intp),
        propensity=np.minimum(mixed, 1.0),
        show_probability=np.full(len(chosen), 1.0 - withhold),
        shown=np.arange(len(chosen)) < len(kept),
    )


Positions = list[tuple[int, int]]  # (index into the order, position from 1)


def walk(order: list[int], k: int, withholds: Withholds) -> tuple[Positions, Positions]:
    """Return the shown and the withheld candidates, each with its position."""
    first = min(k, len(order))
    out: dict[int, int] = {}
    rest = first
    behind = 0  # number of empty positions before this one
    stands: Positions = []
    for j in range(first):
        if not withholds(order[j]):
            stands.append((j, j + 1 - behind))
            continue
        out[j] = j + 1 - behind
        while rest < len(order) and withholds(order[rest]):
            out[rest] = j + 1
            rest += 1
        if rest < len(order):
            stands.append((rest, j + 1))
            rest += 1
        else:
            behind += 1
    return stands, list(out.items())


class Explorer:
    """Draws the slates of one process; its only state is the random generator."""

    def __init__(self, settings: ExplorationSettings) -> None:
        self._epsilon, self._withhold = settings.epsilon, settings.withhold
        self._random = np.random.default_rng(settings.seed or None)
        self.chance = settings.epsilon > 0 or settings.withhold > 0

    def reach(self, k: int) -> int:
        """Return how many of the best candidates a draw of k needs."""
        return reach(k, self._withhold)

    def draw(self, ranked: Candidates, n: int, k: int, withholds: Withholds | None) -> Slate:
        """Return the next slate; with `withholds` None nothing is withheld."""
        withhold = 0.0 if withholds is None else self._withhold
        return draw(
            ranked, n, k, self._epsilon, withhold, withholds or (lambda _: False), self._random
        )


def greedy(ranked: Candidates) -> Slate:
    """Return a slate without randomisation: each candidate at its rank with probability 1."""
    size = len(ranked)
    return Slate(
        candidate=ranked,
        position=np.arange(1, size + 1),
        propensity=np.ones(size),
        show_probability=np.ones(size),
        shown=np.ones(size, np.bool_),
    )
