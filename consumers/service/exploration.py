"""Which candidates stand at which places: by rank, by chance, or withheld, and how probably.

A share epsilon of the slates has a uniform permutation of the n candidates for its order, the rest
their ranks. Each candidate is withheld with the chance w, by a keyed hash of user, item and window
of the clock, so that a user who comes back within it meets the same decision. The first k of the
order stand at the k places; where one is withheld, the next of the rest of the order takes its
place, unless that is withheld too. The others stay where they are; where the rest has run out,
those behind an empty place move up.

Withheld are then those whose place another took, and those that could have taken it: each with the
place where it would stand. Each of these, and each that is shown, was shown with the chance 1 - w,
whatever k. `places` has the probability, over keys, of standing at a place by rank.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from consumers.settings import Exploration

Candidates = NDArray[np.intp]
Probabilities = NDArray[np.float64]
Withholds = Callable[[int], bool]  # whether a candidate is withheld
NEGLIGIBLE = 1e-16


@dataclass(frozen=True, slots=True)
class Slate:
    """One list and what was withheld from it, as columns of length E: the shown ones by place."""

    candidate: Candidates  # (E,)
    position: NDArray[np.intp]  # (E,) from 1
    propensity: Probabilities  # (E,) of being shown at this place, over all that chance decides
    show_probability: Probabilities  # (E,) of being shown rather than withheld; 1: not randomised
    shown: NDArray[np.bool_]  # (E,)


@lru_cache(256)
def reach(k: int, withhold: float) -> int:
    """Return how many of an order can matter: that k of them are not withheld is all but sure."""
    m = k
    while withhold and _below(m, k, withhold) > math.log(NEGLIGIBLE):
        m += 1 + m // 16
    return m


def _below(m: int, k: int, withhold: float) -> float:
    """Return a bound of the log chance that fewer than k of m are not withheld (Chernoff)."""
    share = (m - k + 1) / m  # withheld at least
    if share <= withhold:
        return 0.0
    gain = share * math.log(share / withhold)
    if share < 1:
        gain += (1 - share) * math.log((1 - share) / (1 - withhold))
    return -m * gain


@lru_cache(1024)
def binomial(m: int, withhold: float) -> Probabilities:
    """Return the probabilities (m + 1,) that so many of m are withheld."""
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
def place(r: int, j: int, n: int, k: int, withhold: float) -> float:
    """Return the probability that the r-th of an order of n is shown at place j of k.

    Of the first k: at its own place unless it is withheld and, where the rest runs out, as many
    places before it as there are empty ones. Of the rest: if it is not withheld, and as many of the
    rest before it are not as places before this one are empty, which add up to one binomial
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
    if spare == reach(k, w):  # it never runs out
        return 1.0 - w if j == r else 0.0
    empty = binomial(r - 1, w)
    taken = binomial(spare, w)[::-1]  # by how many of the rest are not withheld
    if j == r:
        enough = np.cumsum(empty)
        return float((1 - w) * (taken @ enough[np.minimum(np.arange(spare + 1), r - 1)]))
    at = np.arange(spare + 1) + r - j
    inside = at < r
    return float((1 - w) * (taken[inside] @ empty[at[inside]]))


@lru_cache(4096)
def filled(j: int, n: int, withhold: float) -> float:
    """Return the probability that an order of n fills place j: so many are not withheld."""
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
    """Return a slate of at most k of the candidates 0..n-1, with its true probabilities.

    `ranked` holds the best min(n, reach(k, withhold)) of them, best first; `withholds` says of a
    candidate whether it is withheld, which it is with the chance `withhold`.
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
    size = min(n, k + reach(k, withhold))  # beyond it nothing depends on how many there are
    by_rank = [
        place(r + 1, j, size, k, withhold) if r >= 0 else 0.0
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


Places = list[tuple[int, int]]  # (index into the order, place from 1)


def walk(order: list[int], k: int, withholds: Withholds) -> tuple[Places, Places]:
    """Return what stands and what is withheld, each with its place."""
    first = min(k, len(order))
    out: dict[int, int] = {}
    rest = first
    behind = 0  # how many places before this one stay empty
    stands: Places = []
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
    """Draws the slates of one process; remembers only where its random numbers stand."""

    def __init__(self, settings: Exploration) -> None:
        self._epsilon, self._withhold = settings.epsilon, settings.withhold
        self._random = np.random.default_rng(settings.seed or None)
        self.chance = settings.epsilon > 0 or settings.withhold > 0

    def reach(self, k: int) -> int:
        """Return how many of the best candidates a draw of k needs."""
        return reach(k, self._withhold)

    def draw(self, ranked: Candidates, n: int, k: int, withholds: Withholds | None) -> Slate:
        """Return the next slate of this process; None: nothing is withheld."""
        withhold = 0.0 if withholds is None else self._withhold
        return draw(
            ranked, n, k, self._epsilon, withhold, withholds or (lambda _: False), self._random
        )


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
