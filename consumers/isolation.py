"""Finding the record that raises when it is learned, by bisection of its poll.

A step that raised may have changed part of the engine. So the trainer restores its newest snapshot
and learns again up to the poll that raised. That poll it learns in halves, each from a saved copy
of the state, until the record that raises is alone. All other records are learned.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from stream.errors import CounterflowError, Inconsistent, Unservable
from stream.pieces import PartitionKey, Piece
from stream.records import RecordBatch

State = TypeVar("State")
Range = tuple[int, int]  # first offset, and the offset behind the last
BURIED_MIN = 64  # below this many dead letters, the share below is not checked
BURIED_SHARE = 8  # most dead letters for each record that was learned
ROW_MAX = 100  # most dead letters of one kind in a row, with none of it learned in between


def blames_a_record(error: Exception) -> bool:
    """Return whether a record's content may have caused the error, not a store, disk or memory."""
    if isinstance(error, CounterflowError):
        return isinstance(error, Unservable)
    return not isinstance(error, MemoryError | OSError)


class Suspects:
    """The offset ranges in which something raised."""

    def __init__(self) -> None:
        self._ranges: dict[PartitionKey, Range] = {}

    def widen(self, ranges: Mapping[PartitionKey, Range]) -> bool:
        """Add these ranges; return whether any of them was not suspect before."""
        before = dict(self._ranges)
        for partition, (begin, end) in ranges.items():
            if begin < end:
                low, high = self._ranges.get(partition, (begin, end))
                self._ranges[partition] = min(low, begin), max(high, end)
        return self._ranges != before

    def among(self, batches: Sequence[RecordBatch]) -> bool:
        """Return whether any of the batches overlaps a suspect range."""
        for batch in batches:
            begin, end = self._ranges.get((batch.topic, batch.partition), (0, 0))
            if batch.next_offset > begin and batch.fetch_offset < end:
                return True
        return False


class Blame:
    """Counts the records that were learned one by one, and those to be sent to dead letters.

    They are counted by kind, because records of one kind do not raise for what is wrong with
    another. If nearly all records of a kind raise, or many of it in a row, the fault is in the
    program or its settings and not in the records, so the search ends with an error.
    """

    def __init__(self) -> None:
        self._learned: Counter[str] = Counter()
        self._buried: Counter[str] = Counter()
        self._row: Counter[str] = Counter()  # raised since one of that kind was learned

    def learned(self, counts: Mapping[str, int]) -> None:
        """Count records that were learned, by kind."""
        for kind, count in counts.items():
            if count:
                self._learned[kind] += count
                self._row[kind] = 0

    def bury(self, kind: str, error: Exception) -> None:
        """Count one more dead letter; raise Inconsistent if too many of its kind raise."""
        self._buried[kind] += 1
        self._row[kind] += 1
        buried, learned, row = self._buried[kind], self._learned[kind], self._row[kind]
        if row >= ROW_MAX or (buried >= BURIED_MIN and buried > BURIED_SHARE * learned):
            raise Inconsistent(
                f"{buried} {kind} records raised while {learned} were learned, the last {row} in a"
                f" row, most recently with {type(error).__name__}: {error}",
                "check the [model] settings, and report it with the log; records behind the newest"
                " snapshot are not skipped: a start without the fault learns them from there",
            ) from error


def ranges(batches: Sequence[RecordBatch]) -> dict[PartitionKey, Range]:
    """Return the offset range of each partition that the batches cover."""
    found: dict[PartitionKey, Range] = {}
    for batch in batches:
        partition = batch.topic, batch.partition
        begin, _ = found.get(partition, (batch.fetch_offset, 0))
        found[partition] = begin, batch.next_offset
    return found


def halve(
    records: list[Piece],
    learn: Callable[[list[Piece], list[Piece]], None],
    save: Callable[[], State],
    load: Callable[[State], None],
    bury: Callable[[Piece, Exception], None],
    going: Callable[[], bool],
) -> list[Piece]:
    """Learn all records; those that raise on their own are passed to `bury`.

    Parameters
    ----------
    records : list of Piece
        The records to learn, in order.
    learn : callable
        Learns its first argument; the second holds the records still to come.
    save, load : callable
        Return and restore the state; `load` undoes a `learn` that raised.
    bury : callable
        Takes a record that raised and its error.
    going : callable
        Whether to continue; it is asked before each step.

    Returns
    -------
    list of Piece
        The records that were neither learned nor buried when `going` returned False, in order;
        every record before them was.
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
