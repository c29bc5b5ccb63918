"""`evaluate ml-100k`: progressive errors in time order, and ranking each user's last liked item."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from consumers import datasets, gpu
from consumers.evaluate import served
from consumers.evaluate.feed import Feed, FeedEvent, Recorder, ensure_rows
from consumers.evaluate.metrics import RELEVANT, hit, mae, ndcg_one, rank_of
from stream.engine import Engine
from stream.model.choice import choose
from stream.model.config import ModelConfig

Array = NDArray[Any]
NEW = 10  # users and items with fewer earlier ratings count as new
POPULAR = 0.2  # share of items, those with the most ratings, that count as popular
TOP = 10
OBJECTIVES = ("outcome", "consumption", "popularity")


@dataclass(frozen=True, slots=True)
class Stream:
    """All events in time order, and their ratings as columns (N,) with dense indices."""

    events: list[FeedEvent]
    at: NDArray[np.int64]  # index of each rating in `events`
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    value: NDArray[np.float64]
    users: list[str]  # ids by index
    items: list[str]

    def without(self, ratings: Array) -> list[FeedEvent]:
        """Return the events without these ratings."""
        left_out = set(self.at[ratings].tolist())
        return [event for n, event in enumerate(self.events) if n not in left_out]


def read(events: Sequence[datasets.DatasetEvent]) -> Stream:
    """Return the stream of a data set's events."""
    at, users, items, values = [], [], [], []
    for n, one in enumerate(events):
        if one.kind == "rating":
            told = orjson.loads(one.value)
            at.append(n)
            users.append(told["user_id"])
            items.append(told["item_id"])
            values.append(told["value"])
    user_ids, user = np.unique(users, return_inverse=True)
    described = [e.key.decode() for e in events if e.kind == "item"]
    item_ids, item = np.unique(items + described, return_inverse=True)
    return Stream(
        [FeedEvent(e.kind, e.ts_ms, e.value) for e in events], np.array(at), user, item[: len(at)],
        np.array(values), user_ids.tolist(), item_ids.tolist(),
    )  # fmt: skip


def run(config: ModelConfig, seed: int = 0, ablate: bool = False) -> dict[str, Any]:
    """Return the driver, errors, segments, hr10, ndcg10; with `ablate`, also with each path closed.

    Raises Inconsistent if no driver can be used.
    """
    step = gpu.told(choose(config))
    stream = read(list(datasets.load("ml-100k").events()))
    out = {**figures(stream, config, seed), "learning_step": step}
    if ablate:
        out["ablations"] = {
            path.name: figures(
                stream, replace(config, paths=replace(config.paths, **{path.name: False})), seed
            )
            for path in fields(config.paths)
        }
    return out


def figures(stream: Stream, config: ModelConfig, seed: int) -> dict[str, Any]:
    """Return the progressive errors, and the rankings with held-out ratings."""
    return {**progressive(stream, config, seed), **held_out(stream, config, seed)}


def progressive(stream: Stream, config: ModelConfig, seed: int) -> dict[str, Any]:
    """Return the errors of ratings predicted before they are learned, also by segment."""
    engine = Engine(config, seed)
    engine.learner = recorder = Recorder(config, seed)
    Feed(engine).learn(stream.events)
    told = recorder.told()
    predicted, given, label = told["prediction"], told["served"], told["label"].astype(float)
    kinds = segments(stream)
    return {
        **errors(label, predicted, given),
        "segments": {
            name: {**errors(label[mask], predicted[mask], given[mask]), "count": int(mask.sum())}
            for name, mask in kinds.items()
            if mask.any()
        },
    }


def errors(label: Array, predicted: Array, given: Array) -> dict[str, float]:
    """Return MAE and RMSE of the factual head and of the served score."""
    return {
        f"{name}{of}": error
        for of, told in (("", predicted), ("_served", given))
        for name, error in (
            ("mae", mae(label, told)),
            ("rmse", float(np.sqrt(np.mean((label - told) ** 2)))),
        )
    }


def segments(stream: Stream) -> dict[str, NDArray[np.bool_]]:
    """Return masks (N,): new and known users and items at the time, popular and tail items."""
    count = np.bincount(stream.item, minlength=len(stream.items))
    popular = np.zeros(len(stream.items), bool)
    popular[np.argsort(-count, kind="stable")[: int(POPULAR * len(count))]] = True
    user_new, item_new = earlier(stream.user) < NEW, earlier(stream.item) < NEW
    return {
        "new_users": user_new,
        "known_users": ~user_new,
        "new_items": item_new,
        "known_items": ~item_new,
        "popular_items": popular[stream.item],
        "tail_items": ~popular[stream.item],
    }


def earlier(who: Array) -> NDArray[np.int64]:
    """Return how often each element's value occurred before it (N,)."""
    order = np.argsort(who, kind="stable")
    _, start, count = np.unique(who[order], return_index=True, return_counts=True)
    out = np.empty(len(who), np.int64)
    out[order] = np.arange(len(who)) - np.repeat(start, count)
    return out


def last_liked(stream: Stream) -> NDArray[np.int64]:
    """Return the index of each user's last rating of 3 or more."""
    liked = np.flatnonzero(stream.value >= RELEVANT)
    _, from_end = np.unique(stream.user[liked][::-1], return_index=True)
    return np.sort(liked[::-1][from_end])


def held_out(stream: Stream, config: ModelConfig, seed: int) -> dict[str, Any]:
    """Return hr10 and ndcg10 of ranking each user's last liked item among all unseen items."""
    held = last_liked(stream)
    engine = Engine(config, seed)
    feed = Feed(engine)
    feed.learn(stream.without(held))
    learned = np.ones(len(stream.user), bool)
    learned[held] = False
    unseen = np.ones((len(stream.users), len(stream.items)), bool)
    unseen[stream.user[learned], stream.item[learned]] = False
    users = ensure_rows(engine, "user", stream.users)
    items = ensure_rows(engine, "item", stream.items)
    count = np.bincount(stream.item[learned], minlength=len(stream.items)).astype(float)
    learned_exposure = config.paths.exposure
    hr: dict[str, float | None] = {}
    ndcg: dict[str, float | None] = {}
    for objective in OBJECTIVES:
        if objective == "consumption" and not learned_exposure:
            hr[objective] = ndcg[objective] = None
            continue
        if objective == "popularity":
            scores: Array = np.repeat(count[None], len(users), 0)
        else:
            score = served.SCORES[objective]
            scores = served.scores(engine, users, items, "rating", score)
        places = np.array(
            [
                rank_of(scores[u], i, unseen[u])
                for u, i in zip(stream.user[held].tolist(), stream.item[held].tolist(), strict=True)
            ]
        )
        hr[objective], ndcg[objective] = hit(places, TOP), ndcg_one(places, TOP)
    return {"hr10": hr, "ndcg10": ndcg, "held_out": len(held)}
