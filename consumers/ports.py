"""Ports: who cannot have one says which, by which setting, and what to do."""

import socket

from stream.errors import CounterflowError

TAKEN = (OSError, UnicodeError)  # the latter of a host name that is none


def url(host: str, port: int) -> str:
    """Return the address by which what listens there is asked."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def refused(what: str, host: str, port: int, error: Exception) -> CounterflowError:
    """Return the error of a port that cannot be listened on; `what` is its setting's name."""
    reason = getattr(error, "strerror", None) or error
    return CounterflowError(
        f"cannot listen on {host}:{port} ({what}): {reason}",
        f"end what listens there, or choose another {what} (0 takes a free one) or"
        f" {what.removesuffix('port')}host",
    )


def free(what: str, host: str, port: int, named: bool) -> int:
    """Return the port if it can be had; else another one, or an error if it was named."""
    for wanted in (port,) if named else (port, 0):
        try:
            family, *_, address = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM)[0]
            with socket.create_server(address[:2], family=family) as held:
                return int(held.getsockname()[1])
        except TAKEN as error:
            last = refused(what, host, wanted, error)
    raise last
