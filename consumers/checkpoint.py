"""Progress that is not yet safe, and how it becomes safe.

    1. effects   vectors and dead letters are written before a step returns
    2. state     the engine and the next offsets in one snapshot: draft, fsync, rename
    3. offsets   Kafka's own commits, for lag tools only; nothing is ever read back from them

A crash between any two repeats work and loses none.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from consumers.metrics import TrainerMetrics
from model_store.snapshots import Snapshots
from stream.errors import Unavailable

log = logging.getLogger("counterflow.checkpoint")

Positions = dict[tuple[str, int], int]


class Checkpoint:
    """Saves in a thread of its own, one at a time; the caller's copy of the state is its input."""

    def __init__(
        self,
        snapshots: Snapshots,
        commit: Callable[[Positions], None],
        metrics: TrainerMetrics,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._snapshots = snapshots
        self._commit = commit
        self._metrics = metrics
        self._clock = clock
        self._monotonic = monotonic
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._saving: tuple[Future[Path], Positions] | None = None

    @property
    def busy(self) -> bool:
        """Return whether a snapshot is being written."""
        return self._saving is not None and not self._saving[0].done()

    def begin(
        self, state: dict[str, NDArray[Any]], meta: dict[str, Any], positions: Positions
    ) -> None:
        """The state is on its way to disk after the call; it must not change any more."""
        self.finish()
        self._saving = (self._thread.submit(self._save, state, meta), positions)

    def finish(self) -> Path | None:
        """The begun snapshot is safe and its offsets are committed after the call.

        None if none was begun. Raises Unavailable where the disk did not take it.
        """
        if self._saving is None:
            return None
        (future, positions), self._saving = self._saving, None
        path = future.result()
        try:
            self._commit(positions)
        except Unavailable as error:  # only lag tools read them; the next commit tells them more
            log.warning("offsets are not told to Kafka: %s", error)
        return path

    def close(self) -> None:
        """The thread has ended after the call."""
        self._thread.shutdown()

    def _save(self, state: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Path:
        start = self._monotonic()
        path = self._snapshots.save(state, meta)
        self._metrics.snapshot_duration_seconds.observe(self._monotonic() - start)
        self._metrics.snapshot_last_success_timestamp_seconds.set(self._clock())
        self._metrics.snapshot_bytes.set(sum(f.stat().st_size for f in path.iterdir()))
        return path


def pack_positions(positions: Positions) -> list[list[Any]]:
    """Return the offsets as they stand in a manifest."""
    return [[topic, partition, offset] for (topic, partition), offset in sorted(positions.items())]


def unpack_positions(packed: Iterable[Sequence[Any]]) -> Positions:
    """Return the offsets that a manifest holds."""
    return {(str(topic), int(partition)): int(offset) for topic, partition, offset in packed}
