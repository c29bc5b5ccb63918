"""The topics: their names, how they are created, and checks of existing ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource
from kafka.errors import KafkaError, TopicAlreadyExistsError

from consumers.kafka.connection import NO_TOPIC, broker_errors, connect
from stream.errors import CounterflowError

EVENTS = ("impression", "click", "rating", "user", "item")  # topics that a trainer reads
BY_USER = ("impression", "click", "rating", "user")  # keyed by user_id; equal partition counts
COMPACTED = ("user", "item")
DEAD_LETTERS = "dlq"
DLQ_MESSAGE_BYTES = 4 * 1024 * 1024  # a record of the default maximum, 1 MiB, and our headers fit


@dataclass(frozen=True, slots=True)
class TopicProblem:
    """Something about a topic that prevents correct operation, with the remedy."""

    topic: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.problem}"


def name(prefix: str, kind: str) -> str:
    """Return the topic's name: `{prefix}.{kind}.v1`."""
    return f"{prefix}.{kind}.v1"


def names(prefix: str) -> dict[str, str]:
    """Return the topics that a trainer reads: name -> kind."""
    return {name(prefix, kind): kind for kind in EVENTS}


def settings_of(kind: str) -> dict[str, str]:
    """Return the configuration with which a topic of this kind is created.

    Events are timestamped by the broker, so that freshness is measured on one clock; a dead letter
    keeps the timestamp of its record.
    """
    if kind == DEAD_LETTERS:
        return {
            "message.timestamp.type": "CreateTime",
            "max.message.bytes": str(DLQ_MESSAGE_BYTES),
        }
    settings = {"message.timestamp.type": "LogAppendTime"}
    if kind in COMPACTED:
        settings["cleanup.policy"] = "compact"
    return settings


def create(
    bootstrap_servers: str,
    prefix: str = "counterflow",
    *,
    partitions: int = 4,
    replication: int = 1,
    client: Mapping[str, Any] | None = None,
) -> list[str]:
    """Create the missing topics and return their names; existing topics are not changed.

    With a replication factor of three or more, `min.insync.replicas` is 2.
    """
    made = []
    with Admin(bootstrap_servers, client) as admin, broker_errors("creating topics"):
        for kind in (*EVENTS, DEAD_LETTERS):
            settings = settings_of(kind)
            if replication >= 3:
                settings["min.insync.replicas"] = "2"
            wanted = {
                "num_partitions": partitions,
                "replication_factor": replication,
                "configs": settings,
            }
            topic = name(prefix, kind)
            try:
                admin.create_topics({topic: wanted}, wait_for_metadata=True)
            except TopicAlreadyExistsError:
                continue
            made.append(topic)
    return made


def check(
    bootstrap_servers: str,
    prefix: str = "counterflow",
    *,
    client: Mapping[str, Any] | None = None,
) -> list[TopicProblem]:
    """Return the problems: missing topics, unequal partition counts, wrong configuration.

    A broker that does not report a topic's configuration is not treated as a problem.
    """
    with Admin(bootstrap_servers, client) as admin, broker_errors("checking topics"):
        present = set(admin.list_topics())
        kinds = {name(prefix, kind): kind for kind in (*EVENTS, DEAD_LETTERS)}
        found = [topic for topic in kinds if topic in present]
        described = {entry["name"]: entry for entry in admin.describe_topics(found or None)}
        cut = {topic: len(described[topic]["partitions"]) for topic in found}
        problems = [
            TopicProblem(topic, "does not exist", NO_TOPIC) for topic in kinds if topic not in cut
        ]
        problems += _unequal({topic: cut[topic] for topic in found if kinds[topic] in BY_USER})
        for topic, settings in _settings(admin, found).items():
            problems += _wrong(topic, kinds[topic], settings)
        return problems


def _unequal(cut: Mapping[str, int]) -> list[TopicProblem]:
    if len(set(cut.values())) <= 1:
        return []
    most = max(cut.values())
    return [
        TopicProblem(
            topic,
            f"has {count} partitions, but another topic keyed by user_id has {most}",
            "topics keyed by user_id must have the same number of partitions; create this one again"
            f" with {most} and copy its events",
        )
        for topic, count in cut.items()
        if count != most
    ]


def _wrong(topic: str, kind: str, settings: Mapping[str, str]) -> list[TopicProblem]:
    problems = []
    for key in ("message.timestamp.type", "cleanup.policy"):
        wanted = settings_of(kind).get(key)
        if wanted is not None and key in settings and wanted not in settings[key].split(","):
            problems.append(
                TopicProblem(
                    topic,
                    f"has {key}={settings[key]}, not {wanted}",
                    f"kafka-configs --alter --entity-type topics --entity-name {topic} "
                    f"--add-config {key}={wanted}",
                )
            )
    return problems


def _settings(admin: Any, topics: list[str]) -> dict[str, dict[str, str]]:
    if not topics:
        return {}
    try:
        told = admin.describe_configs(
            [ConfigResource("TOPIC", topic) for topic in topics], config_filter="all"
        )
    except (KafkaError, KeyError, ValueError):
        return {}  # some brokers (Tansu) do not answer; then there is nothing to check
    return {
        topic: {key: entry["value"] for key, entry in entries.items() if entry["value"] is not None}
        for topic, entries in told.get("topic", {}).items()
    }


class Admin:
    """Context manager of a connected admin client."""

    def __init__(self, bootstrap_servers: str, client: Mapping[str, Any] | None = None) -> None:
        self._client = connect(
            KafkaAdminClient,
            bootstrap_servers,
            {"request_timeout_ms": 10_000, "bootstrap_timeout_ms": 10_000, **(client or {})},
        )

    def __enter__(self) -> Any:
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()


def require(problems: list[TopicProblem]) -> None:
    """Raise the first problem, if there is one."""
    if problems:
        raise CounterflowError(str(problems[0]), problems[0].remedy)
