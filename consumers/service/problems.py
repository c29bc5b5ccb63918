"""Errors as RFC 9457 problems: a stable code, a sentence and, if known, the field at fault."""

import logging
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stream.errors import CounterflowError

log = logging.getLogger("counterflow.service")

MEDIA_TYPE = "application/problem+json"
LOG = "see the service's log for the cause"
GONE = 499  # the client disconnected before its answer; only the metrics see this status


class Problem(Exception):
    """A request that is not answered; `code` is stable, `more` are further fields of the body."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers
        self.more = more

    def response(self) -> Response:
        """Return the problem as a response."""
        body = {
            "type": f"/problems/{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            **self.more,
        }
        return Response(
            orjson.dumps(body), self.status, headers=self.headers, media_type=MEDIA_TYPE
        )


def unavailable(detail: str, retry_after_s: float = 1.0, **more: Any) -> Problem:
    """Return a 503 problem with Retry-After."""
    seconds = max(1, round(retry_after_s))
    return Problem(503, "unavailable", detail, {"retry-after": str(seconds)}, **more)


def invalid(field: str, detail: str, code: str = "invalid") -> Problem:
    """Return a 422 problem that names the field."""
    return Problem(422, code, detail, field=field)


async def on_problem(_: Request, error: Exception) -> Response:
    """Return the response to a Problem."""
    assert isinstance(error, Problem)
    return error.response()


def outside(error: CounterflowError) -> str:
    """Return the part of an error that clients may see.

    The text behind the colon comes from other programs and may contain addresses, user names and
    paths.
    """
    return error.message.partition(":")[0]


async def on_store(_: Request, error: Exception) -> Response:
    """Return the response when Redis is unavailable or rejects a command."""
    assert isinstance(error, CounterflowError)
    retry_after_s = getattr(error, "retry_after_s", 1.0)
    return unavailable(outside(error), retry_after_s, remedy=LOG).response()


async def on_gone(request: Request, _: Exception) -> Response:
    """Return the status that is counted for a client that disconnected while sending its body."""
    log.debug("%s %s: the client has disconnected", request.method, request.url.path)
    return Response(status_code=GONE)


async def on_http(_: Request, error: Exception) -> Response:
    """Return Starlette's own errors (404, 405) as problems."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http")
    headers = dict(error.headers) if error.headers else None
    return Problem(error.status_code, code, error.detail, headers).response()


async def on_error(_: Request, error: Exception) -> Response:
    """Return a 500 without details; the log has the traceback."""
    return Problem(500, "internal", "internal error; see the service's log").response()
