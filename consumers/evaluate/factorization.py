"""Matrix factorisation for the compared methods: weighted, with or without attributes, compiled.

With g_u = p_u + sum_a x_a / sqrt(n_u) over the user's n_u attribute values a, and g_i alike,

    y = mean + b_u + b_i + (the attributes' biases) + g_u . g_i

Each visit of a rating takes one step of row-wise Adagrad on w (y - label)^2 / 2 + penalties. The
caller's `sequence` says which ratings are visited, and how often: epochs of a batch method, or one
pass with replays.

References
----------
Koren, Bell and Volinsky (2009); attributes as in Kula (2015).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumers.evaluate.coat import Ratings
from stream.compiled import compiled

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Factorization:
    """Hyperparameters of a method, chosen on the training log alone."""

    factors: int = 8
    rate_bias: float = 0.1
    rate_factor: float = 0.1
    penalty_bias: float = 0.02  # L2 penalty, per visit, of a user's or an item's own bias
    penalty_factor: float = 0.1
    penalty_feature: float = 0.02  # of an attribute value's bias and vector
    spread: float = 0.05  # standard deviation of the initial vectors
    average: float = 0.0  # decay of the Polyak average of rows; 0 predicts from the rows
    epochs: int = 20  # passes of a batch method, or visits per rating including replays


@dataclass(frozen=True, slots=True)
class PeerLinks:
    """Attribute values of each row: indices into the feature table (rows, L), -1 for none."""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    features: int


def links(user_hot: Array, item_hot: Array) -> PeerLinks:
    """Return the links of one-hot features; user features come first in the table."""
    user, item = _feature_rows(user_hot, 0), _feature_rows(item_hot, user_hot.shape[1])
    return PeerLinks(user, item, user_hot.shape[1] + item_hot.shape[1])


def no_links(users: int, items: int) -> PeerLinks:
    """Return empty links."""
    return PeerLinks(np.full((users, 1), -1, np.int32), np.full((items, 1), -1, np.int32), 1)


def _feature_rows(hot: Array, first: int) -> NDArray[np.int32]:
    out = np.full((len(hot), max(1, int((hot > 0).sum(1).max()))), -1, np.int32)
    for row, values in enumerate(hot):
        at = np.flatnonzero(values)
        out[row, : len(at)] = at + first
    return out


def epochs(count: int, passes: int, seed: int) -> NDArray[np.int64]:
    """Return the concatenation of `passes` random permutations of the ratings."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(count) for _ in range(passes)])


def one_pass(count: int, replays: int, seed: int) -> NDArray[np.int64]:
    """Return each rating in order, followed by `replays` draws from those up to it."""
    random = np.random.default_rng(seed)
    drawn = (random.random((count, replays)) * np.arange(1, count + 1)[:, None]).astype(np.int64)
    return np.concatenate([np.arange(count)[:, None], drawn], 1).ravel()


def fit(
    ratings: Ratings,
    weight: Array,
    sequence: Array,
    links: PeerLinks,
    how: Factorization,
    seed: int,
) -> NDArray[np.float64]:
    """Return the predicted value of every pair (users, items), not clipped to the scale.

    Parameters
    ----------
    ratings : Ratings
        N ratings.
    weight : array, shape (N,)
        Weight of each rating.
    sequence : array of int
        Indices of the ratings in the order of the visits.
    links : Links
        Attribute values of users and items.
    how : Factorization
        Hyperparameters.
    """
    random = np.random.default_rng(seed)
    width = how.factors + 1  # a row holds its vector, then its bias
    tables = [
        random.normal(0, how.spread, (rows, width))
        for rows in (len(links.user), len(links.item), links.features)
    ]
    for table in tables:
        table[:, -1] = 0
    user_own, item_own, feature_own = tables
    user_mean, item_mean, feature_mean = (table.copy() for table in tables)
    mean = _fit(
        ratings.user, ratings.item, ratings.value.astype(float), np.asarray(weight, float),
        sequence, links.user, links.item, user_own, item_own, feature_own,
        user_mean, item_mean, feature_mean,
        np.array([how.rate_factor, how.rate_bias]),
        np.array([how.penalty_factor, how.penalty_bias, how.penalty_feature]),
        how.average,
    )  # fmt: skip
    if how.average:  # user rows are not averaged, so that a single rating has its effect
        item_own, feature_own = item_mean, feature_mean
    user = _fold(user_own, feature_own, links.user)
    item = _fold(item_own, feature_own, links.item)
    out: NDArray[np.float64] = mean + user[:, -1:] + item[:, -1] + user[:, :-1] @ item[:, :-1].T
    return out


def _fold(own: Array, feature: Array, links: Array) -> Array:
    """Return the rows with their attributes' rows added."""
    known = links >= 0  # (rows, L)
    weight = known / np.sqrt(np.maximum(known.sum(1, keepdims=True), 1))
    return np.asarray(own + np.einsum("rl,rlw->rw", weight, feature[links]))


@compiled
def _composed(out, own, feature, links):  # type: ignore[no-untyped-def]
    """Write the row plus its attributes' rows to `out`; return the attributes' weight."""
    n = 0
    for k in range(links.size):
        n += links[k] >= 0
    weight = 1 / np.sqrt(max(n, 1))
    for d in range(own.size):
        out[d] = own[d]
        for k in range(links.size):
            if links[k] >= 0:
                out[d] += weight * feature[links[k], d]
    return weight


@compiled
def _descend(row, sums, mean, g, other, rates, penalty, penalty_bias, average):  # type: ignore[no-untyped-def]
    """Take one Adagrad step on a row against `other`, and update its running mean."""
    D = row.size - 1
    square = 0.0
    for d in range(D):
        square += (g * other[d] + penalty * row[d]) ** 2
    sums[0] += square / D
    step = rates[0] / np.sqrt(sums[0])
    for d in range(D):
        row[d] -= step * (g * other[d] + penalty * row[d])
    bias = g + penalty_bias * row[D]
    sums[1] += bias * bias
    row[D] -= rates[1] * bias / np.sqrt(sums[1])
    for d in range(D + 1):
        mean[d] += (1 - average) * (row[d] - mean[d])


@compiled
def _fit(  # type: ignore[no-untyped-def]
    user, item, value, weight, sequence, user_links, item_links, users, items, features,
    mean_user, mean_item, mean_feature, rates, penalties, average,
):  # fmt: skip
    """Visit the ratings in the order of the sequence; return the weighted mean of their values."""
    width = users.shape[1]
    gu, gi = np.empty(width), np.empty(width)
    sums_user = np.full((len(users), 2), 1e-2)
    sums_item = np.full((len(items), 2), 1e-2)
    sums_feature = np.full((len(features), 2), 1e-2)
    seen = np.zeros(len(value), np.bool_)
    total, mass = 3.0, 1.0
    for j in sequence:
        u, i, w = user[j], item[j], weight[j]
        if not seen[j]:
            seen[j] = True
            total += w * value[j]
            mass += w
        wu = _composed(gu, users[u], features, user_links[u])
        wi = _composed(gi, items[i], features, item_links[i])
        score = total / mass + gu[-1] + gi[-1]
        for d in range(width - 1):
            score += gu[d] * gi[d]
        g = w * (score - value[j])
        _descend(
            users[u], sums_user[u], mean_user[u], g, gi, rates, penalties[0], penalties[1], average
        )
        _descend(
            items[i], sums_item[i], mean_item[i], g, gu, rates, penalties[0], penalties[1], average
        )
        for links, part, other in ((user_links[u], wu, gi), (item_links[i], wi, gu)):
            for f in links:
                if f >= 0:
                    _descend(
                        features[f], sums_feature[f], mean_feature[f], part * g, other, rates,
                        penalties[2], penalties[2], average,
                    )  # fmt: skip
    return total / mass
