"""What answers hold; the OpenAPI description is made from these types."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.responses import Response


class Scored(Struct, frozen=True, kw_only=True):
    """One item of a list."""

    item_id: str
    title: str | None
    score: Annotated[float, Meta(description="expected outcome, on the outcome's scale")]
    propensity: Annotated[
        float | None, Meta(description="chance of exposure; null until exposures are joined")
    ]
    interval: Annotated[
        list[float] | None,
        Meta(description="where 95 % of single outcomes lie; null where the model does not say"),
    ]


class Known(Struct, frozen=True, kw_only=True):
    """Whether the user has a row; without one the list is the fallback's."""

    known: bool
    events: int


class Served(Struct, frozen=True, kw_only=True):
    """Which model answered."""

    generation: str
    epoch: int
    version: Annotated[int, Meta(description="changes that this server has followed")]
    outcome: str
    objective: str


class Recommendation(Struct, frozen=True, kw_only=True):
    """The best items, best first."""

    user: Known
    model: Served
    items: list[Scored]


class Ranking(Struct, frozen=True, kw_only=True):
    """The asked items that are known, best first, and those that are not."""

    user: Known
    model: Served
    items: list[Scored]
    unknown_items: list[str]


class UserRow(Struct, frozen=True, kw_only=True):
    """What is kept of a user."""

    user_id: str
    events: int
    exposures: int
    epoch: int
    sequence: int


class ItemRow(Struct, frozen=True, kw_only=True):
    """What is kept of an item."""

    item_id: str
    title: str | None
    attributes: dict[str, Any]
    events: int
    exposures: int
    epoch: int
    sequence: int


class Accepted(Struct, frozen=True, kw_only=True):
    """How many events the broker has acknowledged."""

    accepted: int


class BadPosted(Struct, frozen=True, kw_only=True):
    """One event that is none."""

    index: int
    reason: str
    detail: str


class ProblemBody(Struct, frozen=True, kw_only=True):
    """An error, RFC 9457; `code` is stable."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    field: str | None = None
    errors: list[BadPosted] | None = None
    acknowledged: list[int] | None = None


def answer(body: Any, status: int = 200) -> Response:
    """Return the body as JSON."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")
