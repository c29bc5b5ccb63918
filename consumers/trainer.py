"""The trainer's loop: poll Kafka, learn, write to Redis, and save snapshots periodically.

Timestamps use the wall clock, which may be adjusted; intervals use the monotonic clock.

One thread learns and writes; a second one saves snapshots. With a backlog, a third thread writes
one poll's rows while the next poll is learned (asynchronous_writer.py). When Kafka, Redis, the disk
or the dead-letter topic is unavailable, the loop keeps its position and retries: it learns nothing
meanwhile and loses nothing.
"""

import gc
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from consumers import resume
from consumers.asynchronous_writer import AsynchronousWriter, Moment
from consumers.checkpoint import Checkpoint, Positions, pack_positions
from consumers.health import STORES, Health
from consumers.isolation import Blame, Suspects, blames_a_record, halve, ranges
from consumers.kafka import DeadLetters, KafkaSource, Sink, patient
from consumers.kafka.source import POLL_BYTES
from consumers.metrics import TrainerMetrics
from consumers.probes import Probes
from consumers.publisher import Publisher
from model_store.seen import SeenItems
from model_store.snapshots import Snapshots
from model_store.vectors import RedisVectors
from stream.compiled import compiling
from stream.engine import Engine, Learned
from stream.errors import Inconsistent, Unavailable, Unservable
from stream.events import BadRecord
from stream.pieces import Piece, joined, parted, pieces, unlearnable
from stream.records import RecordBatch
from stream.schemas import ATTRIBUTE_KINDS

log = logging.getLogger("counterflow.trainer")

T = TypeVar("T")

FRESHNESS = 2_000  # newest freshness observations, kept for the summary's quantiles
BACKLOG = 4_096  # a poll of at least this many records is written while the next one is learned
REPLAYED = 512  # interactions replayed in one turn; takes less than a millisecond
OWED_MAX = 65_536  # most interactions that may be queued for replay
TURN_S = 1.0  # longest time that learning a poll should take: signals and snapshots wait for it
TURN_LEAST_S = 0.1  # shorter polls cost more than they gain
FIRST_BYTES = POLL_BYTES // 8  # size of a poll before its learning time is known
LEAST_BYTES = 1 << 16
ONCE = "about a minute, once for each layout that model.* chooses"
WARN_S = 60.0  # time between two log lines about the same cause


class Trainer:
    """Learns the event stream exactly once and publishes the model.

    The trainer owns the engine and its position in the stream; a `Publisher` writes the rows to
    Redis.

    Parameters
    ----------
    engine : Engine
        The model and the join of exposures and outcomes.
    source : KafkaSource
        This rank's partitions; positioned by `start`.
    vectors : RedisVectors
        Writer of the vector cache; also claims the epoch.
    snapshots : Snapshots
        Folder of the state that a restart resumes from.
    sink, dead_letters : Sink, DeadLetters
        Producer, and the dead letters that are written through it.
    clock, monotonic : callable
        Wall clock for timestamps and monotonic clock for intervals, in seconds.
    health, probes : Health, Probes
        What the trainer's HTTP port reports, and the threads that check the stores.
    interval_s : float
        Seconds between two snapshots.
    ttl_s : int
        Lifetime of the rows in Redis, in seconds.
    stop : Event, optional
        Ends the loop when set.
    seen : Seen, optional
        Lists of seen items; omitted if recommendations do not exclude seen items.
    model : dict, optional
        Additional fields of the published model description.
    replay : int
        How often each event is learned again while the queue is empty.
    """

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
        monotonic: Callable[[], float],
        health: Health,
        probes: Probes,
        interval_s: float = 5.0,
        ttl_s: int = 86_400,
        stop: Event | None = None,
        seen: SeenItems | None = None,
        model: dict[str, Any] | None = None,
        replay: int = 0,
    ) -> None:
        self.engine = engine
        self.source = source
        self.vectors = vectors
        self.snapshots = snapshots
        self.sink = sink
        self.dead_letters = dead_letters
        self.metrics = metrics
        step = engine.learner.choice
        metrics.learning_step_info.labels(step.driver, step.device, step.threads, step.block).set(1)
        self.health = health
        self.stop = stop or Event()
        self._probes = probes
        self.bad_events = 0
        self.duplicates = 0
        self._unacknowledged = 0  # failed dead-letter deliveries already counted in the metric
        self.learned = 0
        self.skipped = 0  # offsets that Kafka no longer had at the start
        self.learned_before = 0  # clicks and ratings learned before the snapshot we resumed from
        self.snapshot = ""
        self.first_poll_s: float | None = None
        self.last_write_s: float | None = None
        self.freshness_s: deque[float] = deque(maxlen=FRESHNESS)
        hold = partial(self._until_done, "redis")
        self.publisher = Publisher(engine, vectors, seen, model or {}, hold, ttl_s)
        self._writer = AsynchronousWriter(hold, lambda: (clock(), monotonic()))
        self._monotonic = monotonic
        self._interval_s = interval_s
        self._poll_bytes = FIRST_BYTES
        self._checkpoint = Checkpoint(snapshots, self._commit, metrics, clock, monotonic)
        self._saved_s = monotonic()
        self._refreshed_s = monotonic()
        self._dirty = False
        self._prepared = False
        self._leaving = False
        self._replay = replay
        self._owed = 0
        self._warned_s: dict[str, float] = {}
        self._blank: dict[str, NDArray[Any]] | None = None  # initial state, if there is no snapshot
        self._began: Positions = {}  # first offset polled from each partition
        self._before = (0, 0)  # bad and duplicate records counted before the resumed snapshot
        self._suspects, self._blame = Suspects(), Blame()
        self._counted: Positions = {}  # records below these offsets are already in the metrics
        self._joined = (0, 0, 0, 0)  # join counters as last added to the metrics; see `_joins`

    @property
    def epoch(self) -> int:
        """The epoch under which this trainer writes to Redis."""
        return self.publisher.epoch

    # start ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Lock the snapshot folder and compile every kernel; nothing is read from Kafka yet.

        Kernels that are not in the cache take about a minute, during which the loop does not turn.
        """
        self.snapshots.lock()
        log.info("learning step: %s", self.engine.learner.choice)
        tell = partial(log.info, "compiling the learning step for this configuration: %s", ONCE)
        if self.engine.learner.choice.device != "cpu":  # its compiler tells nobody
            tell()
        with compiling(tell):
            self.engine.warm_up()
        gc.collect()
        gc.freeze()  # imported objects live on; scanning them again would take 150 ms
        self._prepared = True

    def start(self, *, from_earliest: bool = False, skip_gap: bool = False) -> None:
        """Load the newest valid snapshot, seek to its offsets and publish the model.

        Parameters
        ----------
        from_earliest : bool
            Set existing snapshots aside and learn a new model from the earliest offsets.
        skip_gap : bool
            Where Kafka no longer has the snapshot's offsets, continue at the earliest record.

        Raises
        ------
        Inconsistent
            If the snapshot belongs to another stream, partition share, format or model.
        """
        if not self._prepared:
            self.prepare()
        if from_earliest and (aside := self.snapshots.set_aside()):
            log.warning("starting a new model; the existing snapshots were moved to %s", aside)
        found = self.snapshots.newest_valid()
        positions: Positions = {}
        epoch = 0
        self._identity = self.source.identify()  # ids of the topics that the offsets refer to
        if found is not None:
            meta = resume.meta(found)
            resume.verify(meta, self.source)
            resume.load(self.engine, found)
            positions = meta.offsets()
            epoch = meta.epoch
            self.learned_before = meta.learned
            self._before = meta.bad_events, meta.duplicates
            self._joined = self._joins()
            log.info("resumed where %d clicks and ratings were learned", self.learned_before)
        else:
            self._blank = self.engine.state()
        for partition, count in self.source.start(positions, skip_gap).items():
            self.metrics.skipped_offsets.labels(*map(str, partition)).inc(count)
            self.skipped += count
        self.source.verify(self._identity)
        self._tell()
        self._probes.start()
        self._publish(epoch)
        self.health.readable |= self.source.positions()
        self.health.turned()

    def _publish(self, above: int) -> None:
        """Claim an epoch above all others and write the whole model under it."""

        safe = max(above, self.snapshots.epoch())
        claimed = int(self._until_done("redis", lambda: self.vectors.claim_epoch(safe)))
        epoch = int(self._until_done("snapshots", lambda: self.snapshots.claim_epoch(claimed)))
        log.info("epoch %d", epoch)
        self.publisher.everything(epoch)

    # one turn ------------------------------------------------------------------------------------

    def turn(self, timeout_s: float = 0.05) -> int:
        """Poll once, learn what was polled, and return the number of records polled.

        The changed rows are in Redis on return, or with a backlog on their way.
        """
        batches = self._kafka(partial(self.source.poll, timeout_s, self._poll_bytes)) or []
        try:
            if batches:
                start = self._monotonic()
                if self.first_poll_s is None:
                    self.first_poll_s = start
                self._learn(batches)
                self._size(batches, self._monotonic() - start)
            else:
                self._writer.finish()
                if self._owed:
                    self._learn_again()
            self._upkeep()
        except Unservable as error:
            self._step_back(error)
        self.health.turned()
        return sum(b.count for b in batches)

    def _size(self, batches: Sequence[RecordBatch], spent_s: float) -> None:
        """Set the size of the next polls to what is learned in half a snapshot interval."""
        most_s = min(max(self._interval_s / 2, TURN_LEAST_S), TURN_S)
        size = sum(len(batch.data) for batch in batches)
        if spent_s > most_s:
            self._poll_bytes = max(int(size * most_s / spent_s), LEAST_BYTES)
        elif size >= self._poll_bytes:
            self._poll_bytes = min(2 * self._poll_bytes, POLL_BYTES)

    def _learn(self, batches: Sequence[RecordBatch]) -> None:
        """Learn a poll; records repeated after `_step_back` go first and are not counted again."""
        for batch in batches:
            self._began.setdefault((batch.topic, batch.partition), batch.fetch_offset)
        learn = self._learn_apart if self._suspects.among(batches) else self._learn_whole
        again, new = parted(batches, self._counted) if self._counted else ([], batches)
        if again and not learn(again, new, True):
            return
        if new:
            learn(new, (), False)

    def _learn_whole(
        self, batches: Sequence[RecordBatch], rest: Sequence[RecordBatch], again: bool
    ) -> bool:
        """Learn a poll, or its repeated part if `again`; return whether it succeeded."""
        try:
            learned, change = self._digest(batches, rest)
        except Exception as error:
            if not blames_a_record(error):
                raise
            self._step_back(error, batches)
            return False
        if learned.bad and not again:
            self._bury(batches, learned.bad)
        backlog = sum(batch.count for batch in batches) >= BACKLOG
        write = self._writer.begin if backlog else self._writer.now
        ends = {(batch.topic, batch.partition): batch.next_offset for batch in batches}
        times = learned.kafka_ts_ms[: 0 if again else None]
        write(change, partial(self._written, times, ends))
        self._dirty = True
        self._count(learned, again)
        return True

    def _digest(
        self, batches: Sequence[RecordBatch], rest: Sequence[RecordBatch]
    ) -> tuple[Learned, Callable[[], object]]:
        """Learn `batches`; return what was learned and the function that writes the changed rows.

        `rest` is learned next: its partitions count as pending, so their windows stay open.
        """
        start = self._monotonic()
        more = {(b.topic, b.partition) for b in rest if b.kind not in ATTRIBUTE_KINDS}
        learned = self.engine.learn(batches, self.source.pending() | more)
        self.metrics.step_duration_seconds.observe(self._monotonic() - start)
        return learned, self.publisher.change(learned)

    def _written(self, kafka_ts_ms: NDArray[np.int64], ends: Positions, at: Moment) -> None:
        """Record that a poll's rows became readable in Redis at the moment `at`.

        A Kafka timestamp in the future counts as clock skew and not as freshness.
        """
        self.health.readable |= ends
        at_s, self.last_write_s = at
        freshness_s = at_s - kafka_ts_ms[kafka_ts_ms >= 0] / 1e3
        skewed = freshness_s < 0
        self.metrics.clock_skew.inc(int(skewed.sum()))
        freshness_s = freshness_s[~skewed]
        if len(freshness_s):
            self.metrics.freshness_seconds.observe(freshness_s)
            self.freshness_s.extend(freshness_s[-FRESHNESS:].tolist())

    def _learn_again(self) -> None:
        """Replay some learned interactions while no new records are waiting."""
        count = min(self._owed, REPLAYED)
        self._owed -= count
        update = self.engine.learner.replay(count)
        self.publisher.moved(update.users, update.items)
        self._dirty = True

    # records that raise when they are learned -----------------------------------------------------

    def _step_back(self, error: Exception, batches: Sequence[RecordBatch] = ()) -> None:
        """Restore the newest snapshot and mark the records that raised as suspects.

        The suspects are `batches`, or everything since the snapshot. They are later learned in
        halves to find the record at fault (isolation.py); repeated records are not counted again.
        Raises `error` if all these records were already suspects.
        """
        reached: Positions = self._until_done("kafka", partial(patient, self.source.positions))
        log.warning("an error while learning or writing; searching for its record", exc_info=error)
        began = self._restore()
        stretch = ranges(batches) or {p: (offset, reached[p]) for p, offset in began.items()}
        if not self._suspects.widen(stretch):
            raise error
        counted = reached | {p: first for p, (first, _) in stretch.items() if batches}
        for partition, offset in counted.items():
            self._counted[partition] = max(offset, self._counted.get(partition, 0))

    def _restore(self) -> Positions:
        """Restore the newest snapshot, or the initial state; return the offsets sought to."""
        try:
            self._writer.finish()
        except Unservable as error:
            log.warning("a change was not written: %s", error)
        try:
            path = self._checkpoint.finish()
            self.snapshot = self.snapshot if path is None else path.name
        except Unavailable as error:
            log.warning("saving a snapshot failed; falling back to the one before: %s", error)
        found = self.snapshots.newest_valid() if self._blank is None or self.snapshot else None
        if found is not None:
            said = resume.meta(found)
            resume.load(self.engine, found)
        elif self._blank is not None:
            said = resume.Meta({}, [], 0, 0)
            self.engine.load(self._blank)
        else:
            raise Inconsistent(
                "no valid snapshot is left to go back to",
                "restart the trainer; the log has the error that made it go back",
            )
        self.publisher.went_back()
        offsets = said.offsets()
        # with --skip-gap a partition was begun behind the snapshot's offset
        began = offsets | {p: max(n, offsets.get(p, 0)) for p, n in self._began.items()}
        self.source.seek(began)
        self.learned = said.learned - self.learned_before
        self.bad_events = said.bad_events - self._before[0]
        self.duplicates = said.duplicates - self._before[1]
        self._joined = self._joins()
        return began

    def _learn_apart(
        self, batches: Sequence[RecordBatch], rest: Sequence[RecordBatch], again: bool
    ) -> bool:
        """Learn every record of the batches; those that raise on their own become dead letters.

        Returns False if `stop` was set meanwhile: the source is then at the first record that was
        not learned. No dead letter is sent before it is certain that the records are at fault.
        """
        self._writer.finish()
        letters: list[tuple[Piece, BadRecord]] = []

        def learn(some: list[Piece], later: list[Piece]) -> None:
            part = joined(some)
            learned, change = self._digest(part, [*joined(later), *rest])
            self.publisher.check()
            times = learned.kafka_ts_ms[: 0 if again else None]
            self._writer.now(change, partial(self._written, times, {}))
            if learned.bad and not again:
                self._bury(part, learned.bad)
            self._count(learned, again)
            self._blame.learned(learned.events)

        def bury(piece: Piece, error: Exception) -> None:
            if not letters:
                self.engine.warm_up()  # raises if the engine itself is broken, not the record
            self._blame.bury(piece.batch.kind, error)
            bad = unlearnable(piece, error)
            log.error(
                "%s[%d]@%d cannot be learned: %s", *piece.partition_key, piece.offset, bad.detail
            )
            letters.append((piece, bad))

        def load(state: dict[str, NDArray[Any]]) -> None:
            self.engine.load(state)
            self.publisher.went_back()

        def going() -> bool:
            self.health.turned()
            return not self.stop.is_set()

        left = halve(pieces(batches), learn, self.engine.state, load, bury, going)
        self._bury_apart(letters)
        self._dirty = True
        self._saved_s = -np.inf  # save soon, so that a restart does not repeat the search
        if left:
            others = ranges([*joined(left), *rest])
            self.source.seek({partition: first for partition, (first, _) in others.items()})
        return not left

    def _bury_apart(self, letters: list[tuple[Piece, BadRecord]]) -> None:
        """Send these records, each found on its own, to the dead letters and count them."""
        if letters:
            alone = [batch for piece, _ in letters for batch in joined([piece])]
            self._bury(alone, [replace(bad, batch=n) for n, (_, bad) in enumerate(letters)])
        for _, bad in letters:
            self.metrics.bad_events.labels(reason=bad.reason).inc()
            self.bad_events += 1

    def _bury(self, batches: Sequence[RecordBatch], bad: list[BadRecord]) -> None:
        """Send the bad records of a poll to the dead-letter topic and wait for acknowledgement."""

        def flush() -> None:
            try:
                self.dead_letters.flush()
            finally:
                failed = self.dead_letters.failed
                self.metrics.dead_letters_failed.inc(failed - self._unacknowledged)
                self._unacknowledged = failed

        self.dead_letters.add(bad, batches)
        self._until_done("kafka", flush)

    def _count(self, learned: Learned, again: bool = False) -> None:
        """Update the counters; records learned again change only the summary's counters."""
        self.bad_events += len(learned.bad)
        self.duplicates += learned.duplicates
        self.learned += learned.learned
        if again:
            self._joined = self._joins()
            return
        m = self.metrics
        for kind, n in learned.events.items():
            m.events.labels(type=kind).inc(n)
        for bad in learned.bad:
            m.bad_events.labels(reason=bad.reason).inc()
        if learned.bad:
            self._warn(
                "bad events", "%d events of a poll went to the dead-letter topic, the first as %s:"
                " %.200s (counterflow_bad_events_total counts them; each letter has its offset)",
                len(learned.bad), learned.bad[0].reason, learned.bad[0].detail,
            )  # fmt: skip
        m.duplicate_events.inc(learned.duplicates)
        m.batch_events.observe(learned.learned)
        for kind, n in learned.refused.items():
            if n:
                m.refused_ids.labels(kind=kind).inc(n)
                self._warn(
                    f"room for {kind}s",
                    "the table of %ss is full: events of new ones are not learned, see"
                    " counterflow_refused_ids_total; raise model.max_%ss and restart",
                    kind, kind,
                )  # fmt: skip
        m.ahead_events.inc(learned.ahead)
        if learned.ahead:
            self._warn(
                "ahead", "%d events are ahead of Kafka's clock by more than join.ahead_s and are"
                " dated back: a producer's clock is wrong, see counterflow_ahead_events_total",
                learned.ahead,
            )  # fmt: skip
        for signal in learned.drifted:
            m.drift_detections.labels(signal=signal).inc()
        self._owed = min(self._owed + self._replay * learned.learned, OWED_MAX)
        now = self._joins()
        for counter, total, before in zip(
            (m.late_outcomes, m.corrections, m.contradicted_exposures, m.evicted_exposures),
            now, self._joined, strict=True,
        ):  # fmt: skip
            counter.inc(total - before)
        self._joined = now

    def _warn(self, cause: str, text: str, *values: object) -> None:
        """Log a warning, at most once a minute for each cause."""
        now = self._monotonic()
        if now - self._warned_s.get(cause, -np.inf) >= WARN_S:
            self._warned_s[cause] = now
            log.warning(text, *values)

    def _joins(self) -> tuple[int, int, int, int]:
        """Return the join's late outcomes, corrections, contradicted and evicted exposures."""
        j = self.engine.joiner
        return j.late_outcomes, j.corrections, j.contradicted, j.evicted

    # upkeep --------------------------------------------------------------------------------------

    def _upkeep(self) -> None:
        """Do the periodic work: save a snapshot when due; once a second refresh rows and gauges."""
        now = self._monotonic()
        if not self._checkpoint.busy:
            self._finish_save()
            if self._dirty and now - self._saved_s >= self._interval_s:
                self._begin_save()
        if now - self._refreshed_s >= 1.0:
            self._writer.finish()
            self._tell_lag(self._kafka(self.source.discover) or [])
            self.source.verify(self._identity)
            if self.vectors.lost:
                log.warning("Redis has lost data; writing the whole model again")
                self._publish(self.epoch)
            self.publisher.refresh(now - self._refreshed_s)
            self._refreshed_s = now
            self._gauges()

    def _tell(self) -> None:
        """Register gauges that are computed at each scrape, even while the loop hangs."""
        m, health, engine = self.metrics, self.health, self.engine
        m.open_exposures.set_function(lambda: engine.joiner.open_exposures)
        m.rows.labels(kind="user").set_function(lambda: len(engine.users))
        m.rows.labels(kind="item").set_function(lambda: len(engine.items))
        m.last_progress_timestamp_seconds.set_function(lambda: health.progress_s)
        for store in STORES:
            m.dependency_up.labels(dependency=store).set_function(partial(health.up, store))
            m.holding.labels(store=store).set_function(partial(health.held, store))
        self._tell_lag(self.source.assigned())

    def _tell_lag(self, partitions: list[tuple[str, int]]) -> None:
        """Register the lag gauge of each of these partitions."""
        for partition in partitions:
            lag = self.metrics.lag_records.labels(topic=partition[0], partition=str(partition[1]))
            lag.set_function(partial(self.health.lag, partition))

    def _gauges(self) -> None:
        """Update the readable offsets and the loss gauges."""
        # positions also move past transaction markers and compaction gaps, which have no rows
        self.health.readable |= self._kafka(self.source.positions) or {}
        for outcome in self.engine.progressive.outcomes:
            for kind, value in self.engine.progressive.figures(outcome).items():
                if kind != "count":
                    self.metrics.loss.labels(outcome=outcome, kind=kind).set(value)

    def _begin_save(self) -> None:
        """Start saving a snapshot of the engine together with the offsets it corresponds to."""
        self._writer.finish()
        self.publisher.check()  # a restart must not resume from a state that cannot be served
        positions = self._until_done("kafka", partial(patient, self.source.positions))
        self._same_topics()
        meta = {
            "identity": self._identity,
            "positions": pack_positions(positions),
            "epoch": self.epoch,
            "learned": self.learned_before + self.learned,
            "rank": self.source.rank,
            "world": self.source.world,
            "bad_events": self._before[0] + self.bad_events,
            "duplicates": self._before[1] + self.duplicates,
        }
        self._checkpoint.begin(self.engine.state(), meta, positions)
        self._saved_s = self._monotonic()
        self._dirty = False

    def _same_topics(self) -> None:
        """Raise Inconsistent if a topic was deleted and created again: its offsets changed meaning.

        An unavailable broker is not an error here: nothing was polled from it since the last check.
        """
        with suppress(Unavailable):
            patient(self.source.look_again)
        self.source.verify(self._identity)

    def _finish_save(self) -> None:
        """Wait for the started snapshot; retry while the disk does not accept it."""
        while True:
            try:
                path = self._checkpoint.finish()
            except Unavailable as error:
                self.metrics.store_errors.labels(store="snapshots").inc()
                self.health.hold("snapshots", "loop", error.message)
                if self.stop.wait(error.retry_after_s):
                    raise
                self._begin_save()
            else:
                self.health.release("snapshots", "loop")
                if path is not None:
                    self.snapshot = path.name
                return

    def _commit(self, positions: Positions) -> None:
        """Commit the snapshot's offsets for lag tools; wait for the result only at the end."""
        (self.source.commit if self._leaving else self.source.tell)(positions)

    def save(self) -> None:
        """Save everything learned in a snapshot and commit its offsets."""
        self._leaving = True
        self._finish_save()
        if self._dirty or not self.snapshot:
            self._begin_save()
            self._finish_save()

    # run -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Follow the stream until `stop` is set, then save a snapshot."""
        while not self.stop.is_set():
            self.turn()
        self.save()

    def run_until(self, ends: Positions, close_windows: bool = False) -> None:
        """Learn everything below `ends`, then save a snapshot; return early if `stop` is set.

        With `close_windows`, open exposures are closed and learned before the snapshot.
        """
        while not self._settled(ends, close_windows):
            pass
        self.save()

    def _settled(self, ends: Positions, close_windows: bool) -> bool:
        """Learn up to `ends` and write everything; return whether no record raised."""
        while not self.stop.is_set() and not _reached(
            self._kafka(self.source.positions) or {}, ends
        ):
            self.turn()
        try:
            self._writer.finish()
            if close_windows and not self.stop.is_set():
                self.publisher.moved(*self.engine.close_windows())
                self._dirty = True
            if not self.stop.is_set():
                self.publisher.drain()
        except Unservable as error:
            self._step_back(error)
            return False
        return True

    def close(self) -> None:
        """Stop all threads, close the clients and release the snapshot folder's lock."""
        self._probes.close()
        self._writer.close()
        self._checkpoint.close()
        self.source.close()
        self.sink.close()
        self.snapshots.close()

    def _until_done(self, store: str, action: Callable[[], Any]) -> Any:
        """Return the action's result; retry while its store is away and `stop` is not set."""
        while True:
            try:
                result = action()
            except Unavailable as error:
                self.metrics.store_errors.labels(store=store).inc()
                self.health.hold(store, "loop", " ".join([error.message, error.remedy]).strip())
                if self.stop.wait(error.retry_after_s):
                    raise
            else:
                self.health.release(store, "loop")
                return result

    def _kafka(self, action: Callable[[], T]) -> T | None:
        """Return the result of a Kafka call once the broker is available; None if `stop` is set."""
        try:
            return self._until_done("kafka", partial(patient, action))  # type: ignore[no-any-return]
        except Unavailable:
            if not self.stop.is_set():
                raise
            return None


def _reached(positions: Positions, ends: Positions) -> bool:
    """Return whether every position is at or beyond its end."""
    return all(positions.get(partition, 0) >= end for partition, end in ends.items())
