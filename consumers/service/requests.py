"""What requests may hold, and their reading; a wrong one names its field."""

import re
from typing import Annotated, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request

from consumers.service.problems import Problem, invalid
from stream.schemas import ATTRIBUTES_MAX, MEMBERS_MAX, VALUE_MAX_BYTES

K_MAX = 1_000
ITEMS_MAX = 10_000
EVENTS_MAX = 10_000
ID_MAX_BYTES = 256
FILTERS_MAX = 64
VALUES_MAX = 10_000  # of one filter
TEXT_MAX = VALUE_MAX_BYTES  # an event holds no longer one
WHOLE_MAX = 2**53  # beyond it a double does not tell whole numbers apart
REAL_MAX = float(np.finfo(np.float32).max)  # rows are float32

Id = Annotated[str, Meta(min_length=1, max_length=ID_MAX_BYTES, description="at most 256 bytes")]
Objective = Literal["outcome", "effect", "consumption"]
Name = Annotated[str, Meta(max_length=TEXT_MAX)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Whole = Annotated[int, Meta(ge=-WHOLE_MAX, le=WHOLE_MAX)]
Real = Annotated[float, Meta(ge=-REAL_MAX, le=REAL_MAX)]
Scalar = bool | Whole | Real | Text


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of a number; all that are given hold."""

    gte: Real | UnsetType = UNSET
    gt: Real | UnsetType = UNSET
    lte: Real | UnsetType = UNSET
    lt: Real | UnsetType = UNSET


Filter = Scalar | Annotated[list[Scalar], Meta(max_length=VALUES_MAX)] | Condition


Attribute = Scalar | Annotated[list[Text], Meta(max_length=MEMBERS_MAX)]


class Intervention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is set, against the world as it is; several at once hold together."""

    shown: Annotated[
        bool | UnsetType,
        Meta(description="true: against withheld; false: withheld, against shown"),
    ] = UNSET
    position: Annotated[
        Annotated[int, Meta(ge=1, le=2**31 - 1)] | UnsetType,
        Meta(description="place in the list, from 1"),
    ] = UNSET
    popularity: Annotated[
        Annotated[float, Meta(ge=0, le=REAL_MAX)] | UnsetType,
        Meta(description="clicks and ratings of the item, decayed as the model counts them"),
    ] = UNSET
    attributes: Annotated[
        Annotated[dict[Name, Attribute], Meta(max_length=ATTRIBUTES_MAX)] | UnsetType,
        Meta(description="attribute of the item to another value; the others stay"),
    ] = UNSET

    @property
    def empty(self) -> bool:
        """Whether it sets nothing."""
        return all(
            value is UNSET
            for value in (self.shown, self.position, self.popularity, self.attributes)
        )


class Choice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both kinds of request choose."""

    user_id: Id
    outcome: Literal["rating", "click"] | UnsetType = UNSET
    objective: Objective = "outcome"
    do: Intervention | None = None


class Recommend(Choice, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The best k of all items."""

    k: Annotated[int, Meta(ge=1, le=K_MAX)] = 10
    exclude: Annotated[list[Id], Meta(max_length=ITEMS_MAX)] = []
    filters: Annotated[
        dict[Name, Filter],
        Meta(
            max_length=FILTERS_MAX,
            description="attribute to a value, a list of values (any of them), or bounds",
        ),
    ] = {}


class Rank(Choice, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The given items, best first."""

    item_ids: Annotated[list[Id], Meta(max_length=ITEMS_MAX)]


class AskEffect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an intervention changes for one user and item."""

    user_id: Id
    item_id: Id
    outcome: Literal["rating", "click"] | UnsetType = UNSET
    do: Intervention
    observed: Annotated[
        Real | UnsetType,
        Meta(description="the outcome that happened: asks what would have happened to it"),
    ] = UNSET


class AskWhy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why one user and item have their score; `do` takes position and popularity."""

    user_id: Id
    item_id: Id
    outcome: Literal["rating", "click"] | UnsetType = UNSET
    do: Intervention | None = None


T = TypeVar("T")


async def read_body(request: Request, most: int) -> bytes:
    """Return the body; one beyond `most` bytes is a 413 before it is held in memory."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Problem(413, "too_large", f"a body has at most {most} bytes")
        parts.append(part)
    return b"".join(parts)


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Return the request; not JSON is a 400, a wrong field a 422 that names it."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        field, detail = where(str(error))
        raise invalid(field, detail) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "not_json", f"the body is not JSON: {error}") from None


def where(message: str) -> tuple[str, str]:
    """Return the field that msgspec's message names, and the message without the place.

    >>> where("Expected `int` >= 1 - at `$.k`")
    ('k', 'Expected `int` >= 1')
    >>> where("Object missing required field `user_id`")
    ('user_id', 'Object missing required field `user_id`')
    """
    detail, _, place = message.partition(" - at `")
    field = re.sub(r"^(key` in `)?\$\.?", "", place.rstrip("`"))
    named = re.search(r"field `([^`]*)`", detail)
    if named:
        field = f"{field}.{named[1]}" if field else named[1]
    return field or "body", detail
