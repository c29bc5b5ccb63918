"""A thread that writes behind the trainer: with a backlog, one poll's rows go out during the next.

What is learned, in which order, and what a snapshot holds does not change by it.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from stream.errors import Unavailable

Write = Callable[[], object]
Moment = tuple[float, float]  # the wall clock, for stamps, and the monotonic one; seconds
Done = Callable[[Moment], None]


class Behind:
    """Writes the change of one poll while its caller learns the next; one write at a time.

    `hold` runs a write that its store refused until it is taken, as the caller would.
    """

    def __init__(self, hold: Callable[[Write], object], clock: Callable[[], Moment]) -> None:
        self._hold = hold
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._going: tuple[Future[Moment], Write, Done] | None = None

    def now(self, write: Write, done: Done) -> None:
        """The write stands after the call, and `done` knows since when."""
        self.finish()
        self._hold(write)
        done(self._clock())

    def begin(self, write: Write, done: Done) -> None:
        """The write is on its way after the call, behind all those before."""
        self.finish()
        self._going = self._thread.submit(self._timed, write), write, done

    def finish(self) -> None:
        """Everything begun stands after the call."""
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
        """The thread has ended after the call."""
        self._thread.shutdown()

    def _timed(self, write: Write) -> Moment:
        write()
        return self._clock()
