"""Feeding events to an engine as a poll would: encoded, in one partition.

So the evaluation runs the same decoding, joining, learning and serving code as the trainer.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from stream.batch import Batch
from stream.engine import Engine
from stream.errors import Inconsistent
from stream.framing import frame
from stream.interaction_type import InteractionType
from stream.model.config import ModelConfig
from stream.model.learner import Learner, Update
from stream.records import RecordBatch

TOPIC = "evaluate"
POLL = 10_000  # events per poll; the figures must not depend on it


class FeedEvent(NamedTuple):
    """One event: its kind, its time, and its value as JSON."""

    kind: str
    ts_ms: int
    value: bytes


def event(kind: str, ts_ms: int, **fields: Any) -> FeedEvent:
    """Return an event with its value encoded."""
    return FeedEvent(kind, ts_ms, orjson.dumps({"ts_ms": ts_ms, **fields}))


class Recorder(Learner):
    """A learner that records its batches and the predictions made before learning them."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__(config, seed)
        self._told: list[tuple[Batch, Update]] = []

    def step(self, batch: Batch) -> Update:
        """Learn a batch and record it with its predictions."""
        update = super().step(batch)
        self._told.append((batch, update))
        return update

    def told(self) -> dict[str, NDArray[Any]]:
        """Return the columns (N,) of learned outcomes, with the predictions made before."""
        names = ("user", "item", "outcome", "label", "role")
        columns = {
            name: np.concatenate([getattr(batch, name) for batch, _ in self._told])
            for name in names
        }
        for name in ("prediction", "served"):
            columns[name] = np.concatenate([getattr(update, name) for _, update in self._told])
        seen = np.isin(columns.pop("role"), (InteractionType.FACTUAL, InteractionType.EXPOSED))
        return {name: column[seen] for name, column in columns.items()}


class Feed:
    """An engine with the next offset of its only partition."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._offset = 0

    def learn(self, events: Iterable[FeedEvent]) -> None:
        """Learn every event in order, at most POLL events per poll."""
        waiting: list[FeedEvent] = []
        for one in events:
            waiting.append(one)
            if len(waiting) == POLL:
                self._poll(waiting)
                waiting = []
        if waiting:
            self._poll(waiting)

    def _poll(self, events: list[FeedEvent]) -> None:
        """Learn the events as one poll; raise Inconsistent if one is rejected."""
        batches = [
            self._batch(kind, list(group)) for kind, group in groupby(events, lambda e: e.kind)
        ]
        for bad in self.engine.learn(batches).bad:
            raise Inconsistent(
                f"an event of the data was rejected: {bad.reason}: {bad.detail}",
                "ids must have 1 to 256 bytes, and a row at most 64 attributes",
            )

    def _batch(self, kind: str, events: list[FeedEvent]) -> RecordBatch:
        first, last = events[0].ts_ms, max(e.ts_ms for e in events)
        data = b"".join(
            frame(n, e.ts_ms - first, b"k", e.value) for n, e in enumerate(events)
        )  # only tombstones need a real key
        begin = self._offset
        self._offset += len(events)
        return RecordBatch(
            TOPIC, kind, 0, begin, begin, self._offset, first, last, False, len(events), data
        )


def ensure_rows(engine: Engine, kind: str, ids: Iterable[str]) -> NDArray[np.int32]:
    """Return the rows of these ids; -1 for an id that never occurred."""
    vocabulary = engine.users if kind == "user" else engine.items
    found = [vocabulary.find(id_.encode()) for id_ in ids]
    return np.array([-1 if row is None else row for row in found], np.int32)
