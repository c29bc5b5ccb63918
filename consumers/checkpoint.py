"""How a step's results become durable.

    1. effects   vectors and dead letters are written before a step returns
    2. state     the engine and the next offsets, in one snapshot: draft, fsync, rename
    3. offsets   Kafka's own commits, for lag tools only; the trainer never reads them

A crash between any two of them repeats work and loses nothing.
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
    """Saves snapshots in a thread of its own, one at a time.

    Parameters
    ----------
    commit : callable
        Commits the offsets of a saved snapshot to Kafka.
    clock, monotonic : callable
        Wall clock and monotonic clock, in seconds.
    """

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
        """Whether a snapshot is being written."""
        return self._saving is not None and not self._saving[0].done()

    def begin(
        self, state: dict[str, NDArray[Any]], meta: dict[str, Any], positions: Positions
    ) -> None:
        """Start writing the state to disk; the caller must not change the arrays any more."""
        self.finish()
        self._saving = (self._thread.submit(self._save, state, meta), positions)

    def finish(self) -> Path | None:
        """Wait for the started snapshot, commit its offsets and return its path.

        Returns None if none was started. Raises Unavailable if the disk did not accept it.
        """
        if self._saving is None:
            return None
        (future, positions), self._saving = self._saving, None
        path = future.result()
        try:
            self._commit(positions)
        except Unavailable as error:  # only lag tools read them, and the next commit is newer
            log.warning("committing offsets to Kafka failed: %s", error)
        return path

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _save(self, state: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Path:
        start = self._monotonic()
        path = self._snapshots.save(state, meta)
        self._metrics.snapshot_duration_seconds.observe(self._monotonic() - start)
        self._metrics.snapshot_last_success_timestamp_seconds.set(self._clock())
        self._metrics.snapshot_bytes.set(sum(f.stat().st_size for f in path.iterdir()))
        return path


def pack_positions(positions: Positions) -> list[list[Any]]:
    """Return the offsets in the manifest's form: (topic, partition, offset) sorted."""
    return [[topic, partition, offset] for (topic, partition), offset in sorted(positions.items())]


def unpack_positions(packed: Iterable[Sequence[Any]]) -> Positions:
    """Return the offsets of a manifest."""
    return {(str(topic), int(partition)): int(offset) for topic, partition, offset in packed}
