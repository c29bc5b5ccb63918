"""Errors as RFC 9457 problems: a stable code, a sentence, and the field where there is one."""

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
LOG = "the service's log says more"
GONE = 499  # the client left before its answer: nobody reads it, but it is counted


class Problem(Exception):
    """A request that is not answered; `code` is stable, `more` stands beside it in the body."""

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
        """Return the problem as the answer."""
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
    """Return the 503 that says when to come back."""
    seconds = max(1, round(retry_after_s))
    return Problem(503, "unavailable", detail, {"retry-after": str(seconds)}, **more)


def invalid(field: str, detail: str, code: str = "invalid") -> Problem:
    """Return the 422 that names the field."""
    return Problem(422, code, detail, field=field)


async def on_problem(_: Request, error: Exception) -> Response:
    """Return the answer to a Problem."""
    assert isinstance(error, Problem)
    return error.response()


def outside(error: CounterflowError) -> str:
    """Return what of an error may leave the process.

    Behind the colon stands what another program said: addresses, names of users, paths.
    """
    return error.message.partition(":")[0]


async def on_store(_: Request, error: Exception) -> Response:
    """Return the answer when Redis is away, or refuses what the service asks."""
    assert isinstance(error, CounterflowError)
    retry_after_s = getattr(error, "retry_after_s", 1.0)
    return unavailable(outside(error), retry_after_s, remedy=LOG).response()


async def on_gone(request: Request, _: Exception) -> Response:
    """Return what is counted for a client that left before its body was here."""
    log.debug("%s %s: the client has gone", request.method, request.url.path)
    return Response(status_code=GONE)


async def on_http(_: Request, error: Exception) -> Response:
    """Return starlette's own errors (404, 405) as problems."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http")
    headers = dict(error.headers) if error.headers else None
    return Problem(error.status_code, code, error.detail, headers).response()


async def on_error(_: Request, error: Exception) -> Response:
    """Return a 500 that says nothing of the inside; the log has the trace."""
    return Problem(500, "internal", "an error of the service; its log has it").response()
