"""A writer thread: with a backlog, one poll's rows are written while the next poll is learned.

It changes neither what is learned, nor the order, nor what a snapshot holds.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from stream.errors import Unavailable

Write = Callable[[], object]
Moment = tuple[float, float]  # (wall clock, monotonic clock) in seconds
Done = Callable[[Moment], None]


class AsynchronousWriter:
    """Writes one poll's changes in a thread of its own; one write at a time.

    Parameters
    ----------
    hold : callable
        Runs a write and retries it until its store accepts it.
    clock : callable
        Returns the wall clock and the monotonic clock, in seconds.
    """

    def __init__(self, hold: Callable[[Write], object], clock: Callable[[], Moment]) -> None:
        self._hold = hold
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._going: tuple[Future[Moment], Write, Done] | None = None

    def now(self, write: Write, done: Done) -> None:
        """Write in the calling thread, then call `done` with the time of completion."""
        self.finish()
        self._hold(write)
        done(self._clock())

    def begin(self, write: Write, done: Done) -> None:
        """Start the write in the thread, after all previous ones."""
        self.finish()
        self._going = self._thread.submit(self._timed, write), write, done

    def finish(self) -> None:
        """Wait until every write that was begun is complete."""
        if self._going is None:
            return
        (going, write, done), self._going = self._going, None
        try:
            at = going.result()
        except Unavailable:
            self._hold(write)
            at = self._clock()
        done(at)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _timed(self, write: Write) -> Moment:
        write()
        return self._clock()
