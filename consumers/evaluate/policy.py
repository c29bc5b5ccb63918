"""`evaluate policy`: the value of another policy, estimated from a log with propensities.

The log is read once; each chunk is predicted and judged before it is learned.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumers.evaluate import served, table
from consumers.evaluate.feed import Feed, FeedEvent, ensure_rows, event
from consumers.evaluate.table import TextTable
from consumers.evaluate.trial import START_MS, STEP_MS, scaled
from stream.effects import OffPolicy
from stream.engine import Engine
from stream.errors import Inconsistent
from stream.model.config import ModelConfig

Array = NDArray[Any]
CHUNK = 128  # rows judged with the same state of the model
NAMED = ("action", "reward", "propensity", "position", "user", "slate")
MODEL, UNIFORM = "model", "uniform"  # values of --target; any other is a column


class Log:
    """The validated columns of a log."""

    def __init__(self, data: TextTable) -> None:
        self.data = data
        self.action = data.column("action")
        self.reward = data.numbers("reward")
        self.propensity = probabilities(data, "propensity", zero=False)
        self.position = self._positions() if "position" in data.columns else None
        self.actions = sorted(set(self.action))
        self.taken = np.searchsorted(np.array(self.actions), np.array(self.action))  # (N,)
        self.binary = bool(np.isin(self.reward, (0, 1)).all())
        # rows of a slate belong to one user
        whose = next((name for name in ("user", "slate") if name in data.columns), None)
        self.cluster = None if whose is None else data.groups(whose)
        if len(self.actions) < 2:
            raise Inconsistent(
                f"{data.name} has only one action", "a policy can be judged only if it had a choice"
            )

    def __len__(self) -> int:
        return len(self.reward)

    def _positions(self) -> NDArray[np.int64]:
        """Return the positions; raise Inconsistent for one that is not a count from 1."""
        found = self.data.numbers("position")
        bad = (found < 1) | (found != np.floor(found))
        if bad.any():
            raise self.data.wrong("position", int(np.flatnonzero(bad)[0]), "an integer from 1")
        return found.astype(np.int64)


def probabilities(data: TextTable, name: str, zero: bool) -> NDArray[np.float64]:
    """Return a column of probabilities; raise Inconsistent for the first invalid one."""
    found = data.numbers(name)
    bad = (found > 1) | ((found < 0) if zero else (found <= 0))
    if bad.any():
        wanted = "a probability" if zero else "a probability above 0"
        raise data.wrong(name, int(np.flatnonzero(bad)[0]), wanted)
    return found


def run(path: str, target: str = MODEL, *, config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    """Return IPS, SNIPS and DR of the judged policy, each with value, interval and ess.

    Parameters
    ----------
    path : str
        The CSV file with columns action, reward and propensity. Columns `user` or `slate` group
        rows: variances are then of their sums.
    target : str
        "model": the greedy policy of the model before each chunk; "uniform"; or a column with the
        judged policy's probability of the logged action. With a column, DR is None unless there are
        two actions, as it needs the probability of every action.
    """
    data = table.read(path)
    log = Log(data)
    judged = None if target in (MODEL, UNIFORM) else probabilities(data, target, zero=True)
    learner = Bandit(log, [n for n in data.columns if n not in (*NAMED, target)], config, seed)
    value = OffPolicy(users=0 if log.cluster is None else int(log.cluster.max()) + 1)
    for begin in range(0, len(log), CHUNK):
        at = slice(begin, begin + CHUNK)
        expected = learner.predict(begin, min(begin + CHUNK, len(log)))  # (n, A)
        policy = chosen(target, expected, log.taken[at], None if judged is None else judged[at])
        each = np.arange(len(expected))
        told = expected if begin else np.full_like(expected, np.nan)  # nothing is learned yet
        value.update(
            log.reward[at], log.propensity[at], policy[each, log.taken[at]],
            told[each, log.taken[at]], (policy * told).sum(1),
            None if log.cluster is None else log.cluster[at],
        )  # fmt: skip
        learner.learn(begin, begin + len(expected))
    figures = value.figures()
    if judged is not None and len(log.actions) > 2:
        figures["dr"] |= {"value": None, "interval": None}
    return {
        **figures,
        "target": target,
        "logged": {"value": float(log.reward.mean())},
        "actions": len(log.actions),
    }


def chosen(target: str, expected: Array, taken: Array, judged: Array | None) -> Array:
    """Return the judged policy's probability of each action (n, A).

    If only the logged action's probability is known, the rest is divided equally among the other
    actions, which is exact with two.
    """
    n, actions = expected.shape
    if judged is not None:
        out = np.repeat(((1 - judged) / (actions - 1))[:, None], actions, 1)
        out[np.arange(n), taken] = judged
        return out
    if target == UNIFORM:
        return np.full((n, actions), 1 / actions)
    return np.asarray(np.eye(actions)[expected.argmax(1)])


class Bandit:
    """The engine on the log: each row is a new user with its features, each action an item."""

    def __init__(self, log: Log, features: list[str], config: ModelConfig, seed: int) -> None:
        self.log = log
        self.attributes = log.data.attributes(features)
        self.outcome = "click" if log.binary else "rating"
        config = replace(config, max_users=len(log) + 2, max_items=len(log.actions) + 1)
        if not log.binary:
            config = replace(config, outcomes=scaled(log.reward))
        self.feed = Feed(Engine(config, seed))
        self.feed.learn(
            event("item", START_MS, event_id=f"a{name}", item_id=name) for name in log.actions
        )

    def predict(self, begin: int, end: int) -> Array:
        """Return the expected reward of every action (n, A) before these rows are learned."""
        self.feed.learn(
            event(
                "user", START_MS + n * STEP_MS,
                event_id=f"u{n}", user_id=str(n), attributes=self.attributes[n],
            )
            for n in range(begin, end)
        )  # fmt: skip
        engine = self.feed.engine
        users = ensure_rows(engine, "user", map(str, range(begin, end)))
        items = ensure_rows(engine, "item", self.log.actions)
        first = served.scores(engine, users, items, self.outcome, served.if_shown)  # (n, A)
        if self.log.position is None:
            return first
        place = self.log.position[begin:end]
        return first * served.examined(engine, self.outcome, place)[:, None]

    def learn(self, begin: int, end: int) -> None:
        """Learn these rows."""
        self.feed.learn(self._events(begin, end))

    def _events(self, begin: int, end: int) -> Iterator[FeedEvent]:
        """Yield the events of these rows: an impression, and a rating or click."""
        log = self.log
        for n in range(begin, end):
            ts_ms, reward = START_MS + n * STEP_MS, float(log.reward[n])
            ids = {"user_id": str(n), "item_id": log.action[n], "impression_id": str(n)}
            place = {} if log.position is None else {"position": int(log.position[n])}
            yield event(
                "impression", ts_ms,
                event_id=f"i{n}", **ids, **place, propensity=float(log.propensity[n]),
            )  # fmt: skip
            if not log.binary:
                yield event("rating", ts_ms + 1, event_id=f"o{n}", **ids, value=reward)
            elif reward:
                yield event("click", ts_ms + 1, event_id=f"o{n}", **ids)
