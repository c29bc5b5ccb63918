"""`evaluate coat`: learn self-selected ratings, judge on random ones, beside other methods."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from consumers.evaluate import coat as data
from consumers.evaluate import ours, peers, served
from consumers.evaluate.coat import Coat, Ratings
from consumers.evaluate.feed import Feed, ensure_rows, event
from consumers.evaluate.metrics import over_seeds, paired, rating_figures
from stream.engine import Engine
from stream.model.config import ModelConfig

T = TypeVar("T")
START_MS, STEP_MS = 1_600_000_000_000, 60_000
BASELINE = "mf_attributes"


def run(folder: str, seeds: int, config: ModelConfig) -> dict[str, Any]:
    """Return each method's figures over seeds, and ours against one-pass MF with attributes.

    A seed determines the order of the log, which has no times, and the methods' random numbers, so
    methods are paired by seed. `ours.CHOSEN` overrides the given configuration.
    """
    coat = data.load(folder)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("counterflow", *peers.PEERS)}
    chances = {
        name: peer.propensity(coat, coat.train) if peer.propensity else None
        for name, peer in peers.PEERS.items()
    }
    config = replace(config, **ours.CHOSEN)
    for seed in range(seeds):
        log = coat.train.shuffled(seed)
        runs["counterflow"].append(judged(coat, counterflow(coat, log, config, seed)))
        for name, peer in peers.PEERS.items():
            runs[name].append(judged(coat, peers.predict(peer, coat, log, seed, chances[name])))
    mine, theirs = runs["counterflow"], runs[BASELINE]
    return {
        **{name: over_seeds(found) for name, found in runs.items()},
        "paired": {"against": BASELINE, **paired(mine, theirs)},
        "seeds": seeds,
    }


def tuned(folder: str, config: ModelConfig) -> dict[str, Any]:
    """Return the settings that the search on the training log finds for each method."""
    coat = data.load(folder)
    found = {name: peers.tune(peer, coat).how for name, peer in peers.PEERS.items()}
    return {"counterflow": ours.search(coat, counterflow, config), **found}


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the values in lists of this size; the last one may be shorter."""
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk


def judged(coat: Coat, table: NDArray[Any]) -> dict[str, float]:
    """Return the figures of a table of predictions (users, items) on the random ratings."""
    test = coat.test
    return rating_figures(test.user, test.value, table[test.user, test.item])


def counterflow(coat: Coat, log: Ratings, config: ModelConfig, seed: int) -> NDArray[np.float64]:
    """Return the engine's rating if shown of every pair (users, items), after one pass.

    After every CHUNK ratings, REPLAY times as many earlier ones are learned again.
    """
    feed = Feed(Engine(replace(config, max_users=coat.users, max_items=coat.items), seed))
    for kind, attributes in (("user", coat.user_attributes), ("item", coat.item_attributes)):
        feed.learn(
            event(kind, START_MS, event_id=f"{kind}-{n}", **{f"{kind}_id": str(n)}, attributes=row)
            for n, row in enumerate(attributes)
        )
    ratings = zip(log.user.tolist(), log.item.tolist(), log.value.tolist(), strict=True)
    for chunk in batched(enumerate(ratings), ours.CHUNK):
        feed.learn(
            event(
                "rating", START_MS + n * STEP_MS,
                event_id=f"r-{n}", user_id=str(u), item_id=str(i), value=value,
            )
            for n, (u, i, value) in chunk
        )  # fmt: skip
        feed.engine.learner.replay(ours.REPLAY * len(chunk))
    users = ensure_rows(feed.engine, "user", map(str, range(coat.users)))
    items = ensure_rows(feed.engine, "item", map(str, range(coat.items)))
    return served.scores(feed.engine, users, items, "rating", served.if_shown)
