"""Explains a score as terms on the link scale whose sum is exactly the score."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from stream.inference import outcome
from stream.inference.outcome import Scenario
from stream.inference.rows import ServedPairs


@dataclass(frozen=True, slots=True)
class ExplainedTerm:
    """One term of the score, and in `cut` what it would add if it were not left out."""

    name: str
    value: float
    clipped: float = 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """The terms, their sum on the link scale, and the score, link^-1(sum)."""

    terms: list[ExplainedTerm]
    sum: float
    score: float


@dataclass(frozen=True, slots=True)
class AttributeTerm:
    """What one attribute adds for this user and item: to the item's bias, and to the match."""

    bias: float
    match: float


def explain(pairs: ServedPairs, world: Scenario, parts: Mapping[str, AttributeTerm]) -> Explanation:
    """Return the score of the single pair as terms; `parts` are those of its attributes, by name.

    `item` and `match` are what remains of the served row without its attributes, so the terms add
    up even if attributes were learned since the row was written. A position multiplies the
    probability of a click: its term is link(theta mu) - link(mu), about log theta if clicks are
    rare. If popularity is left out, its term is 0 and `cut` holds what it would have added.
    """
    terms = outcome.paths(pairs, world)
    full = outcome.paths(pairs, replace(world, clipped=False))
    theta = outcome.theta(pairs, world.position)
    eta = terms.eta
    score = theta * pairs.outcome.inverse(eta)
    position = 0.0 if theta == 1.0 else float((pairs.outcome.forward(score) - eta)[0])
    popularity = float(terms.popularity[0])
    named = [
        ExplainedTerm("base", terms.base),
        ExplainedTerm("user", terms.user),
        ExplainedTerm("item", float(terms.item[0]) - sum(part.bias for part in parts.values())),
        ExplainedTerm("match", float(terms.match[0]) - sum(part.match for part in parts.values())),
        *(
            ExplainedTerm(f"attribute:{name}", part.bias + part.match)
            for name, part in parts.items()
        ),
        ExplainedTerm("popularity", popularity, float(full.popularity[0]) - popularity),
        ExplainedTerm("confounder", float(terms.confounder[0])),
        ExplainedTerm("position", position),
    ]
    return Explanation(named, float(np.sum([term.value for term in named])), float(score[0]))
