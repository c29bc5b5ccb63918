"""uvicorn's HTTP protocol with timeouts for slow clients and a limit of connections.

uvicorn itself only closes connections that are idle after an answer. Here, a request's headers must
be complete `head_timeout_s` after its first byte (on a new connection: after connecting), its body
`body_timeout_s` after that, however slowly bytes arrive. A client that stops reading its answer has
`body_timeout_s` to continue.

Beyond `connections_max` connections only /livez, /readyz and /metrics are answered, on SPARE
further ones, so that monitoring still works. Even more connections are aborted.
"""

import asyncio
from typing import Any, ClassVar

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from consumers.service.problems import Problem
from consumers.settings import ServiceSettings

SPARE = 32
READ_BYTES = 16 << 10  # size of one read; parsing this much in 1-byte chunks takes 10 ms
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
WATCHED = ("/livez", "/readyz", "/metrics")


def patient(settings: ServiceSettings) -> type[H11Protocol]:
    """Return the protocol class with the limits of these settings."""
    return type("Patient", (_Patient,), {"limits": settings})


class _Patient(H11Protocol):
    """One connection; at most one timer runs, for what the connection waits for now."""

    limits: ClassVar[ServiceSettings]
    _timer: asyncio.TimerHandle | None = None
    _awaited: object = None  # what the timer waits for: "head", "reading" or a request's body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first headers; restrict or abort connections beyond the limit."""
        crowd = len(self.connections) - self.limits.connections_max
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES
        if crowd >= SPARE:
            transport.abort()
        elif crowd >= 0:
            self.app_state = {**self.app_state, "crowded": True}
        self._await("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._await(None)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handle received data, then set the timer for what must come next."""
        cycle = self.cycle
        super().handle_events()
        if self.transport.is_closing() or self.flow.write_paused:
            self._await("reading")
        elif self.conn.their_state is h11.SEND_BODY:
            self._await(self.cycle)
        elif self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._await("head", anew=self.cycle is not cycle)
        else:
            self._await(None)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection even if its client never reads the last answer."""
        super().timeout_keep_alive_handler()
        self._await("reading")

    def pause_writing(self) -> None:
        """Start the timer for a client that does not read its answer."""
        super().pause_writing()
        self._await("reading")

    def resume_writing(self) -> None:
        """Stop the timer when the client reads again."""
        super().resume_writing()
        if self._awaited == "reading":
            self._await(None)

    def _await(self, what: object, anew: bool = False) -> None:
        """Start the timer for `what`, if not already running or `anew`; None stops it."""
        if what is self._awaited and not anew:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._awaited, self._timer = what, None
        if what is not None:
            head = what == "head"
            limit_s = self.limits.head_timeout_s if head else self.limits.body_timeout_s
            self._timer = self.loop.call_later(limit_s, self._expire)

    def _expire(self) -> None:
        """Close the connection, with a 408 if no answer has begun."""
        cycle: Any = self.cycle
        answering = cycle is not None and not cycle.response_complete
        began = answering and cycle.response_started
        if self._awaited == "reading" or began:
            self.transport.abort()
            return
        if answering or (self._awaited == "head" and self.conn.trailing_data[0]):
            self.transport.write(TIMED_OUT)
        self.transport.close()
        self._await("reading")


class ConnectionLimit:
    """An ASGI middleware that answers only health checks on connections beyond the limit."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 503."""
        if scope["type"] == "http" and (scope.get("state") or {}).get("crowded"):
            if scope["path"] not in WATCHED:
                problem = Problem(
                    503, "busy", "too many connections are open",
                    {"retry-after": "1", "connection": "close"},
                    remedy="close unused connections, or raise service.connections_max",
                )  # fmt: skip
                await problem.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)
