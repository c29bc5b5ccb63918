"""Errors, grouped by what the main loop does next.

CounterflowError
├── BadEvent        write the record to the dead-letter topic with the reason, and go on
├── Unavailable     hold the partitions, wait retry_after_s, and retry; nothing is lost
└── Inconsistent    stop; the remedy tells the operator what to do
    └── Unservable  find the record that causes it, write it to the dead-letter topic, and go on
"""

from collections.abc import Iterator
from contextlib import contextmanager


class CounterflowError(Exception):
    """A failure: `message` names what is wrong, `remedy` says what to do about it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class BadEvent(CounterflowError):
    """A record is not a valid event; `reason` is one of `stream.reference_parser.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Unavailable(CounterflowError):
    """A dependency is temporarily unavailable; the caller keeps its position and retries."""

    def __init__(self, message: str, retry_after_s: float = 0.5, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.retry_after_s = retry_after_s


class Inconsistent(CounterflowError):
    """The state and the stream do not fit together; continuing would corrupt one of them."""


class Unservable(Inconsistent):
    """What was learned cannot be converted into rows to serve."""


@contextmanager
def servable(what: str) -> Iterator[None]:
    """Convert exceptions raised inside, other than those of stores or memory, to Unservable."""
    try:
        yield
    except (CounterflowError, MemoryError, OSError):
        raise
    except Exception as error:
        raise Unservable(
            f"{what} cannot be written: {type(error).__name__}: {error}",
            "report this error with the log; earlier snapshots are untouched",
        ) from error
