"""A world with a known answer as events: to Kafka, to a file, or to stdout."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from consumers import clients, topics
from consumers.kafka import Outgoing, Sink
from consumers.replay import Progress
from consumers.settings import Settings
from stream.errors import Inconsistent
from stream.worlds import Wire

PART = 10_000  # events sent before their acknowledgements are waited for


def send(events: Iterable[Wire], count: int, name: str, settings: Settings) -> None:
    """Every event is acknowledged by Kafka after the call; raises Unacknowledged if one is not."""
    k = settings.kafka
    progress = Progress(count, name)
    waiting = iter(events)
    with Sink(bootstrap_servers=k.bootstrap_servers, client=clients.options(k)) as sink:
        while part := list(islice(waiting, PART)):
            sink.produce(
                [Outgoing(topics.name(k.topic_prefix, e.kind), e.value, e.key) for e in part]
            )
            for _ in part:
                progress.advance()


def write(events: Iterable[Wire], path: str | None) -> None:
    """The events' values are in the file, or on stdout, one JSON object a line after the call."""
    with _opened(path) as out:
        for event in events:
            out.write(event.value + b"\n")


@contextmanager
def _opened(path: str | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with Path(path).open("wb") as out:
            yield out
    except OSError as error:
        raise Inconsistent(
            f"{path} is not writable: {error.strerror}", "choose another --out"
        ) from error
