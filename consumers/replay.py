"""Sending a data set to Kafka in time order, with a progress bar on stderr."""

import sys
import time
from collections.abc import Callable, Sequence

from consumers import clients, datasets, topics
from consumers.datasets import DatasetEvent
from consumers.kafka import Outgoing, Sink
from consumers.kafka.connection import describe, lasting
from consumers.settings import Settings
from stream.errors import Unavailable

STEADY = 2_000  # the last events are sent at a steady rate; those before form a backlog
STEADY_PER_S = 1_000


class Progress:
    """A progress bar on stderr: redrawn in place on a terminal, else a line every tenth."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what, self._shown, self._at = total, what, -1, 0

    def advance(self) -> None:
        """Count one more as done and redraw the bar if it changed."""
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
    """Send all events and wait for their acknowledgement.

    Parameters
    ----------
    name : str
        The data set.
    before_last : callable
        Called before the last 2,000 events, which are sent at 1,000 a second.

    Returns
    -------
    int
        The number of clicks and ratings sent.

    Raises
    ------
    Unavailable
        If the broker did not acknowledge every event.
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
    """Send events, `per_s` a second if given; raise Unavailable if one is unacknowledged."""
    refused: list[Exception] = []
    start = time.monotonic()
    for n, event in enumerate(events):
        if per_s and (early_s := start + n / per_s - time.monotonic()) > 0:
            time.sleep(early_s)
        sent = sink.send(Outgoing(topics.name(prefix, event.kind), event.value, event.key))
        sent.add_errback(refused.append)
        progress.advance()
    sink.flush()
    if refused:
        remedy = lasting(refused[0]) or "is the broker up? Replay again: duplicates are ignored"
        raise Unavailable(
            f"{len(refused)} of {len(events)} events were not acknowledged: {describe(refused[0])}",
            remedy=remedy,
        )
