"""Connections that are given so much time, and so many of them: uvicorn's protocol with timers.

uvicorn closes a connection that is idle after an answer, and no other one. Here a request has
`head_timeout_s` from its first byte (a new connection: from its beginning) until its headers are
whole, `body_timeout_s` from there until its body is, however many bytes dribble in meanwhile, and a
client as long to read on when it has stopped reading its answer.

Beyond `connections_max` connections only /livez, /readyz and /metrics are answered, on SPARE
further ones, so that those who watch the service still see it; even more are hung up on.
"""

import asyncio
from typing import Any, ClassVar

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from consumers.service.problems import Problem
from consumers.settings import Service

SPARE = 32
READ_BYTES = 16 << 10  # of one read: a body in chunks of one byte each takes 10 ms of them
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
WATCHED = ("/livez", "/readyz", "/metrics")


def patient(settings: Service) -> type[H11Protocol]:
    """Return the protocol with the timers and the bound of these settings."""
    return type("Patient", (_Patient,), {"limits": settings})


class _Patient(H11Protocol):
    """One connection; at most one timer runs, for what it waits for now."""

    limits: ClassVar[Service]
    _timer: asyncio.TimerHandle | None = None
    _awaited: object = None  # what the timer is for

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection has until `head_timeout_s` to send its first headers."""
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
        """No timer runs after the call."""
        self._await(None)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """What has come is taken, and the timer runs for what has to come next."""
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
        """An idle connection is closed, also if its client never reads the last answer."""
        super().timeout_keep_alive_handler()
        self._await("reading")

    def pause_writing(self) -> None:
        """The client does not read its answer: it has until `body_timeout_s` to go on."""
        super().pause_writing()
        self._await("reading")

    def resume_writing(self) -> None:
        """The client reads on."""
        super().resume_writing()
        if self._awaited == "reading":
            self._await(None)

    def _await(self, what: object, anew: bool = False) -> None:
        """The timer runs for that, from now unless it did so before; None: it does not run."""
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
        """The connection is closed, with a word where no answer has begun."""
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


class Crowd:
    """An ASGI application around another: one connection too many gets word of the health alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The request is answered after the call, or refused."""
        if scope["type"] == "http" and (scope.get("state") or {}).get("crowded"):
            if scope["path"] not in WATCHED:
                problem = Problem(
                    503, "busy", "too many connections are open",
                    {"retry-after": "1", "connection": "close"},
                    remedy="close those that are not used, or raise service.connections_max",
                )  # fmt: skip
                await problem.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)
