"""Checking ports; an error names the address, the setting and the remedy."""

import socket

from stream.errors import CounterflowError

TAKEN = (OSError, UnicodeError)  # UnicodeError: an invalid host name


def url(host: str, port: int) -> str:
    """Return the address by which what listens there is asked."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def refused(what: str, host: str, port: int, error: Exception) -> CounterflowError:
    """Return the error for an address that cannot be bound; `what` is the port's setting."""
    reason = getattr(error, "strerror", None) or error
    return CounterflowError(
        f"cannot listen on {host}:{port} ({what}): {reason}",
        f"stop the process that listens there, or choose another {what} (0 takes a free one) or"
        f" {what.removesuffix('port')}host",
    )


def free(what: str, host: str, port: int, named: bool) -> int:
    """Return the port if it is free, else a free one; raise if the port was set explicitly."""
    for wanted in (port,) if named else (port, 0):
        try:
            family, *_, address = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM)[0]
            with socket.create_server(address[:2], family=family) as held:
                return int(held.getsockname()[1])
        except TAKEN as error:
            last = refused(what, host, wanted, error)
    raise last
