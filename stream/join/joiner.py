"""The joiner: open, remembered and waiting entries, and its counters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.errors import Inconsistent
from stream.join import kernel
from stream.join.columns import (
    ARRIVALS,
    CLOSED,
    JOINED,
    REMOVES_ITEM,
    REMOVES_USER,
    ArrivalRows,
    Arrivals,
    Closed,
    ClosedRows,
    Joined,
    JoinedRows,
    columns,
    doubled,
)
from stream.join.memory import (
    AHEAD,
    CLOSED_ROWS,
    CONTRADICTED,
    CORRECTED,
    EVICTED,
    FIRST,
    HELD,
    IDLE,
    LATE,
    LATEST,
    NEVER,
    REMEMBERED,
    ROWS,
    WAITED,
    WATERMARK,
    WINDOW,
    allot,
)
from stream.schemas import ATTRIBUTE_KINDS, KINDS

MOVING = [number for number, kind in enumerate(KINDS) if kind not in ATTRIBUTE_KINDS]
_OUTCOME = ("slate", "ts_ms", "user", "item", "value", "marks")
_REMEMBERED = (
    "slate", "ts_ms", "user", "item", "position", "propensity", "show_probability", "rating",
    "marks",
)  # fmt: skip
_OPEN = (*_REMEMBERED, "treated", "control")
_KEPT = (WATERMARK, LATEST, LATE, CORRECTED, CONTRADICTED, EVICTED)


class Joiner:
    """Joins exposures and outcomes in event time, in bounded memory.

    Parameters
    ----------
    window_ms
        How long an exposure waits for an outcome.
    idle_ms
        How far a partition's last Kafka timestamp may lie behind the latest one before the
        watermark ignores the partition.
    open_max, pending_max, closed_max
        The most open exposures, waiting outcomes and remembered closed exposures. Each takes at
        most 136, 56 and 116 bytes with its indexes; memory is committed as it is used.
    ahead_ms
        How far a record's time may exceed its Kafka timestamp.
    """

    def __init__(
        self,
        window_ms: int,
        idle_ms: int,
        open_max: int = 1_000_000,
        pending_max: int = 100_000,
        closed_max: int = 1_000_000,
        ahead_ms: int = 1_000,
    ) -> None:
        if min(window_ms, idle_ms, ahead_ms) < 0 or min(open_max, pending_max, closed_max) < 1:
            raise ValueError("times must not be negative, and the bounds must be at least 1")
        self.window_ms, self.idle_ms, self.ahead_ms = window_ms, idle_ms, ahead_ms
        self.open_max, self.pending_max, self.closed_max = open_max, pending_max, closed_max
        self._memory = self._allot()

    def _allot(self) -> Any:
        memory = allot(self.open_max, self.pending_max, self.closed_max)
        memory.counts[[WINDOW, IDLE, AHEAD]] = self.window_ms, self.idle_ms, self.ahead_ms
        return memory

    def join(self, arrivals: Arrivals, pending: Sequence[int] = ()) -> Joined:
        """Join the records, and close the windows behind the watermark.

        Call `note` with the predictions before the next call. An empty call compiles or loads the
        code.

        Parameters
        ----------
        arrivals
            The records of a poll.
        pending
            The partitions that have more records to come. However far behind, they are not idle,
            and they hold back the watermark.

        Raises
        ------
        ValueError
            The columns differ in length, or a partition is negative.
        """
        a = ArrivalRows(
            *(
                np.require(getattr(arrivals, name), dtype, ["C", "W"])
                for name, dtype in ARRIVALS.items()
            )
        )
        a = a._replace(ts_ms=a.ts_ms.copy())  # the compiled code caps it in place
        size = len(a.kind)
        if any(column.shape != (size,) for column in a):
            raise ValueError(f"columns have different lengths: {[len(column) for column in a]}")
        if size:
            self._expect(int(a.partition.min()), int(a.partition.max()))
        if len(pending):
            self._expect(min(pending), max(pending))
        until = self._memory.until
        until[:] = 0
        moves = np.flatnonzero(np.isin(a.kind, MOVING))
        until[a.partition[moves]] = moves  # the last record of each partition
        until[list(pending)] = size
        removes = self._removals(a)
        self._begin()
        joined = columns(size + size // 2 + 64, JOINED)
        closed = columns(size + 64, CLOSED)
        next_, handled = 0, False
        while True:
            next_, handled = kernel.join(
                self._memory, a, JoinedRows(*joined), ClosedRows(*closed), next_, handled
            )
            if next_ == size:
                if removes:
                    kernel.purge_removed(self._memory)
                return self._end(joined, closed)
            joined, closed = doubled(joined), doubled(closed)

    def close_all(self) -> Joined:
        """Close every window, the oldest first; the watermark does not change."""
        self._begin()
        joined, closed = columns(self.open_exposures, JOINED), columns(self.open_exposures, CLOSED)
        kernel.close_all(self._memory, JoinedRows(*joined), ClosedRows(*closed))
        return self._end(joined, closed)

    def note(
        self, joined: Joined, treated: NDArray[np.float32], control: NDArray[np.float32]
    ) -> None:
        """Store the predictions of the last call with its open exposures.

        `treated` and `control` (J,) are read where the role is PREDICT.
        """
        if not len(joined) == len(treated) == len(control):
            raise ValueError(
                f"{len(treated)} and {len(control)} predictions for {len(joined)} interactions"
            )
        kernel.note(
            self._memory,
            joined.slot,
            np.require(treated, np.float32, ["C", "W"]),
            np.require(control, np.float32, ["C", "W"]),
        )

    @property
    def open_exposures(self) -> int:
        """Return how many windows are open."""
        return self._count(HELD)

    @property
    def watermark_ms(self) -> int | None:
        """Return the watermark (event time in ms), None before the first record."""
        mark = self._count(WATERMARK)
        return None if mark == NEVER else mark

    @property
    def late_outcomes(self) -> int:
        """Return how many outcomes came after their window had closed."""
        return self._count(LATE)

    @property
    def corrections(self) -> int:
        """Return how many late clicks corrected an exposure that was learned as 0."""
        return self._count(CORRECTED)

    @property
    def contradicted(self) -> int:
        """Return how many exposures had another arm than the first decision they belong to."""
        return self._count(CONTRADICTED)

    @property
    def evicted(self) -> int:
        """Return how many windows closed early because too many were open."""
        return self._count(EVICTED)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs; slot numbers are not part of it."""
        m, n = self._memory, self._memory.counts
        heap = m.heap[: n[HELD]]
        order = np.lexsort((heap["arrival"], heap["ts_ms"]))
        ring = m.ring[(n[FIRST] + np.arange(n[REMEMBERED])) % len(m.ring)]
        size = min(int(n[WAITED]), len(m.waiting))
        waiting = m.waiting[(n[WAITED] - size + np.arange(size)) % len(m.waiting)]
        seen = 1 + max(np.flatnonzero(m.last != NEVER), default=-1)
        opened = heap["slot"][order]
        return {
            **_columns("open", m.slots[opened], _OPEN),
            "open.click_ms": m.click_ms[opened],
            **_columns("closed", m.slots[ring], _REMEMBERED),
            "closed.first_ms": m.first_ms[ring],
            **_columns("waiting", waiting, _OUTCOME),
            "partitions.high": m.high[:seen].copy(),
            "partitions.last": m.last[:seen].copy(),
            "counts": n[list(_KEPT)].copy(),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore a saved joiner, within this one's bounds and window.

        Smaller bounds keep the newest remembered exposures and waiting outcomes.

        Raises
        ------
        Inconsistent
            More windows are open than `open_max`.
        """
        opened = len(state["open.ts_ms"])
        if opened > self.open_max:
            raise Inconsistent(
                f"{opened} open exposures were saved, but join.open_max is {self.open_max}",
                "raise join.open_max and start again; nothing was lost",
            )
        self._memory = m = self._allot()
        m.counts[list(_KEPT)] = state["counts"]
        seen = len(state["partitions.last"])
        if seen:
            self._expect(0, seen - 1)
        m = self._memory
        m.high[:], m.last[:] = state["partitions.high"], state["partitions.last"]
        remembered = _fill(m.slots[: self.closed_max], state, "closed", _REMEMBERED)
        _fill(m.slots[remembered:][:opened], state, "open", _OPEN)
        # old states do not distinguish first decisions: each exposure is its own, and the counter
        # in the place of `contradicted` meant something else
        first_ms = state.get("closed.first_ms", state["closed.ts_ms"])
        m.first_ms[:remembered] = first_ms[len(first_ms) - remembered :]
        m.click_ms[remembered:][:opened] = state.get("open.click_ms", NEVER)
        if "closed.first_ms" not in state:
            m.counts[CONTRADICTED] = 0
        waiting = _fill(m.waiting, state, "waiting", _OUTCOME)
        kernel.restore(m, remembered, opened, waiting)

    def _removals(self, a: Any) -> bool:
        """Make room for the eras of this call's removals; return whether there are any."""
        held = self._memory
        users, items = (
            rows[(a.kind == kind) & (rows >= 0)]
            for kind, rows in ((REMOVES_USER, a.user), (REMOVES_ITEM, a.item))
        )
        self._memory = held._replace(
            gone_user=np.zeros(1 + users.max(initial=-1), np.int32),
            gone_item=np.zeros(1 + items.max(initial=-1), np.int32),
        )
        return bool(len(users) or len(items))

    def _count(self, which: int) -> int:
        return int(self._memory.counts[which])

    def _expect(self, lowest: int, highest: int) -> None:
        """Make room for the times of partitions up to `highest`."""
        if lowest < 0:
            raise ValueError(f"partition {lowest} is negative")
        held = self._memory
        if more := max(0, highest + 1 - len(held.high)):
            self._memory = held._replace(
                **{
                    name: np.append(getattr(held, name), np.full(more, NEVER, np.int64))
                    for name in ("high", "last", "until")
                }
            )

    def _begin(self) -> None:
        self._memory.counts[[ROWS, CLOSED_ROWS]] = 0

    def _end(self, joined: list[NDArray[Any]], closed: list[NDArray[Any]]) -> Joined:
        rows, windows = self._count(ROWS), self._count(CLOSED_ROWS)
        told: list[Any] = [column[:rows] for column in joined]
        told.append(Closed(*(column[:windows] for column in closed)))
        out = Joined(*told)
        kernel.clear_prediction_rows(self._memory, out.slot)
        return out


def _columns(part: str, rows: NDArray[Any], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    return {f"{part}.{name}": rows[name].copy() for name in names}


def _fill(
    rows: NDArray[Any], state: Mapping[str, NDArray[Any]], part: str, names: Sequence[str]
) -> int:
    """Fill `rows` with the newest saved rows, as many as fit; return how many."""
    size = 0
    for name in names:
        newest = state[f"{part}.{name}"][-len(rows) :] if len(rows) else ()
        size = len(newest)
        rows[name][:size] = newest
    return size
