"""Connecting to a broker, and mapping client errors to ours, whose type says what to do next."""

import logging
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from kafka import errors
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from stream.errors import CounterflowError, Inconsistent, Unavailable

T = TypeVar("T")

REQUEST_S = 10.0  # a broker that has not answered a request for this long is unavailable

AFRESH = "counterflow train --from-earliest starts a new model and sets the old snapshots aside"
DISAGREES = f"the topic was created again: start from a snapshot of this topic; {AFRESH}"
GONE = (
    "retention has removed records: counterflow train --skip-gap keeps the model and continues at "
    f"the earliest record; {AFRESH}"
)
NO_TOPIC = "counterflow topics create; with ACLs, grant this user describe and read"

# Errors that a retry does not fix, and what the operator can do about them.
LASTING: tuple[tuple[type[Exception], str], ...] = (
    (errors.SaslAuthenticationFailedError, "check user name, password and mechanism"),
    (errors.AuthorizationError, "grant this user the topics and the group (kafka-acls)"),
    (errors.UnsupportedCodecError, "pip install 'kafka-python[lz4,zstd,snappy,crc32c]'"),
    (errors.KafkaConfigurationError, "correct the [kafka] section of the configuration"),
    (errors.InvalidTopicError, "a topic prefix consists of letters, digits, '.', '_' and '-'"),
    (errors.InvalidReplicationFactorError, "ask for at most as many replicas as there are brokers"),
    (errors.MessageSizeTooLargeError, "raise max.message.bytes of the topic"),
)
LOST: tuple[type[Exception], ...] = (
    errors.OffsetOutOfRangeError,
    errors.NoOffsetForPartitionError,
    errors.LogTruncationError,
)


@contextmanager
def broker_errors(doing: str) -> Iterator[None]:
    """Map the client's errors to ours; `doing` starts the message.

    Raises
    ------
    Inconsistent
        The requested offsets are gone, or the log is damaged.
    CounterflowError
        The error persists until an operator acts; the remedy says how.
    Unavailable
        Any other error: the caller retries.
    """
    try:
        yield
    except LOST as error:
        raise Inconsistent(f"{doing}: {describe(error)}", GONE) from error
    except errors.CorruptRecordError as error:
        raise Inconsistent(
            f"{doing}: {describe(error)}", "the log is damaged: check the broker's disk"
        ) from error
    except errors.KafkaError as error:
        if remedy := lasting(error):
            raise CounterflowError(f"{doing}: {describe(error)}", remedy) from error
        raise Unavailable(f"{doing}: {describe(error)}", remedy="is the broker up?") from error
    except OSError as error:
        raise Unavailable(f"{doing}: {error}", remedy="is the broker up?") from error


# Errors that end a start, as an operator must act, but that a running trainer waits out.
GRANTED_AGAIN = (errors.AuthorizationError, errors.SaslAuthenticationFailedError)


def patient(action: Callable[[], T]) -> T:
    """Return the action's result; rights revoked while running raise Unavailable."""
    try:
        return action()
    except CounterflowError as error:
        if isinstance(error.__cause__, GRANTED_AGAIN):
            raise Unavailable(error.message, remedy=error.remedy) from error
        raise


def lasting(error: BaseException) -> str:
    """Return the remedy of an error that a retry does not fix; an empty string for other errors."""
    return next((remedy for kind, remedy in LASTING if isinstance(error, kind)), "")


def describe(error: Exception) -> str:
    """Return the error's name and text without repeating the name."""
    name, text = type(error).__name__, str(error)
    return text if name in text else f"{name}: {text}".removesuffix(": ")


CLIENT_CERTIFICATE = (
    "this listener requires a client certificate of its CA: set ssl_certfile and ssl_keyfile"
)
PEM_FILES = "name readable PEM files in ssl_cafile, ssl_certfile and ssl_keyfile"

# Causes of failed connections that the client only logs, and what the operator can do about them.
TOLD_IN_THE_LOG = (
    ("SaslAuthenticationFailed", "check user name, password and mechanism"),
    ("UnsupportedSaslMechanism", "the broker does not offer this sasl_mechanism"),
    (
        "certificate is not valid for",
        "connect by a name in the broker's certificate, or set ssl_check_hostname = false",
    ),
    ("CERTIFICATE_VERIFY_FAILED", "name the CA of the broker's certificate in ssl_cafile"),
    ("ALERT_BAD_CERTIFICATE", CLIENT_CERTIFICATE),
    ("CERTIFICATE_REQUIRED", CLIENT_CERTIFICATE),
    ("No such file or directory", PEM_FILES),
    ("Permission denied", PEM_FILES),
    ("NO_CERTIFICATE_OR_CRL_FOUND", PEM_FILES),
    ("PEM lib", PEM_FILES),
    ("KEY_VALUES_MISMATCH", "ssl_keyfile is not the key of ssl_certfile"),
    ("Invalid frame length", "this listener uses TLS: set security_protocol to SSL or SASL_SSL"),
)

# Signs that may also come from a broker in trouble, so a retry may succeed.
PERHAPS = (
    (
        "Handshake failed",
        "does this listener use TLS? If not, choose a security_protocol without SSL",
    ),
    (
        "socket disconnected",
        "is the broker up? It closed the connection: check security_protocol, user and password",
    ),
)


class _Overheard(logging.Handler):
    """Collects the client's log lines, the only place that says why it cannot connect."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.remedy = ""
        self.reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        for sign, remedy in TOLD_IN_THE_LOG:
            if sign in said:
                self.reason, self.remedy = said, remedy
                return
        if not self.remedy and "failed: " in said and "Unable to bootstrap" not in said:
            self.reason = said


class _Selector(NetworkSelector):  # type: ignore[misc]
    """Adds a timeout to TLS handshakes; the client waits forever for a silent peer."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._limit_s = how.get("bootstrap_timeout_ms", 1000 * REQUEST_S) / 1000

    def wait_read(self, fileobj: Any, timeout_at: float | None = None) -> Any:
        shaking_hands = isinstance(fileobj, ssl.SSLSocket) and fileobj.version() is None
        if shaking_hands and timeout_at is None:
            timeout_at = time.monotonic() + self._limit_s
        return super().wait_read(fileobj, timeout_at)


class _HearsOut(KafkaConnectionManager):  # type: ignore[misc]
    """Reads a broker's last answer before a closed connection; the client drops it."""

    async def _build_transport(self, *given: Any, **named: Any) -> Any:
        transport = await super()._build_transport(*given, **named)
        receive = transport._sock_recv  # noqa: SLF001

        def all_of_it() -> Any:
            data, error = receive()
            return data, None if data else error  # the next read sees the closed connection again

        transport._sock_recv = all_of_it  # noqa: SLF001
        return transport


def connect(make: Callable[..., Any], bootstrap_servers: str, options: Mapping[str, Any]) -> Any:
    """Return the connected client.

    Parameters
    ----------
    make : callable
        The client's class.
    options : mapping
        Its keyword arguments.

    Raises
    ------
    Unavailable
        If no broker can be reached; a retry may succeed.
    CounterflowError
        If credentials, protocol or options are wrong; the message has the reason that the client
        only logs.
    """
    heard = _Overheard()
    inner: list[Any] = []

    def network(**how: Any) -> Any:
        net = _Selector(**how)
        inner.append(KafkaNetClient(net, _HearsOut(net, **how), **how))
        return inner[-1]

    logger = logging.getLogger("kafka")
    logger.addHandler(heard)
    try:
        with broker_errors(f"connecting to {bootstrap_servers}"):
            return make(bootstrap_servers=bootstrap_servers, kafka_client=network, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise CounterflowError(
            f"connecting to {bootstrap_servers}: {error}",
            "kafka.bootstrap_servers is host:port, separated by commas; also check kafka.options",
        ) from error
    except Unavailable as error:
        for client in inner:
            client.close()  # a failed constructor leaves its thread and sockets behind
        message = f"{error.message} ({heard.reason})" if heard.reason else error.message
        if heard.remedy:
            raise CounterflowError(message, heard.remedy) from error
        perhaps = (remedy for sign, remedy in PERHAPS if sign in heard.reason)
        remedy = next(perhaps, error.remedy)
        raise Unavailable(message, error.retry_after_s, remedy) from error
    finally:
        logger.removeHandler(heard)
