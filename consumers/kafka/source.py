"""One rank's partitions, polled as whole record batches from offsets that the caller keeps."""

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
FETCH_WAIT_MS = 10  # how long the broker holds an empty fetch; produced records end it at once
PARTITION_BYTES = MIB  # of one partition in one fetch, compressed: what a poll is put together from
POLL_BYTES = 8 * MIB  # larger polls make steps hardly faster, and the process larger
FIRST_GUESS = 16 * 1024  # a batch's bytes before one was seen: the clients' usual batch_size
MOST_ITEMS = 100_000  # of one inner poll
HELD_BYTES = 64 * MIB  # beyond it the order over partitions is given up, not the memory
GONE_S = 10.0  # a topic that the broker does not know for so long was deleted
PATIENCE = 8  # fetches without a lagging partition's records: an open transaction holds them


class KafkaSource:
    """Polls the batches of one rank's partitions, from offsets that the caller keeps.

    `topics` maps each topic's name to its kind. `client` passes TLS, SASL and other options on to
    the client. `whole` forces the batch path (True) or the stock path (False); by default the
    client's looks decide. One thread at a time may use a source.
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
                "auto_offset_reset": "none",  # a lost offset stops us; it never skips records
                "allow_auto_create_topics": False,
                "fetch_max_wait_ms": fetch_wait_ms,
                "fetch_min_bytes": 1,
                "max_partition_fetch_bytes": PARTITION_BYTES,
                "bootstrap_timeout_ms": int(REQUEST_S * 1000),
                "request_timeout_ms": int(REQUEST_S * 1000),
                "metadata_max_age_ms": 30_000,  # so long a new partition may go unnoticed
                "reconnect_backoff_max_ms": 2_000,
                "metrics_enabled": False,
                **(client or {}),
            },
        )
        self.whole = supported(self._consumer) if whole is None else whole
        if self.whole:
            install(self._consumer, self.topics)
        elif whole is None:
            log.warning("this kafka-python parses record by record: expect 200 k records/s at most")
        self._assigned: dict[Partition, Any] = {}
        # Where we started and the end known then, until the broker tells the end of now.
        self._unproven: dict[Partition, tuple[int, int | None]] = {}
        self._held: list[RecordBatch] = []  # polled, not yet given out
        self._largest = FIRST_GUESS
        self._missing_s: dict[str, float] = {}  # topics that the broker does not know, since when

    # -- partitions and offsets

    def start(
        self, offsets: Mapping[Partition, int] | None = None, skip_gap: bool = False
    ) -> Offsets:
        """Stand at `offsets` in this rank's partitions, at the earliest record in all others.

        Raises Inconsistent for an offset whose record is gone, or in a partition that is none. With
        `skip_gap` it stands at the earliest record instead of one that is gone; returns how many
        offsets of which partitions were skipped so.
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
        """Take up the partitions that were added since the start, from their first record.

        Asks nobody: it looks at what the client knows. Raises Unavailable for a topic that is not
        shown to us any more, and Inconsistent for one that was deleted.
        """
        self._require_topics()
        new = [partition for partition in self._mine() if partition not in self._assigned]
        if new:
            self._add(new, {})
        return new

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """Stand at `offsets`; other partitions stay where they are."""
        self._held = [b for b in self._held if (b.topic, b.partition) not in offsets]
        for partition, offset in offsets.items():
            self._stand(partition, offset)

    def pause(self, *partitions: Partition) -> None:
        """Give out nothing of these partitions (of none named: of all) until they are resumed."""
        self._consumer.pause(*(self._assigned[p] for p in partitions or self._assigned))

    def resume(self, *partitions: Partition) -> None:
        """Go on where `pause` stopped."""
        self._consumer.resume(*(self._assigned[p] for p in partitions or self._assigned))

    def assigned(self) -> list[Partition]:
        """Return this rank's partitions."""
        return list(self._assigned)

    def positions(self) -> Offsets:
        """Return the next offset of each partition: everything before it was given out."""
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
        """Return the ends of the partitions as the last fetches told them; unasked ones lack."""
        ends = {p: self._consumer.highwater(tp) for p, tp in self._assigned.items()}
        return {partition: end for partition, end in ends.items() if end is not None}

    def lag(self) -> Offsets:
        """Return how many offsets lie between each position and its known end; no request."""
        positions = self.positions()
        return {p: max(0, end - positions[p]) for p, end in self.highwaters().items()}

    def ends(self, timeout_s: float = REQUEST_S) -> Offsets:
        """Return each partition's end, asking for those that no fetch has told since the start.

        What is polled to learn them comes with the next polls.
        Under read_committed it is the last stable offset, else the high watermark out of a fetch:
        Tansu's answer to ListOffsets is wrong behind a batch of several records.
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
        """Return the next batches in the order of Kafka's time, over partitions.

        At once what is there, else the first within `timeout_s`; about `max_bytes` of uncompressed
        records at most, and at least one batch where there is one. A partition of which more is
        known to lie in the log holds the others back until its next batch is here, so that a
        backlog of impressions and clicks comes as it was produced. Raises Inconsistent when the
        offsets we stand at are not in the log.
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
            all_of_it = self.whole and behind  # what the client holds of others stands in line
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
        """Return the partitions of impressions, clicks and ratings of which more is to come."""
        held = {(batch.topic, batch.partition) for batch in self._held}
        return {
            p
            for p in self._assigned
            if self.topics[p[0]] not in ATTRIBUTE_KINDS and (p in held or self._more(p))
        }

    def _open(self, batch: RecordBatch) -> bool:
        """Tell whether the batch may be given out: its partition is not paused."""
        tp = self._assigned[batch.topic, batch.partition]
        return not self._consumer._subscription.assignment[tp].paused  # noqa: SLF001

    def _more(self, partition: Partition) -> bool:
        """Tell whether the log may hold records behind those fetched."""
        state = self._consumer._subscription.assignment[self._assigned[partition]]  # noqa: SLF001
        if state.paused or state.position is None:
            return False
        return state.highwater is None or bool(state.position.offset < state.highwater)

    def _release(self, max_bytes: int) -> list[RecordBatch]:
        """Give out what is held, the oldest first, until a partition's next batch is not here."""
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

    # -- what lag tools and snapshots read

    def commit(self, offsets: Mapping[Partition, int], timeout_s: float = REQUEST_S) -> None:
        """Tell lag tools these offsets; without a group nothing happens. Raises Unavailable."""
        if self._group_id is None or not offsets:
            return
        with broker_errors("committing offsets"):
            self._consumer.commit(_named(offsets), timeout_ms=int(timeout_s * 1000))

    def tell(self, offsets: Mapping[Partition, int]) -> None:
        """The offsets are on their way to lag tools; polls carry them, and log a refusal.

        A commit waits for the broker's disk, and with it would the stream.
        """
        if self._group_id is None or not offsets:
            return
        with broker_errors("committing offsets"):
            self._consumer.commit_async(_named(offsets), _told)

    def committed(self, timeout_s: float = REQUEST_S) -> Offsets:
        """Return what this group has committed in this rank's partitions; uncommitted ones lack."""
        found: Offsets = {}
        with broker_errors("asking for committed offsets"):
            for partition, tp in self._assigned.items():
                offset = self._consumer.committed(tp, timeout_ms=int(timeout_s * 1000))
                if offset is not None:
                    found[partition] = offset
        return found

    def identity(self) -> dict[str, str]:
        """Return the ids of the cluster ("cluster") and of each topic, where the broker has them.

        A snapshot of other ids belongs to another stream, even where its offsets would fit.
        """
        cluster = self._consumer._cluster  # noqa: SLF001 - no public way to the ids
        ids = {topic: cluster.topic_id(topic) for topic in self.topics}
        known = {topic: str(id_) for topic, id_ in ids.items() if id_ is not None and id_.int}
        return {"cluster": str(cluster.cluster_id or ""), **known}

    def identify(self) -> dict[str, str]:
        """Return `identity` once the topics are known; before, the client has no ids of them."""
        self._mine()
        return self.identity()

    def look_again(self, timeout_s: float = 1.0) -> None:
        """The client knows cluster and topics as they are now; raises Unavailable."""
        net, manager = self._consumer._net, self._consumer._manager  # noqa: SLF001 - no public way
        with broker_errors("asking for the topics"):
            asked = self._consumer._cluster.request_update()  # noqa: SLF001
            net.run(manager.wait_for, asked, int(timeout_s * 1000))

    def verify(self, identity: Mapping[str, str]) -> None:
        """Raise Inconsistent if a cluster or topic is another than in `identity`."""
        now = self.identity()
        for name, id_ in identity.items():
            if id_ and now.get(name, id_) != id_:
                raise Inconsistent(f"{name} has the id {now[name]}, not {id_}", DISAGREES)

    def close(self) -> None:
        """Leave; nothing is committed."""
        self._consumer.close(autocommit=False, timeout_ms=2_000)

    def __enter__(self) -> "KafkaSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inner

    def _exists(self, partition: Partition) -> bool:
        return partition[1] in self._consumer.partitions_for_topic(partition[0])

    def _require_topics(self) -> None:
        """Raise for a topic that the client has lost sight of, while it looks again."""
        cluster = self._consumer._cluster  # noqa: SLF001
        for topic in self.topics:
            if cluster.partitions_for_topic(topic) is not None:
                self._missing_s.pop(topic, None)
                continue
            cluster.request_update()
            if topic in cluster.unauthorized_topics:
                raise Unavailable(f"the topic {topic} is not shown to this user", remedy=NO_TOPIC)
            since_s = self._missing_s.setdefault(topic, time.monotonic())
            if time.monotonic() - since_s > GONE_S:
                raise Inconsistent(f"the topic {topic} was deleted while it was read", DISAGREES)
            raise Unavailable(f"the broker does not know the topic {topic}")

    def _mine(self) -> list[Partition]:
        mine = []
        for topic, kind in self.topics.items():
            with broker_errors(f"asking for the partitions of {topic}"):
                numbers = self._consumer.partitions_for_topic(topic)
            if not numbers:
                raise CounterflowError(
                    f"the topic {topic} does not exist, or is not shown to this user",
                    NO_TOPIC,
                )
            for number in sorted(numbers):
                if kind == "item" or number % self.world == self.rank:
                    mine.append((topic, number))
        return mine

    def _add(
        self, partitions: Sequence[Partition], wanted: dict[Partition, int], skip_gap: bool = False
    ) -> Offsets:
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
            log.warning("%s; %d offsets are skipped", message, gap)
            skipped[partition], wanted[partition] = gap, first[tp]
        self._assigned = self._assigned | added  # anew: others may be looking at it
        self._consumer.assign(list(self._assigned.values()))
        for partition, tp in added.items():
            self._stand(partition, wanted.get(partition, first[tp]))
        return skipped

    def _stand(self, partition: Partition, offset: int) -> None:
        tp = self._assigned[partition]
        self._consumer.seek(tp, offset)
        self._unproven[partition] = offset, self._consumer.highwater(tp)

    def _unpark(self) -> None:
        """Let records that were parked at a pause come back after its end.

        The client (3.0.12) takes them up only where its slot for the records in line is None, and
        leaves the last, used up records there: a resumed partition would stall for ever.
        """
        fetcher = self._consumer._fetcher  # noqa: SLF001
        if getattr(fetcher, "_paused_partition_records", None):
            if not fetcher._next_partition_records:  # noqa: SLF001
                fetcher._next_partition_records = None  # noqa: SLF001

    def _prove(self) -> None:
        """Raise for a start behind the end, which Apache Kafka calls out of range and Tansu not."""
        for partition, (offset, stale) in list(self._unproven.items()):
            end = self._consumer.highwater(self._assigned[partition])
            if end is None or (offset > end and end == stale):
                continue
            if offset > end:
                raise Inconsistent(
                    f"offset {offset} of {_name(partition)} is behind its end {end}", DISAGREES
                )
            del self._unproven[partition]


def _time(batch: RecordBatch) -> int:
    """Return the Kafka time of the batch's first record (ms).

    Where compaction keeps removals, their last day stands in place of the first time.
    """
    return batch.max_ts_ms if batch.log_append else min(batch.first_ts_ms, batch.max_ts_ms)


def _name(partition: Partition) -> str:
    return f"{partition[0]}[{partition[1]}]"


def _named(offsets: Mapping[Partition, int]) -> dict[Any, Any]:
    return {TopicPartition(*p): OffsetAndMetadata(offset, "", -1) for p, offset in offsets.items()}


def _told(_: Any, response: Any) -> None:
    if isinstance(response, Exception):  # the next commit tells lag tools more
        log.warning("offsets are not told to Kafka: %s", response)
