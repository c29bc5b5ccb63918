"""Kafka at the border: a source of record batches, a sink, dead letters; its errors mapped once.

The source owns its partitions by `assign`: rank r of w takes the partitions p with p % w == r, and
every rank all partitions of the items. There is no group membership to lose; the offsets that count
are the snapshot's, and those committed to Kafka are for lag tools only.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition, errors
from kafka.codec import has_lz4
from kafka.net.compat import KafkaNetClient
from kafka.serializer import Serializer
from kafka.structs import OffsetAndMetadata

from consumers.record_batches import install, reframe, supported
from stream.errors import CounterflowError, Inconsistent, Unavailable
from stream.records import RecordBatch

if TYPE_CHECKING:
    from stream.events import BadRecord

log = logging.getLogger(__name__)

Partition = tuple[str, int]
Offsets = dict[Partition, int]

MIB = 1024 * 1024
REQUEST_S = 10.0  # a request without an answer by then is a broker that is away
FETCH_WAIT_MS = 10  # how long the broker holds an empty fetch; produced records end it at once
PARTITION_BYTES = 8 * MIB  # of one partition in one fetch: what makes polls large under load
POLL_BYTES = 32 * MIB
FIRST_GUESS = 16 * 1024  # a batch's bytes before one was seen: the clients' usual batch_size
MOST_ITEMS = 100_000  # of one inner poll

DISAGREES = (
    "the topic was made anew or its records are past retention: start from a snapshot of this "
    "topic, or move the snapshot folder away to learn again from the earliest offsets"
)

# What asking again does not mend, and what the operator does about it.
LASTING: tuple[tuple[type[Exception], str], ...] = (
    (errors.SaslAuthenticationFailedError, "check user name, password and mechanism"),
    (errors.AuthorizationError, "grant this user the topics and the group (kafka-acls)"),
    (errors.UnsupportedCodecError, "pip install 'kafka-python[lz4,zstd,snappy,crc32c]'"),
    (errors.KafkaConfigurationError, "correct the [kafka] section of the configuration"),
    (errors.InvalidTopicError, "a topic prefix has letters, digits, '.', '_' and '-'"),
    (errors.InvalidReplicationFactorError, "ask for no more replicas than there are brokers"),
    (errors.MessageSizeTooLargeError, "raise max.message.bytes of the topic"),
)
LOST: tuple[type[Exception], ...] = (
    errors.OffsetOutOfRangeError,
    errors.NoOffsetForPartitionError,
    errors.LogTruncationError,
)


@contextmanager
def broker_errors(doing: str) -> Iterator[None]:
    """Map the client's errors to ours: what to do next is the type, what went wrong the text."""
    try:
        yield
    except LOST as error:
        raise Inconsistent(f"{doing}: {_said(error)}", DISAGREES) from error
    except errors.CorruptRecordError as error:
        raise Inconsistent(
            f"{doing}: {_said(error)}", "the log is damaged: check the broker's disk"
        ) from error
    except errors.KafkaError as error:
        for kind, remedy in LASTING:
            if isinstance(error, kind):
                raise CounterflowError(f"{doing}: {_said(error)}", remedy) from error
        raise Unavailable(f"{doing}: {_said(error)}", remedy="is the broker up?") from error
    except OSError as error:
        raise Unavailable(f"{doing}: {error}", remedy="is the broker up?") from error


def _said(error: Exception) -> str:
    name, text = type(error).__name__, str(error)
    return text if name in text else f"{name}: {text}".removesuffix(": ")


# What the client only logs while it tries to connect, and what the operator does about it.
TOLD_IN_THE_LOG = (
    ("SaslAuthenticationFailed", "check user name, password and mechanism"),
    ("UnsupportedSaslMechanism", "the broker does not offer this sasl_mechanism"),
    ("CERTIFICATE_VERIFY_FAILED", "name the CA of the broker's certificate in ssl_cafile"),
    ("Invalid frame length", "this listener speaks TLS: set security_protocol to SSL or SASL_SSL"),
)

HUNG_UP = "is it up? It hangs up: check security_protocol, user name and password too"


class _Overheard(logging.Handler):
    """What the client logs: why it cannot connect is told nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.remedy = ""
        self.reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        for sign, remedy in TOLD_IN_THE_LOG:
            if sign in said:
                self.reason, self.remedy = said, remedy
        if not self.remedy and "failed: " in said and "Unable to bootstrap" not in said:
            self.reason = said


def connect(make: Callable[..., Any], bootstrap_servers: str, options: Mapping[str, Any]) -> Any:
    """Return the connected client, or raise with the reason that the client only logs.

    A refused connection is Unavailable; wrong credentials and a wrong protocol are not mended by
    waiting, and raise CounterflowError.
    """
    heard = _Overheard()
    inner: list[Any] = []

    def network(**how: Any) -> Any:
        inner.append(KafkaNetClient(**how))
        return inner[-1]

    logger = logging.getLogger("kafka")
    logger.addHandler(heard)
    try:
        with broker_errors(f"connecting to {bootstrap_servers}"):
            return make(bootstrap_servers=bootstrap_servers, kafka_client=network, **options)
    except Unavailable as error:
        for client in inner:
            client.close()  # a failed constructor leaves its thread and sockets behind
        message = f"{error.message} ({heard.reason})" if heard.reason else error.message
        if heard.remedy:
            raise CounterflowError(message, heard.remedy) from error
        hung_up = "socket disconnected" in heard.reason
        remedy = HUNG_UP if hung_up else error.remedy
        raise Unavailable(message, error.retry_after_s, remedy) from error
    finally:
        logger.removeHandler(heard)


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
        self._topics = dict(topics)
        self._group_id = group_id
        self._committed_only = isolation_level == "read_committed"
        self._rank, self._world = rank, world
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
            install(self._consumer, self._topics)
        elif whole is None:
            log.warning("this kafka-python parses record by record: expect 200 k records/s at most")
        self._assigned: dict[Partition, Any] = {}
        # Where we started and the end known then, until the broker tells the end of now.
        self._unproven: dict[Partition, tuple[int, int | None]] = {}
        self._held: list[RecordBatch] = []  # polled, not yet given out
        self._largest = FIRST_GUESS

    # -- partitions and offsets

    def start(self, offsets: Mapping[Partition, int] | None = None) -> None:
        """Stand at `offsets` in this rank's partitions, at the earliest record in all others.

        Raises Inconsistent for an offset whose record is gone, or in a partition that is none.
        """
        self._held = []
        self._assigned = {}
        self._unproven = {}
        wanted = dict(offsets or {})
        mine = self._mine()
        for partition in wanted:
            if partition[0] in self._topics and not self._exists(partition):
                raise Inconsistent(f"partition {_name(partition)} does not exist", DISAGREES)
        self._add(mine, wanted)

    def discover(self) -> list[Partition]:
        """Take up the partitions that were added since the start, from their first record."""
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
        if self._committed_only:
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
        """Return the next batches: at once what is there, else the first within `timeout_s`.

        About `max_bytes` of uncompressed records at most, and at least one batch where there is
        one. Raises Inconsistent when the offsets we stand at are not in the log.
        """
        polled, self._held = self._held, []
        size = sum(len(batch.data) for batch in polled)
        wait_ms = 0 if polled else int(timeout_s * 1000)
        while size < max_bytes:
            room = max(1, min(MOST_ITEMS, (max_bytes - size) // self._largest))
            try:
                more = self._fetch(wait_ms, room)
            except CounterflowError:
                self._held = polled  # for the next poll: positions still tell them as not given out
                raise
            if not more:
                break
            polled += more
            size += sum(len(batch.data) for batch in more)
            wait_ms = 0
        return polled

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
            made = [reframe(tp, self._topics[tp.topic], records) for tp, records in got.items()]
            widest = max(len(batch.data) // batch.count for batch in made)
        self._largest = max(widest, self._largest * 9 // 10, 1)
        return made

    # -- what lag tools and snapshots read

    def commit(self, offsets: Mapping[Partition, int], timeout_s: float = REQUEST_S) -> None:
        """Tell lag tools these offsets; without a group nothing happens. Raises Unavailable."""
        if self._group_id is None or not offsets:
            return
        told = {TopicPartition(*p): OffsetAndMetadata(o, "", -1) for p, o in offsets.items()}
        with broker_errors("committing offsets"):
            self._consumer.commit(told, timeout_ms=int(timeout_s * 1000))

    def identity(self) -> dict[str, str]:
        """Return the ids of the cluster ("cluster") and of each topic, where the broker has them.

        A snapshot of other ids belongs to another stream, even where its offsets would fit.
        """
        cluster = self._consumer._cluster  # noqa: SLF001 - no public way to the ids
        ids = {topic: cluster.topic_id(topic) for topic in self._topics}
        known = {topic: str(id_) for topic, id_ in ids.items() if id_ is not None and id_.int}
        return {"cluster": str(cluster.cluster_id or ""), **known}

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

    def _mine(self) -> list[Partition]:
        mine = []
        for topic, kind in self._topics.items():
            with broker_errors(f"asking for the partitions of {topic}"):
                numbers = self._consumer.partitions_for_topic(topic)
            if not numbers:
                raise CounterflowError(
                    f"the topic {topic} does not exist, or is not shown to this user",
                    "counterflow topics create; where ACLs rule, grant describe and read",
                )
            for number in sorted(numbers):
                if kind == "item" or number % self._world == self._rank:
                    mine.append((topic, number))
        return mine

    def _add(self, partitions: Sequence[Partition], wanted: Mapping[Partition, int]) -> None:
        added = {partition: TopicPartition(*partition) for partition in partitions}
        with broker_errors("asking for the earliest offsets"):
            first = self._consumer.beginning_offsets(
                list(added.values()), timeout_ms=int(REQUEST_S * 1000)
            )
        for partition, tp in added.items():
            if partition in wanted and wanted[partition] < first[tp]:
                raise Inconsistent(
                    f"offset {wanted[partition]} of {_name(partition)} is gone: "
                    f"the earliest is {first[tp]}",
                    DISAGREES,
                )
        self._assigned |= added
        self._consumer.assign(list(self._assigned.values()))
        for partition, tp in added.items():
            self._stand(partition, wanted.get(partition, first[tp]))

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


def _name(partition: Partition) -> str:
    return f"{partition[0]}[{partition[1]}]"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record to produce; no timestamp: the client's clock; no key: any partition."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    timestamp_ms: int | None = None
    partition: int | None = None


class Unacknowledged(Unavailable):
    """The broker acknowledged only the records at the indices in `acknowledged`."""

    def __init__(self, message: str, acknowledged: Sequence[int]) -> None:
        super().__init__(message, remedy="is the broker up? Send the others again")
        self.acknowledged = tuple(acknowledged)


class _Headers(list[tuple[str, bytes | None]]):
    """Headers that count as none where the client adds up sizes and trips over a null value."""

    def __bool__(self) -> bool:
        return False


class _AsItCame(Serializer):  # type: ignore[misc]
    """Lets a record through whose header values, or whose key and value together, are null.

    Kafka has such records and the client's checks refuse them; it serializes after its checks.
    """

    def serialize(self, topic: str, headers: Any, data: Any) -> Any:
        if not isinstance(data, Outgoing):
            return data
        headers.extend(data.headers)
        return data.value


class Sink:
    """Produces records, acknowledged by all in-sync replicas, once each while it lives."""

    def __init__(
        self,
        *,
        bootstrap_servers: str,
        client: Mapping[str, Any] | None = None,
        linger_ms: int = 0,
        batch_bytes: int = 256 * 1024,
    ) -> None:
        self._producer = connect(
            KafkaProducer,
            bootstrap_servers,
            {
                "acks": "all",
                "value_serializer": _AsItCame(),
                "enable_idempotence": True,
                "compression_type": "lz4" if has_lz4() else None,
                "batch_size": batch_bytes,
                "linger_ms": linger_ms,
                "max_request_size": 4 * MIB,
                "allow_auto_create_topics": False,
                "max_block_ms": int(REQUEST_S * 1000),
                "delivery_timeout_ms": int(3 * REQUEST_S * 1000),
                "request_timeout_ms": int(REQUEST_S * 1000),
                "bootstrap_timeout_ms": int(REQUEST_S * 1000),
                "reconnect_backoff_max_ms": 2_000,
                "metrics_enabled": False,
                **(client or {}),
            },
        )

    def send(self, record: Outgoing) -> Any:
        """Hand the record to the client and return its future; it is not acknowledged yet."""
        plain = all(content is not None for _, content in record.headers)
        plain = plain and not (record.key is None and record.value is None)
        with broker_errors(f"producing to {record.topic}"):
            return self._producer.send(
                record.topic,
                value=record.value if plain else record,
                key=record.key,
                headers=list(record.headers) if plain else _Headers(),
                partition=record.partition,
                timestamp_ms=record.timestamp_ms,
            )

    def flush(self, timeout_s: float = REQUEST_S) -> None:
        """Wait until every record sent is acknowledged or failed; Unavailable when time is up."""
        with broker_errors("waiting for acknowledgements"):
            self._producer.flush(timeout=timeout_s)

    def produce(self, records: Sequence[Outgoing], timeout_s: float = REQUEST_S) -> None:
        """Produce all records and return when all are acknowledged; raises Unacknowledged."""
        futures: list[Any] = []
        said = ""
        try:
            for record in records:
                futures.append(self.send(record))
        except CounterflowError as error:
            said = error.message
        try:
            self.flush(timeout_s)  # also after a failure: those before it are on their way
        except CounterflowError as error:
            said = said or error.message
        done = [at for at, future in enumerate(futures) if future.succeeded()]
        if len(done) < len(records):
            failed = [future.exception for future in futures if future.failed()]
            said = said or (_said(failed[0]) if failed else "no answer in time")
            raise Unacknowledged(f"{len(done)} of {len(records)} acknowledged: {said}", done)

    def close(self, timeout_s: float = REQUEST_S) -> None:
        """Send what waits and leave; what is not acknowledged by then is given up and logged."""
        try:
            self._producer.close(timeout=timeout_s)
        except errors.KafkaTimeoutError as error:
            log.warning("records are given up: %s", error)
            self._producer._sender.force_close()  # noqa: SLF001 - the client's close stops halfway
            self._producer.close(timeout=1)

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DeadLetters:
    """Keeps bad records, as they came, on a topic of their own; `clock` gives Unix seconds."""

    def __init__(self, sink: Sink, topic: str, clock: Callable[[], float]) -> None:
        self._sink = sink
        self._topic = topic
        self._clock = clock
        self._waiting: list[tuple[Outgoing, Any]] = []  # with its future, or None before sending
        self.failed = 0  # letters that the broker will not take: too large

    def add(self, bad: Sequence["BadRecord"], batches: Sequence[RecordBatch]) -> None:
        """Start to produce a letter for each bad record of a poll; `flush` acknowledges them."""
        now_ms = str(int(self._clock() * 1000)).encode()
        for record in bad:
            self._waiting.append((letter(self._topic, record, batches, now_ms), None))
        self._send()

    def flush(self, timeout_s: float = REQUEST_S) -> None:
        """Return when the broker has every letter; raises Unavailable, and keeps the others."""
        self._send()
        if not self._waiting:
            return
        self._sink.flush(timeout_s)
        kept: list[tuple[Outgoing, Any]] = []
        for record, future in self._waiting:
            if future is None or not future.is_done:
                kept.append((record, future))
            elif future.failed():
                if isinstance(future.exception, errors.MessageSizeTooLargeError):
                    self._give_up(record, future.exception)
                else:
                    kept.append((record, None))
        self._waiting = kept
        if kept:
            raise Unavailable(f"{len(kept)} dead letters are not acknowledged")

    def _send(self) -> None:
        for at, (record, future) in enumerate(self._waiting):
            if future is None:
                try:
                    self._waiting[at] = (record, self._sink.send(record))
                except Unavailable as error:
                    log.warning("dead letters wait: %s", error)
                    return
                except CounterflowError as error:
                    if not isinstance(error.__cause__, errors.MessageSizeTooLargeError):
                        raise
                    self._give_up(record, error.__cause__)
                    self._waiting[at] = (record, _Gone)

    def _give_up(self, record: Outgoing, error: BaseException) -> None:
        self.failed += 1
        log.error("a dead letter of %d bytes is lost: %s", len(record.value or b""), error)


class _Gone:
    """Stands for the future of a letter that was given up."""

    is_done = True

    @staticmethod
    def failed() -> bool:
        return False


def letter(
    topic: str, record: "BadRecord", batches: Sequence[RecordBatch], now_ms: bytes
) -> Outgoing:
    """Return the dead letter of a record: as it came, and why and whence in `dlq.*` headers."""
    batch = batches[record.batch]
    why = {
        "dlq.reason": record.reason.encode(),
        "dlq.detail": record.detail.encode(errors="replace"),
        "dlq.stage": record.stage.encode(),
        "dlq.topic": batch.topic.encode(),
        "dlq.partition": str(batch.partition).encode(),
        "dlq.offset": str(record.offset).encode(),
        "dlq.failed_at_ms": now_ms,
    }
    return Outgoing(
        topic=topic,
        value=record.value,
        key=record.key,
        headers=(*record.headers, *why.items()),
        timestamp_ms=record.timestamp_ms if record.timestamp_ms >= 0 else None,
    )
