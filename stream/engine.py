"""One poll of record batches becomes one change of the model: decode, dedupe, rows, step.

Pure: the same batches in the same order give the same state, bit for bit with the compiled step,
however the polls are cut. Everything a restart needs is in `state()`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.batch import Batch
from stream.catalog import Catalog
from stream.drift import Drift
from stream.duplicates import Duplicates
from stream.evaluation import Progressive
from stream.events import KINDS, AttributeEvent, BadRecord, Decoded, decode
from stream.framing import frame
from stream.model.config import ModelConfig
from stream.model.learner import Kind, Learner
from stream.records import RecordBatch
from stream.vocabulary import Vocabulary

_RATING, _CLICK = KINDS.index("rating"), KINDS.index("click")
_PRIME = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Learned:
    """What one poll changed: rows to write, records to bury, and the counts of both."""

    users: NDArray[np.int32]  # rows, sorted, unique
    items: NDArray[np.int32]
    bad: list[BadRecord]
    attributes: list[AttributeEvent]
    events: dict[str, int]  # accepted, by kind, duplicates left out
    duplicates: int
    drifted: list[str]
    kafka_ts_ms: NDArray[np.int64]  # (n,) of the clicks and ratings learned
    user: NDArray[np.int32]  # (n,) their users' rows, in poll order
    item: NDArray[np.int32]  # (n,)

    @property
    def learned(self) -> int:
        """How many clicks and ratings were learned."""
        return len(self.kafka_ts_ms)


class Engine:
    """All that is learned, and the only door through which it changes."""

    def __init__(
        self, config: ModelConfig, seed: int = 0, batch_max: int = 65_536, window: int = 1_000_000
    ) -> None:
        self.config = config
        self.seed = seed
        self.batch_max = batch_max
        self.users = Vocabulary("user", config.max_users)
        self.items = Vocabulary("item", config.max_items)
        self.duplicates = Duplicates(window)
        self.catalog = Catalog()
        self.learner = Learner(config, seed)
        names = [o.name for o in config.outcomes]
        self.progressive = Progressive(names, [o.link == "logit" for o in config.outcomes])
        self.drift = Drift(names)
        self._outcome = {o.name: n for n, o in enumerate(config.outcomes)}
        rating = config.outcomes[self._outcome["rating"]]
        self._scale = (float(rating.low), float(rating.high))

    def learn(self, batches: Sequence[RecordBatch]) -> Learned:
        """Every good record of the poll is learned once after the call, in poll order."""
        decoded = decode(batches, rating_scale=self._scale)
        fresh = self.duplicates.fresh(
            decoded.data, decoded.kind, decoded.event_at, decoded.event_len
        )
        attributes = [a for a in decoded.attributes if fresh[a.index]]
        user, _ = self.users.rows(
            decoded.data, decoded.user_at, np.where(fresh, decoded.user_len, 0).astype(np.int32)
        )
        item, known = self.items.rows(
            decoded.data, decoded.item_at, np.where(fresh, decoded.item_len, 0).astype(np.int32)
        )
        batch, index = self._collate(decoded, batches, fresh, user, item, known)
        changed: list[NDArray[np.int32]] = []
        changed_items: list[NDArray[np.int32]] = []
        predictions: list[NDArray[np.float32]] = []
        begin = 0
        for stop, events in self._turns(attributes, index):
            for at in range(begin, stop, self.batch_max):
                update = self.learner.step(batch.cut(at, min(at + self.batch_max, stop)))
                changed.append(update.users)
                changed_items.append(update.items)
                predictions.append(update.prediction)
            begin = stop
            for event in events:
                rows = self._attribute(event, user, item)
                (changed if KINDS[decoded.kind[event.index]] == "user" else changed_items).append(
                    rows
                )
        drifted: list[str] = []
        if predictions:
            predicted = np.concatenate(predictions)
            loss = self.progressive.update(batch.outcome, batch.label, predicted)
            drifted = self.drift.update(batch.outcome, loss, predicted)
        counts = np.bincount(decoded.kind[fresh], minlength=len(KINDS))
        return Learned(
            users=_union(changed),
            items=_union(changed_items),
            bad=decoded.bad,
            attributes=attributes,
            events={kind: int(n) for kind, n in zip(KINDS, counts, strict=True)},
            duplicates=int((~fresh).sum()),
            drifted=drifted,
            kafka_ts_ms=decoded.kafka_ts_ms[index],
            user=batch.user,
            item=batch.item,
        )

    def warm_up(self) -> None:
        """Everything compiled is compiled after the call; nothing is learned."""
        small = replace(self.config, max_users=8, max_items=8, max_features=64)
        other = Engine(small, self.seed, self.batch_max, window=16)
        value = (
            b'{"event_id":"w","ts_ms":1,"user_id":"u","item_id":"i","value":%g}' % self._scale[0]
        )
        item = b'{"event_id":"w","ts_ms":1,"item_id":"i","attributes":{"a":"b"}}'
        for kind, record in (("item", item), ("rating", value), ("click", value)):
            data = frame(0, 0, b"u", record)
            other.learn([RecordBatch("", kind, 0, 0, 0, 1, 1, 1, False, 1, data)])
        other.load(other.state())
        other.learner.rows("user", np.zeros(1, np.int32))

    def _collate(
        self,
        decoded: Decoded,
        batches: Sequence[RecordBatch],
        fresh: NDArray[np.bool_],
        user: NDArray[np.int32],
        item: NDArray[np.int32],
        known: NDArray[np.int32],
    ) -> tuple[Batch, NDArray[np.int64]]:
        """Return the clicks and ratings as one batch, and their places in the poll."""
        kind = decoded.kind
        index = np.flatnonzero(fresh & ((kind == _RATING) | (kind == _CLICK)))
        click = kind[index] == _CLICK
        partitions = np.array([b.partition for b in batches] or [0], np.uint64)
        place = (
            (partitions[decoded.batch[index]] << np.uint64(48))
            ^ (kind[index].astype(np.uint64) << np.uint64(44))
            ^ decoded.offset[index].astype(np.uint64)
        )
        return (
            Batch(
                user=user[index],
                item=item[index],
                outcome=np.where(click, self._outcome["click"], self._outcome["rating"]).astype(
                    np.int8
                ),
                label=np.where(click, 1.0, decoded.value[index]).astype(np.float32),
                known_items=known[index],
                key=(place + np.uint64(self.seed + 1)) * np.uint64(_PRIME),
            ),
            index,
        )

    def _turns(
        self, attributes: list[AttributeEvent], index: NDArray[np.int64]
    ) -> list[tuple[int, list[AttributeEvent]]]:
        """Cut the batch where attributes change: (events before, attribute events then)."""
        turns: list[tuple[int, list[AttributeEvent]]] = []
        stops = np.searchsorted(index, [a.index for a in attributes]).tolist()
        for stop, event in zip(stops, attributes, strict=True):
            if turns and turns[-1][0] == stop:
                turns[-1][1].append(event)
            else:
                turns.append((stop, [event]))
        if len(index):
            turns.append((len(index), []))
        return turns

    def _attribute(
        self, event: AttributeEvent, user: NDArray[np.int32], item: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        kind: Kind = "user" if event.kind == "user" else "item"
        rows = user if kind == "user" else item
        row = int(rows[event.index])
        if row < 0:  # a tombstone has no value, so its id is the key
            vocabulary = self.users if kind == "user" else self.items
            found = vocabulary.find(event.id.encode())
            if found is None:
                return np.empty(0, np.int32)
            row = found
        if event.attributes is None:
            self.learner.forget(kind, row)
        else:
            self.learner.set_attributes(kind, row, event.attributes)
        if kind == "item":
            self.catalog.put(row, event.title, event.attributes)
        return np.array([row], np.int32)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of everything learned, as flat names."""
        return {
            f"{part}.{name}": array
            for part, holder in self._parts().items()
            for name, array in holder.state().items()
        }

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """The engine is the saved one after the call."""
        for part, holder in self._parts().items():
            prefix = f"{part}."
            holder.load(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )

    def _parts(self) -> dict[str, Any]:
        return {
            "users": self.users,
            "items": self.items,
            "duplicates": self.duplicates,
            "catalog": self.catalog,
            "learner": self.learner,
            "progressive": self.progressive,
            "drift": self.drift,
        }


def _union(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    if not parts:
        return np.empty(0, np.int32)
    return np.unique(np.concatenate(parts)) if len(parts) > 1 else parts[0]
