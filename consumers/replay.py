"""A data set sent through Kafka in time order, with a progress bar on stderr."""

import sys
import time
from collections.abc import Callable, Sequence

from consumers import clients, datasets, topics
from consumers.datasets import DatasetEvent
from consumers.kafka import Outgoing, Sink
from consumers.kafka.connection import describe, lasting
from consumers.settings import Settings
from stream.errors import Unavailable

STEADY = 2_000  # the last events, sent at STEADY_PER_S: what comes before is backlog
STEADY_PER_S = 1_000


class Progress:
    """A bar on stderr: redrawn in place on a terminal, one line a tenth elsewhere."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what, self._shown, self._at = total, what, -1, 0

    def advance(self) -> None:
        """One more is done after the call."""
        self._at += 1
        steps = 100 if sys.stderr.isatty() else 10
        share = self._at * steps // self._total
        if share == self._shown:
            return
        self._shown = share
        percent = share * 100 // steps
        bar = "#" * (percent // 4)
        end = "" if sys.stderr.isatty() and percent < 100 else "\n"
        start = "\r" if sys.stderr.isatty() else ""
        print(
            f"{start}{self._what} [{bar:<25}] {percent:3d} %", file=sys.stderr, end=end, flush=True
        )


def replay(name: str, settings: Settings, before_last: Callable[[], None] = lambda: None) -> int:
    """Every event is acknowledged after the call; returns how many clicks and ratings were sent.

    Raises Unavailable when the broker did not take one. `before_last` is called before the last
    2,000, which go out at 1,000 a second.
    """
    dataset = datasets.load(name)
    events = list(dataset.events())
    k = settings.kafka
    sink = Sink(bootstrap_servers=k.bootstrap_servers, client=clients.options(k))
    progress = Progress(len(events), name)
    try:
        _send(sink, k.topic_prefix, events[:-STEADY], progress, None)
        before_last()
        _send(sink, k.topic_prefix, events[-STEADY:], progress, STEADY_PER_S)
    finally:
        sink.close()
    return dataset.outcomes


def _send(
    sink: Sink,
    prefix: str,
    events: Sequence[DatasetEvent],
    progress: Progress,
    per_s: int | None,
) -> None:
    """The events are acknowledged after the call, or Unavailable says why one is not."""
    refused: list[Exception] = []
    start = time.monotonic()
    for n, event in enumerate(events):
        if per_s and (early_s := start + n / per_s - time.monotonic()) > 0:
            time.sleep(early_s)  # the pace itself
        sent = sink.send(Outgoing(topics.name(prefix, event.kind), event.value, event.key))
        sent.add_errback(refused.append)
        progress.advance()
    sink.flush()
    if refused:
        remedy = lasting(refused[0]) or "is the broker up? Replay again: repeated events count once"
        raise Unavailable(
            f"{len(refused)} of {len(events)} events were not acknowledged: {describe(refused[0])}",
            remedy=remedy,
        )
