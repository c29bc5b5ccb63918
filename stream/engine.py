"""The engine turns one poll of record batches into one update of the model.

The stages are: decode, drop duplicates, map ids to rows, join outcomes to exposures, learn. The
engine has no side effects outside its own state: the same batches in the same order give the same
state. With the sequential driver the state is bit-identical however the batches are divided into
polls. `state()` holds everything that a restart needs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.batch import Batch
from stream.catalog import Catalog
from stream.drift import DriftDetectors
from stream.duplicates import Duplicates
from stream.errors import Inconsistent
from stream.estimators import Estimators
from stream.evaluation import Progressive
from stream.event_time import event_time
from stream.events import KINDS, AttributeEvent, BadRecord, Decoded, decode
from stream.framing import frame
from stream.hashing import KEY_BYTES, NO_KEY, hash_many
from stream.interaction_type import InteractionType
from stream.join import REMOVES_ITEM, REMOVES_USER, Arrivals, Joined, Joiner
from stream.model.config import ModelConfig
from stream.model.features import EntityKind
from stream.model.learner import Learner
from stream.model.step.names import TERMS
from stream.records import RecordBatch
from stream.schemas import ATTRIBUTE_KINDS
from stream.vocabulary import Vocabulary

_PRIME = 0x9E3779B97F4A7C15
_SLATE = np.uint64(0x510E527FADE682D1)
_Rows = tuple[
    NDArray[np.int32], NDArray[np.int32]
]  # each record's row, and the vocabulary's size just after that record
_LATEST_MS = 2**62  # bounds times so that adding a window does not overflow int64
_LEAST = float(np.finfo(np.float32).tiny)  # keeps a tiny probability above 0 in float32


@dataclass(frozen=True, slots=True)
class JoinConfig:
    """Bounds of the join of exposures and outcomes, in event time.

    `window_s` is how long an exposure waits for an outcome, `idle_s` how long a silent partition
    can hold back the watermark, and `ahead_s` how far an event's own time may exceed its Kafka
    timestamp. `open_max`, `pending_max` and `closed_max` bound the open exposures, the waiting
    outcomes and the remembered closed exposures.
    """

    window_s: float = 3600.0
    idle_s: float = 60.0
    ahead_s: float = 1.0
    open_max: int = 1_000_000
    pending_max: int = 100_000
    closed_max: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Learned:
    """What one poll changed: rows to publish, records for the dead-letter topic, and counts."""

    users: NDArray[np.int32]  # changed rows, sorted, unique
    items: NDArray[np.int32]  # likewise
    bad: list[BadRecord]
    attributes: list[AttributeEvent]
    events: dict[str, int]  # accepted events by kind, without duplicates and refused ones
    duplicates: int
    drifted: list[str]
    kafka_ts_ms: NDArray[np.int64]  # (n,) of the clicks and ratings learned
    user: NDArray[np.int32]  # (n,) their users' rows, in poll order
    item: NDArray[np.int32]  # (n,) their items' rows
    ahead: int  # events whose time was capped because it was too far ahead of their Kafka time
    refused: dict[str, int]  # by kind, events that name a new id although its table is full

    @property
    def learned(self) -> int:
        """Return how many clicks and ratings were learned."""
        return len(self.kafka_ts_ms)


class Engine:
    """All learned state; `learn` and `close_windows` are the only ways to change it.

    Parameters
    ----------
    config
        The model's settings.
    seed
        Seeds the initial values and the sampling of uniform items.
    batch_max
        The most interactions that one call of the learner takes.
    window
        How many (type, event_id) pairs are remembered to detect duplicates.
    join
        Bounds of the join of exposures and outcomes.
    hash_key
        16 random bytes that key the hash of ids, so that producers cannot choose ids that collide.
        The key is part of the state and does not affect what is learned. The default, all zeros,
        selects the unkeyed hash of older snapshots.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int = 0,
        batch_max: int = 65_536,
        window: int = 1_000_000,
        join: JoinConfig = JoinConfig(),
        hash_key: bytes = bytes(KEY_BYTES),
    ) -> None:
        self.hash_key = hash_key
        key = np.frombuffer(hash_key, "<u8").astype(np.uint64)
        self.config = config
        self.seed = seed
        self.batch_max = batch_max
        self.join = join
        self.users = Vocabulary("user", config.max_users, key)
        self.items = Vocabulary("item", config.max_items, key)
        self.duplicates = Duplicates(window, key)
        self.joiner = Joiner(
            int(join.window_s * 1000), int(join.idle_s * 1000), join.open_max, join.pending_max,
            join.closed_max, int(join.ahead_s * 1000),
        )  # fmt: skip
        self.catalog = Catalog()
        self.learner = Learner(config, seed)
        names = [o.name for o in config.outcomes]
        self.progressive = Progressive(names, [o.link == "logit" for o in config.outcomes])
        self.drift = DriftDetectors(names)
        self.causal = Estimators(config.outcomes, config.max_items, config.max_users)
        self._outcome = {o.name: n for n, o in enumerate(config.outcomes)}
        rating = config.outcomes[self._outcome["rating"]]
        self._scale = (float(rating.low), float(rating.high))
        self._partitions: dict[tuple[str, int], int] = {}  # (topic, partition) -> dense number

    def learn(
        self, batches: Sequence[RecordBatch], pending: Collection[tuple[str, int]] = ()
    ) -> Learned:
        """Learn every valid record of the poll exactly once, in poll order.

        Parameters
        ----------
        batches
            The record batches of the poll.
        pending
            The partitions (topic, number) of impressions, clicks and ratings that are known to have
            more records to read. Windows wait for them, however far behind they are.
        """
        decoded = decode(batches, rating_scale=self._scale)
        fresh = self.duplicates.fresh(
            decoded.data, decoded.kind, decoded.event_at, decoded.event_len
        )
        duplicates = int((~fresh).sum())
        removing = [a.index for a in decoded.attributes if a.attributes is None]
        named = fresh.copy()
        named[removing] = False  # a removal must not create a row
        user, known_users = self.users.ensure_rows(
            decoded.data, decoded.user_at, np.where(named, decoded.user_len, 0).astype(np.int32)
        )
        item, known = self.items.ensure_rows(
            decoded.data, decoded.item_at, np.where(named, decoded.item_len, 0).astype(np.int32)
        )
        refused = {
            "user": named & (decoded.user_len > 0) & (user < 0),
            "item": named & (decoded.item_len > 0) & (item < 0),
        }
        fresh &= ~(refused["user"] | refused["item"])
        attributes = [a for a in decoded.attributes if fresh[a.index]]
        self._find(attributes, (user, known_users), (item, known))
        self._number(batches, pending)
        arrivals = self._arrivals(decoded, batches, user, item, attributes)
        joined = self.joiner.join(
            arrivals, [self._partitions[record_numbers] for record_numbers in sorted(pending)]
        )
        record_numbers = self._record_numbers(decoded, batches)
        batch = self._collate(joined, record_numbers, known)
        changed, changed_items, drifted = self._step(
            joined, batch, self._turns(attributes, joined.source), user, item, decoded
        )
        counts = np.bincount(decoded.kind[fresh], minlength=len(KINDS))
        mine = joined.source[joined.counts]
        return Learned(
            users=_union(changed),
            items=_union(changed_items),
            bad=decoded.bad,
            attributes=attributes,
            events={kind: int(n) for kind, n in zip(KINDS, counts, strict=True)},
            duplicates=duplicates,
            drifted=drifted,
            kafka_ts_ms=decoded.kafka_ts_ms[mine],
            user=joined.user[joined.counts],
            item=joined.item[joined.counts],
            ahead=self._ahead(decoded, fresh),
            refused={kind: int(which.sum()) for kind, which in refused.items()},
        )

    def _ahead(self, decoded: Decoded, fresh: NDArray[np.bool_]) -> int:
        latest = decoded.kafka_ts_ms + int(self.join.ahead_s * 1000)
        return int((fresh & (decoded.kafka_ts_ms >= 0) & (decoded.ts_ms > latest)).sum())

    def close_windows(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Close every open window and learn its outcome; return the changed user and item rows."""
        joined = self.joiner.close_all()
        record_numbers = np.array([self.joiner.watermark_ms or 0], np.uint64)
        batch = self._collate(joined, record_numbers, np.array([len(self.items)], np.int32))
        users, items, _ = self._step(joined, batch, [(len(batch), [])], None, None, None)
        self.causal.flush(self.learner.numbers)
        return _union(users), _union(items)

    def _step(
        self,
        joined: Joined,
        batch: Batch,
        turns: list[tuple[int, list[AttributeEvent]]],
        user: NDArray[np.int32] | None,
        item: NDArray[np.int32] | None,
        decoded: Decoded | None,
    ) -> tuple[list[NDArray[np.int32]], list[NDArray[np.int32]], list[str]]:
        """Learn the interactions, and set attributes at the place of their events among them."""
        changed: list[NDArray[np.int32]] = []
        changed_items: list[NDArray[np.int32]] = []
        treated = np.full(len(batch), np.nan, np.float32)
        control = np.full(len(batch), np.nan, np.float32)
        terms = np.zeros((len(batch), len(TERMS)), np.float32)
        served = np.full(len(batch), np.nan, np.float32)
        begin = 0
        for stop, events in turns:
            for at in range(begin, stop, self.batch_max):
                end = min(at + self.batch_max, stop)
                part = batch.slice(at, end)
                update = self.learner.step(part)
                changed.append(update.users)
                changed_items.append(update.items)
                treated[at:end], control[at:end] = update.prediction, update.control
                terms[at:end], served[at:end] = update.terms, update.served
                if self.learner.features.numbers:
                    self.causal.follow(part, update.terms, self.learner.numbers)
                if self.config.synthetic > 0:  # only its rows matter; its predictions are unused
                    made = self.learner.imagine(part, update)
                    changed.append(made.users)
                    changed_items.append(made.items)
            begin = stop
            for event in events:
                assert user is not None and item is not None and decoded is not None
                told, kafka_ms = decoded.ts_ms[event.index], decoded.kafka_ts_ms[event.index]
                ts_ms = int(event_time(told, kafka_ms, int(self.join.ahead_s * 1000), True))
                rows = self._attribute(event, user, item, ts_ms)
                (changed if KINDS[decoded.kind[event.index]] == "user" else changed_items).append(
                    rows
                )
        self.joiner.note(joined, treated, control)
        self.causal.update(joined.closed, treated, control)
        self.causal.regress(batch, terms)
        outcome = (batch.role == InteractionType.FACTUAL) | (batch.role == InteractionType.EXPOSED)
        if not outcome.any():
            return changed, changed_items, []
        loss = self.progressive.update(
            batch.outcome[outcome], batch.label[outcome], treated[outcome], served[outcome]
        )
        drifted = self.drift.update(batch.outcome[outcome], loss, treated[outcome])
        return changed, changed_items, drifted

    def warm_up(self) -> None:
        """Compile or load every compiled function; learn nothing."""
        # settle the driver first: the small model might choose another one by itself
        same = self.learner.choice.pinned(self.config)
        small = replace(same, max_users=8, max_items=8, max_features=64)
        room = replace(self.join, open_max=16, pending_max=16, closed_max=16)
        other = Engine(small, self.seed, self.batch_max, 16, room, self.hash_key)
        value = (
            b'{"event_id":"w","ts_ms":1,"user_id":"u","item_id":"i","value":%g}' % self._scale[0]
        )
        item = b'{"event_id":"w","ts_ms":1,"item_id":"i","attributes":{"a":"b","n":1}}'
        shown = b'{"event_id":"w","ts_ms":1,"impression_id":"s","user_id":"u","item_id":"i"}'
        for kind, record in (
            ("item", item), ("rating", value), ("impression", shown), ("click", value),
        ):  # fmt: skip
            data = frame(0, 0, b"u", record)
            other.learn([RecordBatch("", kind, 0, 0, 0, 1, 1, 1, False, 1, data)])
        other.close_windows()
        other.learner.replay(1)
        other.load(other.state())
        other.learner.served_rows("user", np.zeros(1, np.int32))

    def model(self) -> dict[str, Any]:
        """Return the part of the model that is published beside its rows, ready for JSON."""
        outcomes, causal = self.config.outcomes, self.causal.figures(self.learner.features.numbers)
        return {
            "factors": self.config.factors,
            "outcomes": [
                {"name": o.name, "link": o.link, "low": o.low, "high": o.high} for o in outcomes
            ],
            "residual_sd": {o.name: self.progressive.spread(o.name) for o in outcomes},
            "metrics": {o.name: self.progressive.figures(o.name) for o in outcomes},
            "drift": {
                signal: {"detections": n} for signal, n in self.drift.detections.items() if n
            },
            **self.learner.describe(),
            **causal,
            # the slopes are those of a user with these mean factors
            **({"mean_user": self.learner.mean_user().tolist()} if causal["slopes"] else {}),
        }

    def _find(self, attributes: list[AttributeEvent], users: _Rows, items: _Rows) -> None:
        """Give each removal the row of what it removes, if that row was known when it came."""
        for event in attributes:
            if event.attributes is None:
                ours, (rows, known) = (
                    (self.users, users) if event.kind == "user" else (self.items, items)
                )
                row = ours.find(event.id.encode())
                if row is not None and row < known[event.index]:
                    rows[event.index] = row

    def _arrivals(
        self,
        decoded: Decoded,
        batches: Sequence[RecordBatch],
        user: NDArray[np.int32],
        item: NDArray[np.int32],
        attributes: list[AttributeEvent],
    ) -> Arrivals:
        # records of users and items do not move the watermark, so their number is not used
        dense = [self._partitions.get((b.topic, b.partition), 0) for b in batches]
        partition = np.array(dense or [0], np.int32)[decoded.batch]
        kind = decoded.kind.copy()
        for event in attributes:
            if event.attributes is None:
                kind[event.index] = REMOVES_USER if event.kind == "user" else REMOVES_ITEM
        return Arrivals(
            kind=kind,
            partition=partition,
            user=user,
            item=item,
            slate=hash_many(
                decoded.data, decoded.impression_at, decoded.impression_len, _SLATE, self.users.key
            ),
            ts_ms=np.minimum(decoded.ts_ms, _LATEST_MS),
            kafka_ts_ms=np.minimum(decoded.kafka_ts_ms, _LATEST_MS),
            value=decoded.value.astype(np.float32),
            position=decoded.position,
            propensity=np.maximum(decoded.propensity, _LEAST).astype(np.float32),
            show_probability=np.maximum(decoded.show_probability, _LEAST).astype(np.float32),
            shown=decoded.shown,
        )

    def _number(self, batches: Sequence[RecordBatch], pending: Collection[tuple[str, int]]) -> None:
        """Give a dense number to every partition that can move the watermark.

        New partitions, those of `pending` included, are numbered in the order of their names, so
        the numbers do not depend on which partitions a poll happens to contain.
        """
        known = {(b.topic, b.partition) for b in batches if b.kind not in ATTRIBUTE_KINDS} | set(
            pending
        )
        for key in sorted(known - self._partitions.keys()):
            self._partitions[key] = len(self._partitions)

    def _record_numbers(
        self, decoded: Decoded, batches: Sequence[RecordBatch]
    ) -> NDArray[np.uint64]:
        """Return an integer (N,) that is unique to each record: its partition, kind and offset."""
        partitions = np.array([b.partition for b in batches] or [0], np.uint64)
        kinds = decoded.kind.astype(np.uint64) << np.uint64(44)
        numbers: NDArray[np.uint64] = (partitions[decoded.batch] << np.uint64(48)) ^ kinds
        return numbers ^ decoded.offset.astype(np.uint64)

    def _collate(
        self, joined: Joined, record_numbers: NDArray[np.uint64], known: NDArray[np.int32]
    ) -> Batch:
        """Return the interactions as a batch for the learner; one record may cause several."""
        pair = (joined.user.astype(np.uint64) << np.uint64(32)) | joined.item.astype(np.uint64)
        source = joined.source
        key = (record_numbers[source] + np.uint64(self.seed + 1)) * np.uint64(_PRIME)
        own = pair * np.uint64(8) + joined.role.astype(np.uint64)
        return Batch(
            user=joined.user,
            item=joined.item,
            outcome=np.where(
                joined.outcome_is_click, self._outcome["click"], self._outcome["rating"]
            ).astype(np.int8),
            label=joined.label,
            known_items=known[source],
            key=key ^ (own * _SLATE),
            role=joined.role,
            propensity=joined.propensity,
            position=joined.position,
            ts_ms=joined.ts_ms,
            counts=joined.counts,
        )

    def _turns(
        self, attributes: list[AttributeEvent], index: NDArray[np.int32]
    ) -> list[tuple[int, list[AttributeEvent]]]:
        """Divide the batch where attributes change: (end of a run, attribute events after it)."""
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
        self,
        event: AttributeEvent,
        user: NDArray[np.int32],
        item: NDArray[np.int32],
        ts_ms: int,
    ) -> NDArray[np.int32]:
        kind: EntityKind = "user" if event.kind == "user" else "item"
        rows = user if kind == "user" else item
        row = int(rows[event.index])
        if row < 0:  # a removal of an unknown id
            return np.empty(0, np.int32)
        if event.attributes is None:
            self.learner.remove(kind, row)
            if kind == "item":
                self.causal.discard(row)
        else:
            self._describe(kind, row, event.attributes, ts_ms)
        if kind == "item":
            self.catalog.put(row, event.title, event.attributes)
        return np.array([row], np.int32)

    def _describe(
        self, kind: EntityKind, row: int, attributes: Mapping[str, Any], ts_ms: int
    ) -> None:
        """Set the row's attributes; if an item's numbers change, keep the old ones too.

        The old numbers are kept with the time until which they held.
        """
        at = np.array([row], np.int32)
        before = self.learner.numbers(at) if kind == "item" else None
        self.learner.set_attributes(kind, row, attributes)
        if before is not None and np.isfinite(before).any():
            after = self.learner.numbers(at)
            if after is None or not np.array_equal(before, after, equal_nan=True):
                self.causal.waiting.supersede(row, ts_ms, before[0])

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of everything learned, as arrays under flat names."""
        names = "\n".join(f"{topic}\t{partition}" for topic, partition in self._partitions)
        return {
            f"{part}.{name}": array
            for part, holder in self._parts().items()
            for name, array in holder.state().items()
        } | {
            "partitions": np.frombuffer(names.encode(), np.uint8).copy(),
            "hash.key": self.users.key.copy(),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Replace the engine's state, the hash key included, by a saved one.

        Raises
        ------
        Inconsistent
            An array's type or width differs from this engine's.
        KeyError
            An array is missing and has no default.
        """
        self._compare(state)
        for table in (self.users, self.items, self.duplicates):
            table.key = state.get("hash.key", NO_KEY)
        for part, holder in self._parts().items():
            prefix = f"{part}."
            holder.load(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
        names = state["partitions"].tobytes().decode()
        self._partitions = {}
        for line in names.splitlines():
            topic, _, partition = line.partition("\t")
            self._partitions[topic, int(partition)] = len(self._partitions)

    def _compare(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Raise Inconsistent if an array in both states has another type or width here.

        Arrays in only one of the two pass. If the learner's shape differs, the learner's own `load`
        reports it.
        """
        own = self.state()
        if not np.array_equal(state["learner.shape"], own["learner.shape"]):
            return
        for name in own.keys() & state.keys():
            a, b = state[name], own[name]
            if (a.dtype, a.ndim, a.shape[1:]) != (b.dtype, b.ndim, b.shape[1:]):
                raise Inconsistent(
                    f"the saved array {name} has type {a.dtype} and shape {a.shape}, but this "
                    f"model needs {b.dtype} (n{''.join(f', {n}' for n in b.shape[1:])})",
                    "start with the version and the [model] settings that saved the snapshot",
                )

    def _parts(self) -> dict[str, Any]:
        return {
            "learner": self.learner,  # first, since it recognises a state of another version
            "users": self.users,
            "items": self.items,
            "duplicates": self.duplicates,
            "join": self.joiner,
            "catalog": self.catalog,
            "progressive": self.progressive,
            "drift": self.drift,
            "causal": self.causal,
        }


def _union(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    if not parts:
        return np.empty(0, np.int32)
    return np.unique(np.concatenate(parts)) if len(parts) > 1 else parts[0]
