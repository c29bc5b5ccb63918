"""Encoding Redis commands, sending many in one round trip, and mapping client errors to ours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import redis
from redis import exceptions as errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from stream.errors import Inconsistent, Unavailable

T = TypeVar("T")

_AWAY: Final = (
    errors.ConnectionError,
    errors.TimeoutError,
    errors.ReadOnlyError,
    errors.OutOfMemoryError,
    errors.ClusterDownError,
    errors.TryAgainError,
)
_DENIED: Final = (
    errors.AuthenticationError,
    errors.AuthenticationWrongNumberOfArgsError,
    errors.AuthorizationError,
    errors.NoPermissionError,
)
BAD_URL: Final = "the URL of Redis cannot be read"
URL_REMEDY: Final = "write redis://[user:password@]host:port/db, rediss:// (TLS) or unix:///path"
_PASSING: Final = ("LOADING", "BUSY", "MISCONF", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "OOM")


@contextmanager
def mapped() -> Iterator[None]:
    """Map the client's errors to Unavailable (retry) or Inconsistent (with a remedy)."""
    try:
        yield
    except _DENIED as exc:
        raise Inconsistent(
            f"Redis denies access: {exc}",
            "check the user and password in redis.url, and the user's rights",
        ) from exc
    except (*_AWAY, OSError) as exc:
        raise Unavailable(
            f"Redis is unavailable: {exc}", 0.5, "check that Redis runs and redis.url is right"
        ) from exc
    except errors.RedisError as exc:
        if str(exc).startswith(_PASSING):
            raise Unavailable(f"Redis cannot accept the command now: {exc}", 0.5) from exc
        raise Inconsistent(
            f"Redis rejects a command: {exc}",
            "check its version, and whether something else uses keys of this prefix",
        ) from exc


def connect(url: str, timeout_s: float = 5.0) -> redis.Redis:
    """Return a blocking client for `RedisVectors` and `Reader`; it connects on first use.

    It retries once without a pause, for a connection that died while idle. Longer outages are left
    to the caller: the client's default would block a trainer for seconds unnoticed.
    """
    return client(redis.Redis, Retry(NoBackoff(), 1), url, timeout_s)


def client(kind: type[T], retry: Any, url: str, timeout_s: float) -> T:
    """Return a client of this class; raise Inconsistent with the remedy for an invalid URL."""
    try:
        made: T = kind.from_url(  # type: ignore[attr-defined]
            url,
            decode_responses=False,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=retry,
        )
    except ValueError as exc:
        raise Inconsistent(BAD_URL, URL_REMEDY) from exc
    return made


def bulk(value: bytes) -> bytes:
    """Encode one argument, with the line break that separates it from the one before."""
    return b"\r\n$%d\r\n%s" % (len(value), value)


def command(*args: bytes) -> bytes:
    """Encode one command in the Redis protocol."""
    return b"*%d%s\r\n" % (len(args), b"".join([bulk(arg) for arg in args]))


def send(client: Any, commands: Sequence[bytes], scripts: Sequence[str] = ()) -> list[Any]:
    """Send all commands in one round trip and return their replies.

    If Redis has lost a script, all `scripts` are loaded and all commands sent again, so commands
    must be safe to repeat. An error reply is raised after all replies were read.
    """
    replies = _exchange(client, commands)
    if any(isinstance(reply, errors.NoScriptError) for reply in replies):
        with mapped():
            for script in scripts:
                client.script_load(script)
        replies = _exchange(client, commands)
    for reply in replies:
        if isinstance(reply, errors.RedisError):
            with mapped():
                raise reply
    return replies


def _exchange(client: Any, commands: Sequence[bytes]) -> list[Any]:
    """Return the replies, errors as exceptions; the connection is left clean or closed."""
    pool = client.connection_pool
    with mapped():
        connection = pool.get_connection()
        done = False
        try:
            connection.send_packed_command([b"".join(commands)])
            replies = []
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except errors.ResponseError as refusal:
                    replies.append(refusal)
            done = True
        finally:
            if not done:
                connection.disconnect()
            pool.release(connection)
    return replies
