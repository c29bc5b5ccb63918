"""The trainer's loop: poll, learn, write, and now and then make it safe.

One thread learns and writes; a second one saves snapshots. When Redis, the disk or the dead-letter
topic is away, the loop holds its place and tries again: nothing is polled meanwhile, nothing lost.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumers.checkpoint import Checkpoint, Positions, pack_positions, unpack_positions
from consumers.kafka import DeadLetters, KafkaSource, Sink
from consumers.metrics import TrainerMetrics
from model_store import codec
from model_store.codec import Kind
from model_store.seen import Seen, group
from model_store.snapshots import Snapshots
from model_store.vectors import RedisVectors
from stream.engine import Engine, Learned
from stream.errors import Unavailable
from stream.records import RecordBatch
from stream.vocabulary import Vocabulary

log = logging.getLogger("counterflow.trainer")

FRESHNESS = 2_000  # newest observations kept as they are, for the summary's quantiles
REFRESH_ROWS = 4_096  # rows of one refresh write: ~10 ms of Redis' time


class Trainer:
    """Owns the engine, its place in the stream, and what has been published of it."""

    def __init__(
        self,
        engine: Engine,
        source: KafkaSource,
        vectors: RedisVectors,
        snapshots: Snapshots,
        sink: Sink,
        dead_letters: DeadLetters,
        metrics: TrainerMetrics,
        *,
        clock: Callable[[], float],
        interval_s: float = 5.0,
        ttl_s: int = 86_400,
        stop: Event | None = None,
        seen: Seen | None = None,
        model: dict[str, Any] | None = None,
    ) -> None:
        self.engine = engine
        self.source = source
        self.vectors = vectors
        self.snapshots = snapshots
        self.sink = sink
        self.dead_letters = dead_letters
        self.metrics = metrics
        self.stop = stop or Event()
        self.epoch = 0
        self.sequence = 0
        self.bad_events = 0
        self.duplicates = 0
        self.learned = 0
        self.learned_before = 0  # in the snapshot that it resumed from
        self.snapshot = ""
        self.first_poll_s: float | None = None
        self.last_write_s: float | None = None
        self.freshness_s: deque[float] = deque(maxlen=FRESHNESS)
        self.seen = seen
        self._packed: list[bytes] = []  # by item row, as the seen lists hold it
        self._model = model or {}
        self._clock = clock
        self._interval_s = interval_s
        self._ttl_s = ttl_s
        self._checkpoint = Checkpoint(snapshots, source.commit, metrics, clock)
        self._saved_s = clock()
        self._refreshed_s = clock()
        self._refresh_at: dict[Kind, int] = {"user": 0, "item": 0}
        self._dirty = False

    # start ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """The engine is the newest valid snapshot, the source stands at its offsets.

        Raises Inconsistent where the snapshot is of another cluster or topic.
        """
        self.snapshots.lock()
        self.engine.warm_up()
        found = self.snapshots.newest_valid()
        positions: Positions = {}
        epoch = 0
        if found is not None:
            state, meta = found
            self.source.verify(meta["identity"])
            self.engine.load(state)
            positions = unpack_positions(meta["positions"])
            epoch = int(meta["epoch"])
            self.learned_before = int(meta["learned"])
            log.info("resumed where %d clicks and ratings were learned", self.learned_before)
        self.source.start(positions)
        self._publish(epoch)

    def _publish(self, above: int) -> None:
        """Redis holds the whole model under an epoch above all others after the call."""

        def claim() -> int:
            safe = self.snapshots.epoch()
            return self.snapshots.claim_epoch(self.vectors.claim_epoch(max(above, safe)))

        self.epoch = int(self._until_done("redis", claim))
        log.info("epoch %d", self.epoch)
        self._until_done("redis", lambda: self.vectors.publish_model(self._describe()))
        self._publish_all()
        self._until_done("redis", self.vectors.set_live)

    def _publish_all(self) -> None:
        """Every row, title and attribute is written under this epoch."""
        for kind, vocabulary in self._vocabularies():
            for begin in range(0, len(vocabulary), REFRESH_ROWS):
                rows = np.arange(begin, min(begin + REFRESH_ROWS, len(vocabulary)), dtype=np.int32)
                self._write({kind: rows})
                if kind == "item":
                    self._put_meta(rows)

    # one turn ------------------------------------------------------------------------------------

    def turn(self, timeout_s: float = 0.05) -> int:
        """Everything polled is learned and in Redis after the call; returns the records polled."""
        batches = self.source.poll(timeout_s)
        if batches:
            if self.first_poll_s is None:
                self.first_poll_s = self._clock()
            self._learn(batches)
        self._upkeep()
        return sum(b.count for b in batches)

    def _learn(self, batches: Sequence[RecordBatch]) -> None:
        start = self._clock()
        learned = self.engine.learn(batches)
        self.metrics.step_duration_seconds.observe(self._clock() - start)
        if learned.bad:
            self._bury(batches, learned)
        self._write({"user": learned.users, "item": learned.items})
        self._mark_seen(learned)
        if learned.attributes:
            self._put_meta(learned.items)
        self._remove(learned)
        self.last_write_s = self._clock()
        self._dirty = True
        self._count(learned)
        if learned.learned:
            freshness_s = self.last_write_s - learned.kafka_ts_ms / 1e3
            self.metrics.freshness_seconds.observe(freshness_s)
            self.freshness_s.extend(freshness_s[-FRESHNESS:].tolist())

    def _bury(self, batches: Sequence[RecordBatch], learned: Learned) -> None:
        """Every bad record of the poll is acknowledged in the dead-letter topic after the call."""
        self.dead_letters.add(learned.bad, batches)
        given_up = self.dead_letters.failed
        self._until_done("kafka", self.dead_letters.flush)
        self.metrics.dead_letters_failed.inc(self.dead_letters.failed - given_up)

    def _remove(self, learned: Learned) -> None:
        """Rows that a null value removed are gone from Redis after the call."""
        for kind in codec.KINDS:
            gone = [
                a.id.encode() for a in learned.attributes if a.kind == kind and a.attributes is None
            ]
            if gone:
                self._until_done("redis", partial(self.vectors.erase, kind, gone))

    def _mark_seen(self, learned: Learned) -> None:
        """The learned items leave their users' lists after the call, if so configured."""
        if self.seen is None or not learned.learned:
            return
        have = len(self._packed)
        new = np.arange(have, len(self.engine.items), dtype=np.int32)
        self._packed += [codec.pack_ids([id_]) for id_ in self.engine.items.ids(new)]
        rows, packed = group(learned.user, learned.item, self._packed)
        users = self.engine.users.ids(rows)
        self._until_done("redis", partial(self.seen.mark, dict(zip(users, packed, strict=True))))

    def _vocabularies(self) -> tuple[tuple[Kind, Vocabulary], ...]:
        return ("user", self.engine.users), ("item", self.engine.items)

    def _put_meta(self, items: NDArray[np.int32]) -> None:
        """Titles and attributes of those items that have any are readable after the call."""
        rows, meta = self.engine.catalog.of(items)
        if meta:
            ids = self.engine.items.ids(rows)
            self._until_done(
                "redis", lambda: self.vectors.put_meta(dict(zip(ids, meta, strict=True)))
            )

    def _write(self, rows: dict[Kind, NDArray[np.int32]]) -> None:
        """The rows are readable in Redis after the call, under a sequence of their own."""
        self.sequence += 1
        ids: dict[str, list[bytes]] = {}
        payloads: dict[str, list[bytes]] = {}
        for kind, named in rows.items():
            # A removed row keeps its place in the vocabulary and must not come back as zeros.
            wanted = named[self.engine.learner.exist(kind, named)]
            if not len(wanted):
                continue
            vocabulary = self.engine.users if kind == "user" else self.engine.items
            columns = self.engine.learner.rows(kind, wanted)
            ids[kind] = vocabulary.ids(wanted)
            payloads[kind] = codec.pack(
                kind,
                self.epoch, self.sequence, columns.events, np.zeros_like(columns.events),
                columns.bias, columns.vector,
            )  # fmt: skip
        if ids:
            globals_ = self.engine.learner.global_bias().astype("<f4").tobytes()
            self._until_done("redis", lambda: self.vectors.write(ids, payloads, globals_))

    def _count(self, learned: Learned) -> None:
        m = self.metrics
        for kind, n in learned.events.items():
            m.events.labels(type=kind).inc(n)
        for bad in learned.bad:
            m.bad_events.labels(reason=bad.reason).inc()
        m.duplicate_events.inc(learned.duplicates)
        m.batch_events.observe(learned.learned)
        for signal in learned.drifted:
            m.drift_detections.labels(signal=signal).inc()
        self.bad_events += len(learned.bad)
        self.duplicates += learned.duplicates
        self.learned += learned.learned

    # upkeep --------------------------------------------------------------------------------------

    def _upkeep(self) -> None:
        now = self._clock()
        if not self._checkpoint.busy:
            self._finish_save()
            if self._dirty and now - self._saved_s >= self._interval_s:
                self._begin_save()
        if now - self._refreshed_s >= 1.0:
            self.source.discover()
            if self.vectors.lost:
                log.warning("Redis has forgotten the model; all of it is written again")
                self._publish(self.epoch)
            self._refresh(now - self._refreshed_s)
            self._refreshed_s = now
            self._gauges()
            self._until_done("redis", lambda: self.vectors.publish_model(self._describe()))

    def _refresh(self, elapsed_s: float) -> None:
        """Rewrite the share of the rows that keeps each one younger than a quarter of its TTL."""
        for kind, vocabulary in self._vocabularies():
            size = len(vocabulary)
            if not size:
                continue
            share = min(size, REFRESH_ROWS, 1 + int(size * elapsed_s / (self._ttl_s / 4)))
            begin = self._refresh_at[kind]
            rows = np.unique((begin + np.arange(share)) % size).astype(np.int32)
            self._refresh_at[kind] = (begin + share) % size
            self._write({kind: rows})
            if kind == "item":
                self._put_meta(rows)

    def _gauges(self) -> None:
        for (topic, partition), lag in self.source.lag().items():
            self.metrics.lag_records.labels(topic=topic, partition=str(partition)).set(lag)
        self.metrics.rows.labels(kind="user").set(len(self.engine.users))
        self.metrics.rows.labels(kind="item").set(len(self.engine.items))
        for outcome in self.engine.progressive.outcomes:
            for kind, value in self.engine.progressive.figures(outcome).items():
                if kind != "count":
                    self.metrics.loss.labels(outcome=outcome, kind=kind).set(value)

    def _begin_save(self) -> None:
        positions = self.source.positions()
        meta = {
            "identity": self.source.identity(),
            "positions": pack_positions(positions),
            "epoch": self.epoch,
            "learned": self.learned_before + self.learned,
        }
        self._checkpoint.begin(self.engine.state(), meta, positions)
        self._saved_s = self._clock()
        self._dirty = False

    def _finish_save(self) -> None:
        """The begun snapshot, if any, is safe; a disk that does not take it holds the loop."""
        while True:
            try:
                path = self._checkpoint.finish()
            except Unavailable as error:
                self.metrics.store_errors.labels(store="snapshots").inc()
                log.warning("the snapshot is not safe yet, holding: %s", error)
                if self.stop.wait(error.retry_after_s):
                    raise
                self._begin_save()
            else:
                if path is not None:
                    self.snapshot = path.name
                return

    def save(self) -> None:
        """All that was learned is in a snapshot and its offsets are committed after the call."""
        self._finish_save()
        if self._dirty or not self.snapshot:
            self._begin_save()
            self._finish_save()

    # run -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """The stream was followed until `stop` was set; all is safe after the call."""
        while not self.stop.is_set():
            self.turn()
        self.save()

    def run_until(self, ends: Positions) -> None:
        """Everything below `ends` is learned and safe after the call, or `stop` was set."""
        while not self.stop.is_set() and not _reached(self.source.positions(), ends):
            self.turn()
        self.save()

    def close(self) -> None:
        """The thread, the clients and the lock are released after the call."""
        self._checkpoint.close()
        self.source.close()
        self.sink.close()
        self.snapshots.close()

    def _until_done(self, store: str, action: Callable[[], Any]) -> Any:
        """Return what the action returns once its store is there; hold the place meanwhile."""
        said = False
        while True:
            try:
                result = action()
            except Unavailable as error:
                self.metrics.store_errors.labels(store=store).inc()
                if not said:
                    log.warning("%s is away, holding: %s", store, error)
                    said = True
                if self.stop.wait(error.retry_after_s):
                    raise
            else:
                if said:
                    log.warning("%s is back", store)
                return result

    def _describe(self) -> dict[str, Any]:
        return self._model | {
            "epoch": self.epoch,
            "factors": self.engine.config.factors,
            "outcomes": [
                {"name": o.name, "link": o.link, "low": o.low, "high": o.high}
                for o in self.engine.config.outcomes
            ],
            "residual_sd": {
                o.name: self.engine.progressive.figures(o.name).get("rmse")
                for o in self.engine.config.outcomes
            },
            "global_bias": self.engine.learner.global_bias().tolist(),
        }


def _reached(positions: Positions, ends: Positions) -> bool:
    return all(positions.get(place, 0) >= end for place, end in ends.items())
