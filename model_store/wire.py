"""Commands as bytes, one round trip for many of them, and the client's errors as ours."""

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
    """Errors of the client leave as Unavailable (try again) or Inconsistent (with the remedy)."""
    try:
        yield
    except _DENIED as exc:
        raise Inconsistent(f"Redis refuses us: {exc}", "check the user and password") from exc
    except (*_AWAY, OSError) as exc:
        raise Unavailable(f"Redis is away: {exc}", 0.5, "check that it runs") from exc
    except errors.RedisError as exc:
        if str(exc).startswith(_PASSING):
            raise Unavailable(f"Redis cannot take it now: {exc}", 0.5) from exc
        raise Inconsistent(
            f"Redis refuses a command: {exc}", "check its version and what else uses the keys"
        ) from exc


def connect(url: str, timeout_s: float = 5.0) -> redis.Redis:
    """A client as `RedisVectors` and `Reader` need it; it connects when it is first used.

    One retry without a pause covers a connection that died while idle; longer absence is the
    caller's to wait for (the default would hold a trainer for seconds unseen).
    """
    return client(redis.Redis, Retry(NoBackoff(), 1), url, timeout_s)


def client(kind: type[T], retry: Any, url: str, timeout_s: float) -> T:
    """A client of that kind for the URL; one that is none raises Inconsistent with the remedy."""
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
    """One argument as it follows another in a command."""
    return b"\r\n$%d\r\n%s" % (len(value), value)


def command(*args: bytes) -> bytes:
    """One command as bytes of the protocol."""
    return b"*%d%s\r\n" % (len(args), b"".join([bulk(arg) for arg in args]))


def send(client: Any, commands: Sequence[bytes], scripts: Sequence[str] = ()) -> list[Any]:
    """The replies to all commands, after one round trip; all again once if a script is gone.

    So only what may be repeated is sent. A refusal is raised after all replies were read.
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
    """The replies, refusals among them as exceptions; the connection is clean or closed."""
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
