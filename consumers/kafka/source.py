"""Polling one rank's partitions as whole record batches, from offsets that the caller keeps."""

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from consumers.kafka.connection import DISAGREES, GONE, NO_TOPIC, REQUEST_S, broker_errors, connect
from consumers.kafka.record_batches import install, reframe, supported
from stream.errors import CounterflowError, Inconsistent, Unavailable
from stream.records import RecordBatch
from stream.schemas import ATTRIBUTE_KINDS

log = logging.getLogger(__name__)

Partition = tuple[str, int]
Offsets = dict[Partition, int]

MIB = 1024 * 1024
FETCH_WAIT_MS = 10  # longest time the broker delays an empty fetch; new records end it at once
PARTITION_BYTES = MIB  # compressed bytes per partition and fetch
POLL_BYTES = 8 * MIB  # larger polls hardly speed up learning, but take more memory
FIRST_GUESS = 16 * 1024  # assumed size of a batch until one is seen: the usual batch_size
MOST_ITEMS = 100_000  # most batches (or records, on the client's own path) in one fetch
HELD_BYTES = 64 * MIB  # with more than this in memory, order across partitions is given up
GONE_S = 10.0  # a topic unknown to the broker for this long was deleted
PATIENCE = 8  # fetches without records of a lagging partition: an open transaction blocks it


class KafkaSource:
    """Polls the batches of one rank's partitions, from offsets that the caller keeps.

    One thread at a time may use a source.

    Parameters
    ----------
    topics : mapping
        Topic name -> kind of its events.
    group_id : str, optional
        Group under which offsets are committed for lag tools; None commits nothing.
    client : mapping, optional
        Further options of the consumer: TLS, SASL and others.
    isolation_level : str
        `read_committed` or `read_uncommitted`.
    rank, world : int
        This source takes the partitions p with p % world == rank, and all partitions of items.
    fetch_wait_ms : int
        Longest time the broker delays an empty fetch.
    whole : bool, optional
        Force the fast path over whole batches (True) or the client's own record parser (False); by
        default the fast path is used if the client supports it.
    """

    def __init__(
        self,
        *,
        bootstrap_servers: str,
        topics: Mapping[str, str],
        group_id: str | None = None,
        client: Mapping[str, Any] | None = None,
        isolation_level: str = "read_uncommitted",
        rank: int = 0,
        world: int = 1,
        fetch_wait_ms: int = FETCH_WAIT_MS,
        whole: bool | None = None,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world}")
        self.topics = dict(topics)
        self._group_id = group_id
        self.committed_only = isolation_level == "read_committed"
        self.rank, self.world = rank, world
        self._consumer = connect(
            KafkaConsumer,
            bootstrap_servers,
            {
                "group_id": group_id,
                "isolation_level": isolation_level,
                "enable_auto_commit": False,
                "auto_offset_reset": "none",  # a lost offset raises; records are never skipped
                "allow_auto_create_topics": False,
                "fetch_max_wait_ms": fetch_wait_ms,
                "fetch_min_bytes": 1,
                "max_partition_fetch_bytes": PARTITION_BYTES,
                "bootstrap_timeout_ms": int(REQUEST_S * 1000),
                "request_timeout_ms": int(REQUEST_S * 1000),
                "metadata_max_age_ms": 30_000,  # a new partition is noticed within this time
                "reconnect_backoff_max_ms": 2_000,
                "metrics_enabled": False,
                **(client or {}),
            },
        )
        self.whole = supported(self._consumer) if whole is None else whole
        if self.whole:
            install(self._consumer, self.topics)
        elif whole is None:
            log.warning("this kafka-python parses record by record: expect at most 200 k records/s")
        self._assigned: dict[Partition, Any] = {}
        # Start offset and the end known then, until a fetch has told the current end.
        self._unproven: dict[Partition, tuple[int, int | None]] = {}
        self._held: list[RecordBatch] = []  # fetched but not returned by `poll` yet
        self._largest = FIRST_GUESS
        self._missing_s: dict[str, float] = {}  # topics unknown to the broker, and since when

    # -- partitions and offsets

    def start(
        self, offsets: Mapping[Partition, int] | None = None, skip_gap: bool = False
    ) -> Offsets:
        """Seek to `offsets` in this rank's partitions, and to the earliest record in all others.

        Parameters
        ----------
        offsets : mapping, optional
            Next offset of each partition.
        skip_gap : bool
            Where an offset's record is gone, seek to the earliest record instead.

        Returns
        -------
        dict
            Number of skipped offsets of each partition that had a gap.

        Raises
        ------
        Inconsistent
            If an offset's record is gone, or a partition does not exist.
        """
        self._held = []
        self._assigned = {}
        self._unproven = {}
        wanted = dict(offsets or {})
        mine = self._mine()
        for partition in wanted:
            if partition[0] in self.topics and not self._exists(partition):
                raise Inconsistent(f"partition {_name(partition)} does not exist", DISAGREES)
        return self._add(mine, wanted, skip_gap)

    def discover(self) -> list[Partition]:
        """Add partitions created since the start, from their first record; return them.

        Sends no request; it uses the client's metadata. Raises Unavailable for a topic that is no
        longer visible, and Inconsistent for a topic that was deleted.
        """
        self._require_topics()
        new = [partition for partition in self._mine() if partition not in self._assigned]
        if new:
            self._add(new, {})
        return new

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """Seek to `offsets`; other partitions are not changed."""
        self._held = [b for b in self._held if (b.topic, b.partition) not in offsets]
        for partition, offset in offsets.items():
            self._stand(partition, offset)

    def pause(self, *partitions: Partition) -> None:
        """Stop returning records of these partitions (of all if none are given) until `resume`."""
        self._consumer.pause(*(self._assigned[p] for p in partitions or self._assigned))

    def resume(self, *partitions: Partition) -> None:
        """Continue after `pause`."""
        self._consumer.resume(*(self._assigned[p] for p in partitions or self._assigned))

    def assigned(self) -> list[Partition]:
        """Return this rank's partitions."""
        return list(self._assigned)

    def positions(self) -> Offsets:
        """Return each partition's next offset: every record before it was returned by `poll`."""
        found: Offsets = {}
        with broker_errors("reading positions"):
            for partition, tp in self._assigned.items():
                position = self._consumer.position(tp, timeout_ms=1_000)
                if position is None:
                    raise Unavailable(f"the position in {_name(partition)} is not known yet")
                found[partition] = position
        for batch in reversed(self._held):
            found[batch.topic, batch.partition] = batch.fetch_offset
        return found

    def highwaters(self) -> Offsets:
        """Return the high watermarks of the latest fetches; unfetched partitions are missing."""
        ends = {p: self._consumer.highwater(tp) for p, tp in self._assigned.items()}
        return {partition: end for partition, end in ends.items() if end is not None}

    def lag(self) -> Offsets:
        """Return the offsets between each position and its known end, without a request."""
        positions = self.positions()
        return {p: max(0, end - positions[p]) for p, end in self.highwaters().items()}

    def ends(self, timeout_s: float = REQUEST_S) -> Offsets:
        """Return each partition's end; records fetched to learn it are returned by later polls.

        Under `read_committed` the end is the last stable offset. Else it is the high watermark of a
        fetch, because Tansu answers ListOffsets wrongly behind a batch of several records.
        """
        if self.committed_only:
            with broker_errors("asking for the ends"):
                tps = list(self._assigned.values())
                told = self._consumer.end_offsets(tps, timeout_ms=int(timeout_s * 1000))
            return {(tp.topic, tp.partition): offset for tp, offset in told.items()}
        until = time.monotonic() + timeout_s
        while len(ends := self.highwaters()) < len(self._assigned):
            if time.monotonic() > until:
                unknown = [_name(p) for p in self._assigned if p not in ends]
                raise Unavailable(f"no fetch answered for {', '.join(unknown)}")
            self._held += self._fetch(FETCH_WAIT_MS, MOST_ITEMS)
        return ends

    # -- polling

    def poll(self, timeout_s: float = 0.05, max_bytes: int = POLL_BYTES) -> list[RecordBatch]:
        """Return the next batches, ordered by Kafka timestamp across partitions.

        A partition whose next batch is in the log but not fetched yet holds back the others, so
        that a backlog of impressions and clicks comes in the order it was produced.

        Parameters
        ----------
        timeout_s : float
            How long to wait for the first batch if none is available.
        max_bytes : int
            Approximate limit of uncompressed bytes; at least one batch is returned if there is one.

        Raises
        ------
        Inconsistent
            If the offsets are not in the log.
        """
        held = {(batch.topic, batch.partition) for batch in self._held}
        size = sum(len(batch.data) for batch in self._held if self._open(batch))
        wait_ms = 0 if size else int(timeout_s * 1000)
        vain = 0
        while True:
            behind = bool(held) and any(p not in held and self._more(p) for p in self._assigned)
            if size >= HELD_BYTES or (size >= max_bytes and not behind):
                break
            room = max(1, (max_bytes - size) // self._largest)
            all_of_it = self.whole and behind  # else other partitions' buffered batches block it
            more = self._fetch(wait_ms, MOST_ITEMS if all_of_it else min(MOST_ITEMS, room))
            self._held += more
            size += sum(len(batch.data) for batch in more)
            new = {(batch.topic, batch.partition) for batch in more} - held
            held |= new
            vain = 0 if new else vain + 1
            if not (more or behind) or (behind and vain > PATIENCE):
                break
            wait_ms = FETCH_WAIT_MS if behind else 0
        return self._release(max_bytes)

    def pending(self) -> set[Partition]:
        """Return the partitions of impressions, clicks and ratings with more records to come."""
        held = {(batch.topic, batch.partition) for batch in self._held}
        return {
            p
            for p in self._assigned
            if self.topics[p[0]] not in ATTRIBUTE_KINDS and (p in held or self._more(p))
        }

    def _open(self, batch: RecordBatch) -> bool:
        """Return whether the batch may be returned: its partition is not paused."""
        tp = self._assigned[batch.topic, batch.partition]
        return not self._consumer._subscription.assignment[tp].paused  # noqa: SLF001

    def _more(self, partition: Partition) -> bool:
        """Return whether the log may hold records behind the fetched ones."""
        state = self._consumer._subscription.assignment[self._assigned[partition]]  # noqa: SLF001
        if state.paused or state.position is None:
            return False
        return state.highwater is None or bool(state.position.offset < state.highwater)

    def _release(self, max_bytes: int) -> list[RecordBatch]:
        """Return held batches, oldest first, until a partition's next batch is not fetched yet."""
        queues: dict[Partition, deque[RecordBatch]] = {}
        for batch in self._held:
            queues.setdefault((batch.topic, batch.partition), deque()).append(batch)
        heads = [
            (_time(queue[0]), partition)
            for partition, queue in queues.items()
            if self._open(queue[0])
        ]
        heapify(heads)
        given: list[RecordBatch] = []
        size = 0
        while heads and size < max_bytes:
            _, partition = heappop(heads)
            batch = queues[partition].popleft()
            given.append(batch)
            size += len(batch.data)
            if queues[partition]:
                heappush(heads, (_time(queues[partition][0]), partition))
            elif self._more(partition):
                break
        self._held = [batch for queue in queues.values() for batch in queue]
        return given

    def _fetch(self, wait_ms: int, items: int) -> list[RecordBatch]:
        self._unpark()
        with broker_errors("polling"):
            got = self._consumer.poll(timeout_ms=wait_ms, max_records=items)
        if self._unproven:
            self._prove()
        if not got:
            return []
        if self.whole:
            made = [batch for batches in got.values() for batch in batches]
            widest = max(len(batch.data) for batch in made)
        else:
            made = [reframe(tp, self.topics[tp.topic], records) for tp, records in got.items()]
            widest = max(len(batch.data) // batch.count for batch in made)
        self._largest = max(widest, self._largest * 9 // 10, 1)
        return made

    # -- offsets and identity

    def commit(self, offsets: Mapping[Partition, int], timeout_s: float = REQUEST_S) -> None:
        """Commit offsets for lag tools; does nothing without a group. Raises Unavailable."""
        if self._group_id is None or not offsets:
            return
        with broker_errors("committing offsets"):
            self._consumer.commit(_named(offsets), timeout_ms=int(timeout_s * 1000))

    def tell(self, offsets: Mapping[Partition, int]) -> None:
        """Commit offsets for lag tools without waiting; later polls send them and log failures.

        A commit waits for the broker's disk; a synchronous one would delay the stream.
        """
        if self._group_id is None or not offsets:
            return
        with broker_errors("committing offsets"):
            self._consumer.commit_async(_named(offsets), _told)

    def committed(self, timeout_s: float = REQUEST_S) -> Offsets:
        """Return this group's committed offsets; partitions without a commit are missing."""
        found: Offsets = {}
        with broker_errors("asking for committed offsets"):
            for partition, tp in self._assigned.items():
                offset = self._consumer.committed(tp, timeout_ms=int(timeout_s * 1000))
                if offset is not None:
                    found[partition] = offset
        return found

    def identity(self) -> dict[str, str]:
        """Return the ids of the cluster ("cluster") and of each topic, where the broker has ids.

        A snapshot with other ids belongs to another stream, even if its offsets would fit.
        """
        cluster = self._consumer._cluster  # noqa: SLF001 - the ids have no public accessor
        ids = {topic: cluster.topic_id(topic) for topic in self.topics}
        known = {topic: str(id_) for topic, id_ in ids.items() if id_ is not None and id_.int}
        return {"cluster": str(cluster.cluster_id or ""), **known}

    def identify(self) -> dict[str, str]:
        """Request the topics' metadata, then return `identity`."""
        self._mine()
        return self.identity()

    def look_again(self, timeout_s: float = 1.0) -> None:
        """Refresh the client's metadata of cluster and topics; raise Unavailable on failure."""
        net, manager = self._consumer._net, self._consumer._manager  # noqa: SLF001 - not public
        with broker_errors("asking for the topics"):
            asked = self._consumer._cluster.request_update()  # noqa: SLF001
            net.run(manager.wait_for, asked, int(timeout_s * 1000))

    def verify(self, identity: Mapping[str, str]) -> None:
        """Raise Inconsistent if the cluster or a topic has another id than in `identity`."""
        now = self.identity()
        for name, id_ in identity.items():
            if id_ and now.get(name, id_) != id_:
                raise Inconsistent(f"{name} has the id {now[name]}, not {id_}", DISAGREES)

    def close(self) -> None:
        """Close the client without committing."""
        self._consumer.close(autocommit=False, timeout_ms=2_000)

    def __enter__(self) -> "KafkaSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- internals

    def _exists(self, partition: Partition) -> bool:
        return partition[1] in self._consumer.partitions_for_topic(partition[0])

    def _require_topics(self) -> None:
        """Raise if the client no longer sees a topic, and refresh its metadata."""
        cluster = self._consumer._cluster  # noqa: SLF001
        for topic in self.topics:
            if cluster.partitions_for_topic(topic) is not None:
                self._missing_s.pop(topic, None)
                continue
            cluster.request_update()
            if topic in cluster.unauthorized_topics:
                raise Unavailable(f"the topic {topic} is not visible to this user", remedy=NO_TOPIC)
            since_s = self._missing_s.setdefault(topic, time.monotonic())
            if time.monotonic() - since_s > GONE_S:
                raise Inconsistent(f"the topic {topic} was deleted while reading", DISAGREES)
            raise Unavailable(f"the broker does not know the topic {topic}")

    def _mine(self) -> list[Partition]:
        """Return this rank's partitions; raise CounterflowError if a topic does not exist."""
        mine = []
        for topic, kind in self.topics.items():
            with broker_errors(f"asking for the partitions of {topic}"):
                numbers = self._consumer.partitions_for_topic(topic)
            if not numbers:
                raise CounterflowError(
                    f"the topic {topic} does not exist, or is not visible to this user",
                    NO_TOPIC,
                )
            for number in sorted(numbers):
                if kind == "item" or number % self.world == self.rank:
                    mine.append((topic, number))
        return mine

    def _add(
        self, partitions: Sequence[Partition], wanted: dict[Partition, int], skip_gap: bool = False
    ) -> Offsets:
        """Assign further partitions and seek in each; return the number of skipped offsets."""
        added = {partition: TopicPartition(*partition) for partition in partitions}
        with broker_errors("asking for the earliest offsets"):
            first = self._consumer.beginning_offsets(
                list(added.values()), timeout_ms=int(REQUEST_S * 1000)
            )
        skipped: Offsets = {}
        for partition, tp in added.items():
            gap = first[tp] - wanted.get(partition, first[tp])
            if gap <= 0:
                continue
            message = f"offset {wanted[partition]} of {_name(partition)} is gone: " + (
                f"the earliest is {first[tp]}"
            )
            if not skip_gap:
                raise Inconsistent(message, GONE)
            log.warning("%s; skipping %d offsets", message, gap)
            skipped[partition], wanted[partition] = gap, first[tp]
        self._assigned = self._assigned | added  # a new dict: other threads may be reading it
        self._consumer.assign(list(self._assigned.values()))
        for partition, tp in added.items():
            self._stand(partition, wanted.get(partition, first[tp]))
        return skipped

    def _stand(self, partition: Partition, offset: int) -> None:
        """Seek to an offset; `_prove` checks later that it is not beyond the end."""
        tp = self._assigned[partition]
        self._consumer.seek(tp, offset)
        self._unproven[partition] = offset, self._consumer.highwater(tp)

    def _unpark(self) -> None:
        """Let records that were set aside by a pause be returned after `resume`.

        kafka-python 3.0.12 returns them only if its slot of current records is None, but leaves the
        last, exhausted records there, so a resumed partition would stall forever.
        """
        fetcher = self._consumer._fetcher  # noqa: SLF001
        if getattr(fetcher, "_paused_partition_records", None):
            if not fetcher._next_partition_records:  # noqa: SLF001
                fetcher._next_partition_records = None  # noqa: SLF001

    def _prove(self) -> None:
        """Raise Inconsistent for a start beyond the end; Apache Kafka does, but Tansu does not."""
        for partition, (offset, stale) in list(self._unproven.items()):
            end = self._consumer.highwater(self._assigned[partition])
            if end is None or (offset > end and end == stale):
                continue
            if offset > end:
                raise Inconsistent(
                    f"offset {offset} of {_name(partition)} is beyond its end {end}", DISAGREES
                )
            del self._unproven[partition]


def _time(batch: RecordBatch) -> int:
    """Return the Kafka timestamp of the batch's first record in ms.

    For topics in which compaction keeps tombstones, the first timestamp may be a delete horizon
    instead, which lies later.
    """
    return batch.max_ts_ms if batch.log_append else min(batch.first_ts_ms, batch.max_ts_ms)


def _name(partition: Partition) -> str:
    return f"{partition[0]}[{partition[1]}]"


def _named(offsets: Mapping[Partition, int]) -> dict[Any, Any]:
    return {TopicPartition(*p): OffsetAndMetadata(offset, "", -1) for p, offset in offsets.items()}


def _told(_: Any, response: Any) -> None:
    if isinstance(response, Exception):  # not retried: the next commit is newer
        log.warning("committing offsets to Kafka failed: %s", response)
