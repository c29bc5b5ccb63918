"""The methods that we are compared with on Coat, with the settings that `tune` found.

Settings come from a random search on held-out fifths of the training log. Each method is judged by
its own criterion: the squared error, weighted by its own propensities. No test rating and no random
data are used. `counterflow evaluate coat --tune` repeats the search in a quarter of an hour.

    mf                    batch, Koren et al. (2009)
    ips_mf                weighted by inverse propensities (Schnabel et al. 2016), estimated from
                          the training log by logistic regression
    snips_mf              the same, self-normalised, with the propensities of the data set
    mf_attributes         one pass over the ratings, with attributes
    mf_attributes_replay  the same, replaying earlier ratings after each one
    mf_attributes_batch   batch, with attributes
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consumers.evaluate import propensity
from consumers.evaluate.coat import Coat, Ratings
from consumers.evaluate.factorization import (
    Factorization,
    PeerLinks,
    epochs,
    fit,
    links,
    no_links,
    one_pass,
)

Array = NDArray[Any]
Propensities = Callable[[Coat, Ratings], Array]


@dataclass(frozen=True, slots=True)
class Peer:
    """One method: its settings, its passes over the data, and its weights."""

    how: Factorization
    passes: Literal["batch", "one", "replay"] = "batch"
    attributes: bool = False
    propensity: Propensities | None = None  # returns (users, items), given the training ratings
    self_normalised: bool = False
    trials: int = 300  # draws in the search for its settings


def estimated(coat: Coat, ratings: Ratings) -> Array:
    """Return propensities estimated from which pairs occur in these ratings."""
    rated = np.zeros((coat.users, coat.items))
    rated[ratings.user, ratings.item] = 1
    return propensity.logistic(rated, coat.user_hot, coat.item_hot)


def shipped(coat: Coat, ratings: Ratings) -> Array:
    """Return the data set's propensities, scaled to the share of the ratings used."""
    return coat.propensity * (len(ratings) / len(coat.train))


WEIGHTED = Factorization(  # the search found the same settings for IPS and SNIPS
    factors=16, epochs=40, rate_bias=0.3, rate_factor=0.24,
    penalty_bias=0.52, penalty_factor=0.37, spread=0.034,
)  # fmt: skip
PEERS: dict[str, Peer] = {
    "mf": Peer(
        Factorization(
            factors=8, epochs=40, rate_bias=0.057, rate_factor=0.32,
            penalty_bias=0.003, penalty_factor=0.37, spread=0.028,
        )
    ),
    "ips_mf": Peer(
        WEIGHTED,
        propensity=estimated,
    ),
    "snips_mf": Peer(
        WEIGHTED,
        propensity=shipped,
        self_normalised=True,
    ),
    "mf_attributes": Peer(
        Factorization(
            factors=16, epochs=1, rate_bias=0.092, rate_factor=0.08, spread=0.057,
            penalty_bias=0.08, penalty_factor=0.21, penalty_feature=0.001,
        ),
        passes="one",
        attributes=True,
        trials=1_000,
    ),
    "mf_attributes_replay": Peer(
        Factorization(
            factors=16, epochs=5, rate_bias=0.051, rate_factor=0.073, spread=0.012,
            penalty_bias=0.023, penalty_factor=0.51, penalty_feature=0.011,
        ),
        passes="replay",
        attributes=True,
        trials=1_000,
    ),
    "mf_attributes_batch": Peer(
        Factorization(
            factors=8, epochs=40, rate_bias=0.028, rate_factor=0.15, spread=0.073,
            penalty_bias=0.033, penalty_factor=0.33, penalty_feature=0.052,
        ),
        attributes=True,
    ),
}  # fmt: skip


def weights(peer: Peer, coat: Coat, ratings: Ratings, chances: Array | None) -> Array:
    """Return the weight of each rating (N,), around 1.

    Inverse propensities times the number of ratings, divided by the number of all pairs (IPS) or by
    their own sum (SNIPS).
    """
    if chances is None:
        return np.ones(len(ratings))
    inverse = 1 / np.maximum(chances[ratings.user, ratings.item], 1e-6)
    whole = inverse.sum() if peer.self_normalised else coat.users * coat.items
    return np.asarray(inverse * (len(ratings) / whole))


def predict(
    peer: Peer, coat: Coat, ratings: Ratings, seed: int, chances: Array | None = None
) -> Array:
    """Learn the ratings in order and return the predicted value of every pair (users, items)."""
    if chances is None and peer.propensity:
        chances = peer.propensity(coat, ratings)
    known: PeerLinks = (
        links(coat.user_hot, coat.item_hot) if peer.attributes else no_links(coat.users, coat.items)
    )
    count, visits = len(ratings), peer.how.epochs
    sequence = (
        epochs(count, visits, seed) if peer.passes == "batch" else one_pass(count, visits - 1, seed)
    )
    return fit(ratings, weights(peer, coat, ratings, chances), sequence, known, peer.how, seed)


def tune(peer: Peer, coat: Coat, folds: int = 5, seed: int = 0) -> Peer:
    """Return the peer with the best of its randomly drawn settings; see the module's docstring."""
    random = np.random.default_rng(seed)
    cuts = []
    for fold in range(folds):
        ratings = coat.train.shuffled(1_000 + fold)
        held = len(ratings) // 5
        kept = ratings.take(slice(held, None))
        chances = peer.propensity(coat, kept) if peer.propensity else None
        cuts.append((kept, ratings.take(slice(held)), chances))
    best, chosen = np.inf, peer
    for _ in range(peer.trials):
        tried = replace(peer, how=drawn(peer, random))
        loss = np.mean([held_out(tried, coat, *cut, fold) for fold, cut in enumerate(cuts)])
        if loss < best:
            best, chosen = float(loss), tried
    return chosen


def held_out(
    peer: Peer, coat: Coat, kept: Ratings, held: Ratings, chances: Array | None, seed: int
) -> float:
    """Return the squared error on held-out ratings, weighted as the peer weights its ratings."""
    table = predict(peer, coat, kept, seed, chances)
    error = (np.clip(table[held.user, held.item], 1, 5) - held.value) ** 2
    return float(np.average(error, weights=weights(peer, coat, held, chances)))


def drawn(peer: Peer, random: np.random.Generator) -> Factorization:
    """Return random settings: rates, penalties and spread log-uniform, others from lists."""

    def log(low: float, high: float) -> float:
        return float(f"{np.exp(random.uniform(np.log(low), np.log(high))):.2g}")

    visits = {"batch": [10, 20, 40], "one": [1], "replay": [3, 5]}[peer.passes]
    return Factorization(
        factors=int(random.choice([4, 8, 16, 32])),
        rate_bias=log(0.02, 0.5),
        rate_factor=log(0.02, 0.5),
        penalty_bias=log(0.003, 1),
        penalty_factor=log(0.01, 3),
        penalty_feature=log(0.001, 0.3) if peer.attributes else 0.0,
        spread=log(0.01, 0.3),
        average=0.0 if peer.passes == "batch" else float(random.choice([0.0, 0.97, 0.99])),
        epochs=int(random.choice(visits)),
    )
