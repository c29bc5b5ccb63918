"""The request bodies and their decoding; an error names the invalid field."""

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
TEXT_MAX = VALUE_MAX_BYTES  # as in events
WHOLE_MAX = 2**53  # larger integers are not exact in double precision
REAL_MAX = float(np.finfo(np.float32).max)  # rows are float32

Id = Annotated[str, Meta(min_length=1, max_length=ID_MAX_BYTES, description="at most 256 bytes")]
Objective = Literal["outcome", "effect", "consumption"]
Name = Annotated[str, Meta(max_length=TEXT_MAX)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Whole = Annotated[int, Meta(ge=-WHOLE_MAX, le=WHOLE_MAX)]
Real = Annotated[float, Meta(ge=-REAL_MAX, le=REAL_MAX)]
Scalar = bool | Whole | Real | Text


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of a number; all given bounds must hold."""

    gte: Real | UnsetType = UNSET
    gt: Real | UnsetType = UNSET
    lte: Real | UnsetType = UNSET
    lt: Real | UnsetType = UNSET


Filter = Scalar | Annotated[list[Scalar], Meta(max_length=VALUES_MAX)] | Condition


Attribute = Scalar | Annotated[list[Text], Meta(max_length=MEMBERS_MAX)]


class Intervention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to set in the world as it is; several settings apply together."""

    shown: Annotated[
        bool | UnsetType,
        Meta(description="true: shown against withheld; false: withheld against shown"),
    ] = UNSET
    position: Annotated[
        Annotated[int, Meta(ge=1, le=2**31 - 1)] | UnsetType,
        Meta(description="position in the list, from 1"),
    ] = UNSET
    popularity: Annotated[
        Annotated[float, Meta(ge=0, le=REAL_MAX)] | UnsetType,
        Meta(description="the item's count of clicks and ratings, decayed as in the model"),
    ] = UNSET
    attributes: Annotated[
        Annotated[dict[Name, Attribute], Meta(max_length=ATTRIBUTES_MAX)] | UnsetType,
        Meta(description="attributes of the item and their new values; others do not change"),
    ] = UNSET

    @property
    def empty(self) -> bool:
        """Whether nothing is set."""
        return all(
            value is UNSET
            for value in (self.shown, self.position, self.popularity, self.attributes)
        )


class ListRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that both kinds of lists have."""

    user_id: Id
    outcome: Literal["rating", "click"] | UnsetType = UNSET
    objective: Objective = "outcome"
    do: Intervention | None = None


class Recommend(ListRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask for the best k of all items."""

    k: Annotated[int, Meta(ge=1, le=K_MAX)] = 10
    exclude: Annotated[list[Id], Meta(max_length=ITEMS_MAX)] = []
    filters: Annotated[
        dict[Name, Filter],
        Meta(
            max_length=FILTERS_MAX,
            description="attribute -> a value, a list of values (any of them), or bounds",
        ),
    ] = {}


class Rank(ListRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask for the given items, best first."""

    item_ids: Annotated[list[Id], Meta(max_length=ITEMS_MAX)]


class AskEffect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask for the effect of an intervention for one user and item."""

    user_id: Id
    item_id: Id
    outcome: Literal["rating", "click"] | UnsetType = UNSET
    do: Intervention
    observed: Annotated[
        Real | UnsetType,
        Meta(description="an outcome that happened; asks for its counterfactual"),
    ] = UNSET


class AskWhy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask why a user and an item have their score; `do` accepts position and popularity."""

    user_id: Id
    item_id: Id
    outcome: Literal["rating", "click"] | UnsetType = UNSET
    do: Intervention | None = None


T = TypeVar("T")


async def read_body(request: Request, most: int) -> bytes:
    """Return the body; raise a 413 problem as soon as more than `most` bytes have arrived."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Problem(413, "too_large", f"the body is larger than {most} bytes")
        parts.append(part)
    return b"".join(parts)


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Return the decoded request; a 400 if it is not JSON, a 422 that names an invalid field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        field, detail = where(str(error))
        raise invalid(field, detail) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "not_json", f"the body is not JSON: {error}") from None


def where(message: str) -> tuple[str, str]:
    """Return the field that msgspec's message names, and the message without it.

    >>> where("Expected `int` >= 1 - at `$.k`") ('k', 'Expected `int` >= 1') >>> where("Object
    missing required field `user_id`") ('user_id', 'Object missing required field `user_id`')
    """
    detail, _, place = message.partition(" - at `")
    field = re.sub(r"^(key` in `)?\$\.?", "", place.rstrip("`"))
    named = re.search(r"field `([^`]*)`", detail)
    if named:
        field = f"{field}.{named[1]}" if field else named[1]
    return field or "body", detail
