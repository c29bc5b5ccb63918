"""The law of `loop`, in torch operations over waves of distinct users, on any device.

Wave k holds each user's k-th interaction of the batch, and the waves run in order: users are exact
at any batch size. Items and attribute values that repeat inside a wave see the wave's first state,
their gradients are summed, and their accumulators grow as the loop's would. Without repeats a wave
is the loop's law to rounding.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream.model.config import ModelConfig
from stream.model.tables import Table


def order(user: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the interactions in wave order (n,) and the waves' borders (waves + 1,)."""
    if not len(user):
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    by_user = np.argsort(user, kind="stable")
    new = np.r_[True, np.diff(user[by_user]) != 0]
    starts = np.flatnonzero(new)
    rank = np.empty(len(user), np.int64)
    rank[by_user] = np.arange(len(user)) - starts[np.cumsum(new) - 1]
    return np.argsort(rank, kind="stable"), np.r_[0, np.cumsum(np.bincount(rank))]


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the score for n interactions: rows, attribute links, composed bias and vector."""

    rows: Tensor  # (n,)
    owner: Tensor  # (m,) which interaction a link belongs to
    links: Tensor  # (m,) rows of the feature table
    weight: Tensor  # (n,) 1 / sqrt(links of the row), 0 without any
    bias: Tensor  # (n, Y)
    vector: Tensor  # (n, D)


def compose(table: Table, features: Table, links: Tensor, rows: Tensor) -> Side:
    """Return the rows as they enter the score: their own part plus their attributes'."""
    mine = links[rows].long()  # (n, L)
    there = mine > 0
    count = there.sum(1)
    weight = torch.where(count > 0, count.clamp(min=1).float().rsqrt(), 0.0)
    owner, slot = there.nonzero(as_tuple=True)
    linked = mine[owner, slot] - 1
    scale = weight[owner, None]
    bias = table.bias[rows].index_add(0, owner, features.bias[linked] * scale)
    vector = table.vector[rows].index_add(0, owner, features.vector[linked] * scale)
    return Side(rows, owner, linked, weight, bias, vector)


def gradients(error: Tensor, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    """Return dL/dg_u and dL/dg_i (n, D) of the score's product, by hand."""
    return error[:, None] * item, error[:, None] * user


def descend(
    table: Table, rows: Tensor, outcome: Tensor, g: Tensor, grad: Tensor, rates: tuple[float, float]
) -> None:
    """Take one Adagrad step per distinct row on summed gradients.

    The accumulator grows by the sum of squares, as one event after the other would make it. The
    step divides by what the square of the sum would give: the same for a row that comes once, and
    never above the rate for a row that comes a thousand times with one opinion.
    """
    distinct, place = torch.unique(rows, return_inverse=True)  # (r,), (n,)
    cell = (place, outcome)
    shape = (len(distinct), table.bias.shape[1])
    total = g.new_zeros(shape).index_put(cell, g, accumulate=True)
    squares = g.new_zeros(shape).index_put(cell, g * g, accumulate=True)
    before = table.bias_sum[distinct]
    table.bias[distinct] -= rates[0] * total * (before + total * total).rsqrt()
    table.bias_sum[distinct] = before + squares

    total = grad.new_zeros(len(distinct), grad.shape[1]).index_add(0, place, grad)
    squares = grad.new_zeros(len(distinct)).index_add(0, place, (grad * grad).mean(1))
    start = table.vector_sum[distinct]
    scale = rates[1] * (start + (total * total).mean(1)).rsqrt()
    table.vector[distinct] -= scale[:, None] * total
    table.vector_sum[distinct] = start + squares


def learn(
    config: ModelConfig,
    tables: tuple[Table, Table, Table],
    links: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    borders: NDArray[np.int64],
) -> Tensor:
    """Learn the interactions wave by wave; return the predictions (n,) before each was learned.

    `columns` are user, item, outcome, label, global term and whether it counts as an event, in the
    order that `order` gave. No synchronisation with the device happens inside a wave but for the
    sizes of the distinct rows.
    """
    device = tables[0].device
    logit = torch.tensor([o.link == "logit" for o in config.outcomes], device=device)
    low = torch.tensor([o.low for o in config.outcomes], device=device)
    high = torch.tensor([o.high for o in config.outcomes], device=device)
    user_rates = (config.lr_user_bias, config.lr_user_factor)
    item_rates = (config.lr_item_bias, config.lr_item_factor)
    feature_rates = (config.lr_feature_bias, config.lr_feature_factor)
    prediction = torch.zeros(len(columns[0]), device=device)
    for start, stop in pairwise(borders.tolist()):
        user, item, outcome, label, base, counts = (c[start:stop] for c in columns)
        u = compose(tables[0], tables[2], links[0], user)
        i = compose(tables[1], tables[2], links[1], item)
        one = outcome[:, None]
        score = base + (u.bias.gather(1, one) + i.bias.gather(1, one)).squeeze(1)
        score = score + (u.vector * i.vector).sum(1)  # (n,)
        expected = torch.where(logit[outcome], torch.sigmoid(score), score)
        error = expected - label
        prediction[start:stop] = expected.clamp(low[outcome], high[outcome])
        grad_user, grad_item = gradients(error, u.vector, i.vector)
        owner = torch.cat([u.owner, i.owner])
        weight = torch.cat([u.weight[u.owner], i.weight[i.owner]])
        grad = torch.cat([grad_user[u.owner], grad_item[i.owner]]) * weight[:, None]
        descend(tables[0], user, outcome, error, grad_user, user_rates)
        descend(tables[1], item, outcome, error, grad_item, item_rates)
        if len(owner):
            linked = torch.cat([u.links, i.links])
            descend(tables[2], linked, outcome[owner], error[owner] * weight, grad, feature_rates)
        tables[0].events[user] += counts
        tables[1].events.index_add_(0, item, counts)
    return prediction
