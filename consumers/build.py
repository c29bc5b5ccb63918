"""Construct every component from the settings; no other module constructs them."""

import logging
import secrets
import time
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import redis
from prometheus_client import CollectorRegistry

from consumers import clients, probes, topics
from consumers.health import Health
from consumers.kafka import DeadLetters, Ends, KafkaSource, Sink
from consumers.metrics import TrainerMetrics
from consumers.model_config import model_config
from consumers.settings import Settings
from consumers.trainer import Trainer
from model_store.seen import SeenItems
from model_store.snapshots import Snapshots
from model_store.vectors import RedisVectors, connect
from stream.engine import Engine, JoinConfig
from stream.hashing import KEY_BYTES

log = logging.getLogger("counterflow")


def engine(settings: Settings) -> Engine:
    """Return an engine that has not learned anything yet."""
    return Engine(
        model_config(settings),
        seed=settings.trainer.seed,
        batch_max=settings.trainer.batch_max,
        window=settings.trainer.duplicates_window,
        join=JoinConfig(**msgspec.structs.asdict(settings.join)),
        hash_key=secrets.token_bytes(KEY_BYTES),
    )


def redis_client(settings: Settings) -> redis.Redis:
    """Return a Redis client for the vector cache; it connects on first use."""
    return connect(settings.redis.url)


def vectors(settings: Settings) -> RedisVectors:
    """Return the writer that stores rows in the vector cache."""
    r, t = settings.redis, settings.trainer
    return RedisVectors(redis_client(settings), r.prefix, r.ttl_s, rank=t.rank, world=t.world)


def seen(settings: Settings) -> SeenItems:
    """Return the writer of the lists of items that each user has clicked or rated."""
    r = settings.redis
    return SeenItems(redis_client(settings), r.prefix, r.ttl_s, settings.service.seen_max)


def source(settings: Settings) -> KafkaSource:
    """Return a Kafka source for this rank's share of the partitions; it is not started."""
    k = settings.kafka
    return KafkaSource(
        bootstrap_servers=k.bootstrap_servers,
        topics=topics.names(k.topic_prefix),
        group_id=k.group_id,
        client={**clients.options(k), "fetch_max_bytes": k.fetch_max_bytes},
        isolation_level=k.isolation_level,
        rank=settings.trainer.rank,
        world=settings.trainer.world,
        fetch_wait_ms=k.fetch_max_wait_ms,
    )


def health() -> Health:
    """Return the health state that the trainer's HTTP port reports; the trainer has not started."""
    return Health(time.time, time.monotonic)


def asked(
    settings: Settings, of: KafkaSource, told: Health, metrics: TrainerMetrics
) -> probes.Probes:
    """Return the probes: one thread per store, each with its own connection.

    Parameters
    ----------
    of : KafkaSource
        The source whose partitions' ends the Kafka probe asks for.
    told : Health
        Receives the answers of all probes.
    """
    k = settings.kafka
    ends = Ends(k.bootstrap_servers, clients.options(k), k.isolation_level)
    return probes.Probes(
        told,
        metrics,
        {
            "kafka": probes.kafka(ends, of, told),
            "redis": probes.cache(connect(settings.redis.url, probes.CACHE_S)),
            "snapshots": probes.disk(Path(settings.snapshots.dir)),
        },
        ends.close,
    )


def trainer(
    settings: Settings, registry: CollectorRegistry, stop: Event, told: Health | None = None
) -> Trainer:
    """Return a trainer that is not started.

    Parameters
    ----------
    registry : CollectorRegistry
        Receives the trainer's metrics.
    stop : Event
        Ends the trainer's loop when set.
    told : Health, optional
        The health state that the trainer updates; a new one if omitted.

    Raises
    ------
    Inconsistent
        If a topic is missing or misconfigured.
    """
    k = settings.kafka
    client = clients.options(k)
    topics.require(topics.check(k.bootstrap_servers, k.topic_prefix, client=client))
    sink = Sink(bootstrap_servers=k.bootstrap_servers, client=client)
    told = told or health()
    metrics = TrainerMetrics(registry)
    of = source(settings)
    return Trainer(
        engine(settings),
        of,
        vectors(settings),
        Snapshots(settings.snapshots.dir, keep=settings.snapshots.keep),
        sink,
        DeadLetters(sink, topics.name(k.topic_prefix, topics.DEAD_LETTERS), time.time),
        metrics,
        clock=time.time,
        monotonic=time.monotonic,
        health=told,
        probes=asked(settings, of, told, metrics),
        interval_s=settings.snapshots.interval_s,
        ttl_s=settings.redis.ttl_s,
        stop=stop,
        seen=seen(settings) if settings.service.exclude_seen else None,
        model=model(settings),
        replay=settings.model.replay,
    )


def model(settings: Settings) -> dict[str, Any]:
    """Return what `/v1/model` publishes about the settings: the default outcome."""
    return {"outcome": settings.service.outcome}
