"""Errors, sorted by what the loop does next.

CounterflowError
├── BadEvent        dead letter with the reason, go on
├── Unavailable     hold the partitions, wait retry_after_s, try again; nothing is lost
└── Inconsistent    stop; the remedy says what the operator does
    └── Unservable  find the record that is behind it, bury it, go on
"""

from collections.abc import Iterator
from contextlib import contextmanager


class CounterflowError(Exception):
    """A failure with a remedy: the first line names the thing, the second says what to do."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class BadEvent(CounterflowError):
    """One record is not an event; `reason` is of the contract's closed list."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Unavailable(CounterflowError):
    """A collaborator is away for now; the caller holds its place and retries."""

    def __init__(self, message: str, retry_after_s: float = 0.5, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.retry_after_s = retry_after_s


class Inconsistent(CounterflowError):
    """State and stream do not fit together; going on would corrupt one of them."""


class Unservable(Inconsistent):
    """What was learned has no form in which it could be served."""


@contextmanager
def servable(what: str) -> Iterator[None]:
    """Whatever raises inside, no store being at it, is Unservable outside."""
    try:
        yield
    except (CounterflowError, MemoryError, OSError):
        raise
    except Exception as error:
        raise Unservable(
            f"{what} cannot be written: {type(error).__name__}: {error}",
            "report it with the log; the snapshots before are untouched",
        ) from error
