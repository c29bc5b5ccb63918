"""The score, cut into its paths: terms on the link scale which add up to it exactly."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from stream.inference import outcome
from stream.inference.outcome import World
from stream.inference.rows import Pairs


@dataclass(frozen=True, slots=True)
class Term:
    """One path: what it adds to the score, and what it would add but was cut."""

    name: str
    value: float
    cut: float = 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """The terms, their sum on the link scale, and the score, link^-1 of it."""

    terms: list[Term]
    sum: float
    score: float


@dataclass(frozen=True, slots=True)
class Part:
    """What one attribute adds for this user and item: to the item's bias, and to the match."""

    bias: float
    match: float


def explain(pairs: Pairs, world: World, parts: Mapping[str, Part]) -> Explanation:
    """Return the score of the one pair in terms; `parts` are its attributes' by name.

    `item` and `match` are what remains of the served row without its attributes, so the terms add
    up whatever has been learned of the attributes since the row was written. A place multiplies
    the probability of a click: its term is link(theta mu) - link(mu), log theta where clicks are
    rare. What popularity would have added stands beside its 0 where it is cut.
    """
    terms = outcome.paths(pairs, world)
    full = outcome.paths(pairs, replace(world, cut=False))
    theta = outcome.theta(pairs, world.position)
    eta = terms.eta
    score = theta * pairs.outcome.inverse(eta)
    place = 0.0 if theta == 1.0 else float((pairs.outcome.forward(score) - eta)[0])
    popularity = float(terms.popularity[0])
    named = [
        Term("base", terms.base),
        Term("user", terms.user),
        Term("item", float(terms.item[0]) - sum(part.bias for part in parts.values())),
        Term("match", float(terms.match[0]) - sum(part.match for part in parts.values())),
        *(Term(f"attribute:{name}", part.bias + part.match) for name, part in parts.items()),
        Term("popularity", popularity, float(full.popularity[0]) - popularity),
        Term("confounder", float(terms.confounder[0])),
        Term("position", place),
    ]
    return Explanation(named, float(np.sum([term.value for term in named])), float(score[0]))
