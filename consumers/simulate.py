"""The events of a simulated world, sent to Kafka or written to a file or stdout."""

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

PART = 10_000  # events sent between two waits for acknowledgement


def send(events: Iterable[Wire], count: int, name: str, settings: Settings) -> None:
    """Send all events to Kafka; raise Unacknowledged if one is not acknowledged."""
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
    """Write the events' values to the file, or to stdout, one JSON object a line."""
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
            f"cannot write {path}: {error.strerror}", "choose another --out"
        ) from error
