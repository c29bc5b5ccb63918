"""The event types; their JSON Schemas are generated from these."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

KINDS = ("rating", "click", "impression", "user", "item")
# kinds that carry attributes: a null value removes the entity, and no window waits for them
ATTRIBUTE_KINDS = ("user", "item")
VERSION = 1
VALUE_MAX_BYTES = 64 * 1024
ID_MAX_BYTES = 256
ATTRIBUTES_MAX = 64
MEMBERS_MAX = 256  # in all lists of one event together
DAY_MS = 86_400_000
NUMBER_MAX = 3.4028234663852886e38  # the largest float32, the type in which numbers are learned

Id = Annotated[str, Meta(min_length=1, max_length=ID_MAX_BYTES, description="at most 256 bytes")]
Time = Annotated[int, Meta(ge=0, description="event time, milliseconds since 1970, UTC")]
Probability = Annotated[float, Meta(gt=0, le=1)]
Attribute = bool | int | float | str | list[str]
Attributes = Annotated[dict[str, Attribute], Meta(max_length=ATTRIBUTES_MAX)]


class Rating(msgspec.Struct, frozen=True, kw_only=True):
    """A user rated an item with a value on the outcome's scale."""

    v: Literal[1] = 1
    type: Literal["rating"] = "rating"
    event_id: Id
    ts_ms: Time
    user_id: Id
    item_id: Id
    value: float
    impression_id: Id | UnsetType = UNSET


class Click(msgspec.Struct, frozen=True, kw_only=True):
    """A user clicked an item."""

    v: Literal[1] = 1
    type: Literal["click"] = "click"
    event_id: Id
    ts_ms: Time
    user_id: Id
    item_id: Id
    impression_id: Id | UnsetType = UNSET


class Impression(msgspec.Struct, frozen=True, kw_only=True):
    """An item was shown to a user, or deliberately withheld (`shown` false)."""

    v: Literal[1] = 1
    type: Literal["impression"] = "impression"
    event_id: Id
    ts_ms: Time
    user_id: Id
    item_id: Id
    impression_id: Id | UnsetType = UNSET
    position: Annotated[int, Meta(ge=1, le=2**31 - 1)] | UnsetType = UNSET
    propensity: Probability | UnsetType = UNSET
    shown: bool = True
    show_probability: Probability = 1.0


class User(msgspec.Struct, frozen=True, kw_only=True):
    """The attributes of a user; a null value on the topic removes the user."""

    v: Literal[1] = 1
    type: Literal["user"] = "user"
    event_id: Id
    ts_ms: Time
    user_id: Id
    attributes: Attributes = {}


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """The title and attributes of an item; a null value on the topic removes the item."""

    v: Literal[1] = 1
    type: Literal["item"] = "item"
    event_id: Id
    ts_ms: Time
    item_id: Id
    title: str | UnsetType = UNSET
    attributes: Attributes = {}


Event = Rating | Click | Impression | User | Item
EVENTS: dict[str, type[Event]] = {
    "rating": Rating,
    "click": Click,
    "impression": Impression,
    "user": User,
    "item": Item,
}


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each event, by kind."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {
        kind: {**dialect, "$id": f"counterflow.{kind}.v{VERSION}", **msgspec.json.schema(event)}
        for kind, event in EVENTS.items()
    }


def topic_kind(topic: str, prefix: str | None = None) -> str | None:
    """Return the kind of event that a topic `{prefix}.{kind}.v1` carries; None for other topics."""
    head, _, version = topic.rpartition(".")
    found, _, kind = head.rpartition(".")
    known = kind in EVENTS and version == f"v{VERSION}" and found != ""
    return kind if known and prefix in (None, found) else None
