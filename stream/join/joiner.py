"""The joiner: what is open, remembered and waiting, and the figures."""

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
    """Exposures and outcomes of a stream in event time, bounded.

    `window_ms` is how long an exposure waits for its outcome, `idle_ms` how far a partition's last
    Kafka time may lie behind the latest before the watermark goes on without it, `ahead_ms` how far
    a record may be ahead of its own Kafka time. At most `open_max`
    exposures are open, `closed_max` remembered and `pending_max` outcomes waiting: at most 136, 116
    and 56 bytes each with their indexes, committed as they are used.
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
            raise ValueError("a time below 0 ms, or room for less than one")
        self.window_ms, self.idle_ms, self.ahead_ms = window_ms, idle_ms, ahead_ms
        self.open_max, self.pending_max, self.closed_max = open_max, pending_max, closed_max
        self._memory = self._allot()

    def _allot(self) -> Any:
        memory = allot(self.open_max, self.pending_max, self.closed_max)
        memory.counts[[WINDOW, IDLE, AHEAD]] = self.window_ms, self.idle_ms, self.ahead_ms
        return memory

    def join(self, arrivals: Arrivals, pending: Sequence[int] = ()) -> Joined:
        """The records are joined, and the windows behind the watermark closed.

        `pending` are partitions of which more is known to come: however far behind, they are not
        idle, and hold the watermark at their own time.

        An empty poll compiles or loads the code. Give the predictions to `note` before the next
        call. Raises ValueError when columns differ in length or a partition is below 0.
        """
        a = ArrivalRows(
            *(
                np.require(getattr(arrivals, name), dtype, ["C", "W"])
                for name, dtype in ARRIVALS.items()
            )
        )
        a = a._replace(ts_ms=a.ts_ms.copy())  # the compiled code bounds it
        size = len(a.kind)
        if any(column.shape != (size,) for column in a):
            raise ValueError("the columns of arrivals differ in length")
        if size:
            self._expect(int(a.partition.min()), int(a.partition.max()))
        if len(pending):
            self._expect(min(pending), max(pending))
        until = self._memory.until
        until[:] = 0
        moves = np.flatnonzero(np.isin(a.kind, MOVING))
        until[a.partition[moves]] = moves  # of one that comes again, the last
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
                    kernel.forget_gone(self._memory)
                return self._end(joined, closed)
            joined, closed = doubled(joined), doubled(closed)

    def close_all(self) -> Joined:
        """Every window is closed, the oldest first; the watermark stays where it is."""
        self._begin()
        joined, closed = columns(self.open_exposures, JOINED), columns(self.open_exposures, CLOSED)
        kernel.close_all(self._memory, JoinedRows(*joined), ClosedRows(*closed))
        return self._end(joined, closed)

    def note(
        self, joined: Joined, treated: NDArray[np.float32], control: NDArray[np.float32]
    ) -> None:
        """The open exposures of the last call hold what was predicted for them.

        `treated` and `control` (J,) are read where the role is PREDICT.
        """
        if not len(joined) == len(treated) == len(control):
            raise ValueError("predictions differ in length from the interactions")
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
        """Return the event time up to which the stream has come, None before the first record."""
        mark = self._count(WATERMARK)
        return None if mark == NEVER else mark

    @property
    def late_outcomes(self) -> int:
        """Return how many outcomes came after their window had closed."""
        return self._count(LATE)

    @property
    def corrections(self) -> int:
        """Return how many late clicks took back a 0."""
        return self._count(CORRECTED)

    @property
    def contradicted(self) -> int:
        """Return how many exposures have the other arm than the first decision they belong to."""
        return self._count(CONTRADICTED)

    @property
    def evicted(self) -> int:
        """Return how many windows closed early for lack of room."""
        return self._count(EVICTED)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again; slots are not part of it."""
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
        """The joiner is the saved one after the call, within its own bounds and window.

        Smaller bounds keep the newest remembered and waiting ones. Raises Inconsistent when more
        windows are open than it has room for.
        """
        opened = len(state["open.ts_ms"])
        if opened > self.open_max:
            raise Inconsistent(
                f"{opened} open exposures were saved, and there is room for {self.open_max}",
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
        # before first decisions were told apart each was its own, and another figure was counted
        first_ms = state.get("closed.first_ms", state["closed.ts_ms"])
        m.first_ms[:remembered] = first_ms[len(first_ms) - remembered :]
        m.click_ms[remembered:][:opened] = state.get("open.click_ms", NEVER)
        if "closed.first_ms" not in state:
            m.counts[CONTRADICTED] = 0
        waiting = _fill(m.waiting, state, "waiting", _OUTCOME)
        kernel.restore(m, remembered, opened, waiting)

    def _removals(self, a: Any) -> bool:
        """Make room for the eras of what the call removes; return whether there is any."""
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
        """Make room for the partitions' times."""
        if lowest < 0:
            raise ValueError(f"partition {lowest}")
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
        kernel.settle(self._memory, out.slot)
        return out


def _columns(part: str, rows: NDArray[Any], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    return {f"{part}.{name}": rows[name].copy() for name in names}


def _fill(
    rows: NDArray[Any], state: Mapping[str, NDArray[Any]], part: str, names: Sequence[str]
) -> int:
    """The rows begin with the newest of the saved ones, as many as there is room for."""
    size = 0
    for name in names:
        newest = state[f"{part}.{name}"][-len(rows) :] if len(rows) else ()
        size = len(newest)
        rows[name][:size] = newest
    return size
