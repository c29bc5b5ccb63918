"""One record that raises when it is learned, found by halving its poll; all others are learned.

A step that raised may have changed half of the engine. So the trainer goes back to its newest
snapshot and learns again up to the poll that raised; that one it learns with care: from a copy of
the state, in halves, until what raises stands alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from stream.errors import CounterflowError, Inconsistent, Unservable
from stream.pieces import Piece, Place
from stream.records import RecordBatch

State = TypeVar("State")
Range = tuple[int, int]  # offsets, the second left out
BURIED_MIN = 64  # a producer that sends only such records is heard before
BURIED_SHARE = 8


def blames_a_record(error: Exception) -> bool:
    """Tell whether the error may come of what a record holds: no store, disk or memory is at it."""
    if isinstance(error, CounterflowError):
        return isinstance(error, Unservable)
    return not isinstance(error, MemoryError | OSError)


class Suspects:
    """The stretches of the stream in which something raised."""

    def __init__(self) -> None:
        self._ranges: dict[Place, Range] = {}

    def widen(self, ranges: Mapping[Place, Range]) -> bool:
        """These are suspect too after the call; returns whether any of it was not before."""
        before = dict(self._ranges)
        for place, (begin, end) in ranges.items():
            if begin < end:
                low, high = self._ranges.get(place, (begin, end))
                self._ranges[place] = min(low, begin), max(high, end)
        return self._ranges != before

    def among(self, batches: Sequence[RecordBatch]) -> bool:
        """Tell whether any of the batches reaches into a suspect stretch."""
        for batch in batches:
            begin, end = self._ranges.get((batch.topic, batch.partition), (0, 0))
            if batch.next_offset > begin and batch.fetch_offset < end:
                return True
        return False


class Blame:
    """How many records were learned apart, and how many were buried for what they raised.

    Where nearly all raise the fault is not theirs: they are not given up for it.
    """

    def __init__(self) -> None:
        self._learned = self._buried = 0

    def learned(self, count: int) -> None:
        """So many were learned after all."""
        self._learned += count

    def bury(self, error: Exception) -> None:
        """One more is to blame; Inconsistent where that can no longer be."""
        self._buried += 1
        if self._buried >= BURIED_MIN and self._buried > BURIED_SHARE * self._learned:
            raise Inconsistent(
                f"{self._buried} records raised and {self._learned} beside them did not, the last"
                f" for {type(error).__name__}: {error}",
                "report it with the log; nothing behind the newest snapshot is given up, and the"
                " records are learned from there by a version that can",
            ) from error


def ranges(batches: Sequence[RecordBatch]) -> dict[Place, Range]:
    """Return which offsets the batches hold."""
    found: dict[Place, Range] = {}
    for batch in batches:
        place = batch.topic, batch.partition
        begin, _ = found.get(place, (batch.fetch_offset, 0))
        found[place] = begin, batch.next_offset
    return found


def halve(
    records: list[Piece],
    learn: Callable[[list[Piece], list[Piece]], None],
    save: Callable[[], State],
    load: Callable[[State], None],
    bury: Callable[[Piece, Exception], None],
) -> None:
    """Every record is learned after the call, but those that raise alone: they are buried.

    `learn` gets records, and those that are still to come; what it leaves where it raises is
    undone by `load` of what `save` returned before.
    """
    waiting = [records]
    held = save()
    while waiting:
        some = waiting.pop()
        rest = [record for part in waiting for record in part]
        try:
            learn(some, rest)
        except Exception as error:
            if not blames_a_record(error):
                raise
            load(held)
            if len(some) == 1:
                bury(some[0], error)
            else:
                middle = len(some) // 2
                waiting += [some[middle:], some[:middle]]
        else:
            if waiting:
                held = save()
