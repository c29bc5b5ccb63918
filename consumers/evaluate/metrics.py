"""Metrics of predictions and rankings, and their spread over seeds.

A rating is relevant from 3 on (`RELEVANT`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
RELEVANT = 3.0  # the threshold of a relevant rating, on a scale of 1 to 5


def mse(label: Array, predicted: Array) -> float:
    """Return the mean squared error."""
    return float(np.mean((np.asarray(label, float) - predicted) ** 2))


def mae(label: Array, predicted: Array) -> float:
    """Return the mean absolute error."""
    return float(np.mean(np.abs(np.asarray(label, float) - predicted)))


def ranks(score: Array) -> NDArray[np.float64]:
    """Return ascending ranks from 1; ties have their mean rank."""
    _, group, count = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    mean: NDArray[np.float64] = last - (count - 1) / 2
    return mean[group]


def auc(relevant: Array, score: Array) -> float:
    """Return the probability that a relevant pair scores above an irrelevant one; ties count half.

    It is computed over all pairs together, not by user; NaN if there are no relevant or no
    irrelevant pairs.
    """
    relevant = np.asarray(relevant, bool)
    yes = int(relevant.sum())
    no = len(relevant) - yes
    if not yes or not no:
        return float("nan")
    return float((ranks(score)[relevant].sum() - yes * (yes + 1) / 2) / (yes * no))


def ndcg(user: Array, relevant: Array, score: Array, k: int = 5) -> float:
    """Return the mean NDCG@k over users with binary gain; 1 for a user without relevant pairs.

    Each user's own pairs are ranked; ties keep their order.

    References
    ----------
    Järvelin and Kekäläinen (2002), gain rel / log2(rank + 1).
    """
    order = np.lexsort((-np.asarray(score, float), user))  # stable
    _, start, count = np.unique(np.asarray(user)[order], return_index=True, return_counts=True)
    rel = np.asarray(relevant, float)[order]
    rank = np.arange(len(order)) - np.repeat(start, count)  # (N,) from 0
    discount = np.where(rank < k, 1 / np.log2(rank + 2), 0.0)
    gained = np.add.reduceat(rel * discount, start)  # (users,)
    found = np.minimum(np.add.reduceat(rel, start), k).astype(int)
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))])[found]
    return float(np.where(ideal > 0, gained / np.where(ideal > 0, ideal, 1), 1.0).mean())


def rank_of(score: Array, item: int, among: Array) -> int:
    """Return the rank, from 0, of an item among those of the mask; ties rank before it."""
    return int(np.count_nonzero(among & (score >= score[item])) - bool(among[item]))


def hit(ranks: Array, k: int = 10) -> float:
    """Return HR@k: the share of held-out items ranked among the first k."""
    return float(np.mean(np.asarray(ranks) < k))


def ndcg_one(ranks: Array, k: int = 10) -> float:
    """Return NDCG@k of lists with one relevant item: the mean of 1 / log2(rank + 1)."""
    at = np.asarray(ranks)
    return float(np.mean(np.where(at < k, 1 / np.log2(at + 2.0), 0.0)))


def rating_figures(user: Array, label: Array, predicted: Array) -> dict[str, float]:
    """Return mse, mae, auc and ndcg5 of predicted ratings, as published for Coat.

    Errors use predictions clipped to the scale of 1 to 5; rankings use them unclipped.
    """
    relevant = np.asarray(label) >= RELEVANT
    clipped = np.clip(predicted, 1, 5)
    return {
        "mse": mse(label, clipped),
        "mae": mae(label, clipped),
        "auc": auc(relevant, predicted),
        "ndcg5": ndcg(user, relevant, predicted, 5),
    }


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure, and its standard deviation over runs as `name_sd`."""
    out: dict[str, float] = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        out[name] = float(np.mean(values))
        out[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return out


def paired(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> Any:
    """Return each figure's mean difference, ours minus theirs, and its standard error.

    Runs are paired by seed, so the variation that both share cancels.
    """
    out: dict[str, dict[str, float]] = {}
    for name in ours[0]:
        d = np.array([a[name] - b[name] for a, b in zip(ours, theirs, strict=True)])
        se = float(d.std(ddof=1) / np.sqrt(len(d))) if len(d) > 1 else float("nan")
        out[name] = {"difference": float(d.mean()), "se": se}
    return out
