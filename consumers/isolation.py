"""One record that raises when it is learned, found by halving its poll; all others are learned.

A step that raised may have changed half of the engine. So the trainer goes back to its newest
snapshot and learns again up to the poll that raised; that one it learns with care: from a copy of
the state, in halves, until what raises stands alone.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from stream.errors import CounterflowError, Inconsistent, Unservable
from stream.pieces import Piece, Place
from stream.records import RecordBatch

State = TypeVar("State")
Range = tuple[int, int]  # offsets, the second left out
BURIED_MIN = 64  # a producer that sends only such records is heard before
BURIED_SHARE = 8
ROW_MAX = 100  # of one kind, none learned between: more than one producer's few odd records


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
    """How many records were learned apart, and how many are to be buried for what they raised.

    They are counted by kind: records of one kind do not raise for what is wrong with another. Where
    nearly all of a kind raise, or many in a row, the fault is not theirs: none is given up for it.
    """

    def __init__(self) -> None:
        self._learned: Counter[str] = Counter()
        self._buried: Counter[str] = Counter()
        self._row: Counter[str] = Counter()  # raised since one of that kind was learned

    def learned(self, counts: Mapping[str, int]) -> None:
        """So many of each kind were learned after all."""
        for kind, count in counts.items():
            if count:
                self._learned[kind] += count
                self._row[kind] = 0

    def bury(self, kind: str, error: Exception) -> None:
        """One more is to blame; Inconsistent where that can no longer be."""
        self._buried[kind] += 1
        self._row[kind] += 1
        buried, learned, row = self._buried[kind], self._learned[kind], self._row[kind]
        if row >= ROW_MAX or (buried >= BURIED_MIN and buried > BURIED_SHARE * learned):
            raise Inconsistent(
                f"{buried} {kind} records raised and {learned} beside them did not, the last {row}"
                f" in a row, at the end for {type(error).__name__}: {error}",
                "look at the [model] settings, and report it with the log; nothing behind the"
                " newest snapshot is given up: a start without the fault learns it from there",
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
    going: Callable[[], bool],
) -> list[Piece]:
    """Every record is learned after the call, but those that raise alone: they are buried.

    `learn` gets records, and those that are still to come; what it leaves where it raises is
    undone by `load` of what `save` returned before. Once `going` says no, those that are neither
    learned nor buried are returned, in their order: all before them are.
    """
    waiting = [records]
    held = save()
    while waiting and going():
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
    return [record for part in reversed(waiting) for record in part]
