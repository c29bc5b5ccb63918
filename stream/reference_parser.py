"""The reference parser of one event: it checks all rules in order and reports the first violation.

The fast parser may accept only events that this parser accepts, with the same result. It needs
neither numba nor torch, so the HTTP service validates posted events with it.
"""

import json
import math
from typing import Any, NoReturn

import orjson

from stream.errors import BadEvent
from stream.schemas import (
    ATTRIBUTES_MAX,
    DAY_MS,
    EVENTS,
    ID_MAX_BYTES,
    MEMBERS_MAX,
    NUMBER_MAX,
    VALUE_MAX_BYTES,
    VERSION,
    Event,
)

REASONS = (
    "no_value",
    "too_large",
    "not_utf8",
    "not_json",
    "not_object",
    "unknown_version",
    "unknown_type",
    "missing_field",
    "wrong_type",
    "not_finite",
    "bad_id",
    "bad_time",
    "out_of_range",
    "too_many",
)
Scale = tuple[float, float]
IDS = ("event_id", "user_id", "item_id", "impression_id")
PROBABILITIES = ("propensity", "show_probability")
_FIELDS = {  # v and type are checked separately, before these
    kind: tuple(name for name in event.__struct_fields__ if name not in ("v", "type"))
    for kind, event in EVENTS.items()
}
_REQUIRED = {
    kind: tuple(
        name
        for name in ("event_id", "ts_ms", "user_id", "item_id", "value")
        if name in event.__struct_fields__
    )
    for kind, event in EVENTS.items()
}


def parse(
    kind: str | None,
    value: bytes | None,
    kafka_ts_ms: int,
    *,
    rating_scale: Scale = (1.0, 5.0),
) -> Event:
    """Return the event in the value of a record; raise BadEvent if it is not valid.

    `kind` is the kind of the record's topic, or None to take the kind from the event's `type`. A
    `kafka_ts_ms` below 0 means that the record has no Kafka timestamp.
    """
    return check(kind, load(value), kafka_ts_ms, rating_scale=rating_scale)


def load(value: bytes | None) -> object:
    """Return the JSON document in a value; raise BadEvent if it is not one."""
    if value is None:
        raise BadEvent("no_value", "the record's value is null")
    if len(value) > VALUE_MAX_BYTES:
        raise BadEvent("too_large", f"{len(value)} bytes, {VALUE_MAX_BYTES} at most")
    try:
        return orjson.loads(value)  # also rejects bytes that are not UTF-8
    except orjson.JSONDecodeError as error:
        return _load_rare(value, str(error))


def check(
    kind: str | None,
    document: object,
    kafka_ts_ms: int,
    *,
    rating_scale: Scale = (1.0, 5.0),
) -> Event:
    """Return the event that a decoded JSON document describes; raise BadEvent if it is invalid."""
    if not isinstance(document, dict):
        raise BadEvent("not_object", f"the value is {_name(document)}")
    version = document.get("v", VERSION)
    if type(version) is not int or version != VERSION:
        raise BadEvent("unknown_version", f"v is {_show(version)}, not {VERSION}")
    kind = _kind(kind, document)
    fields = {name: document[name] for name in _FIELDS[kind] if name in document}
    for name in _REQUIRED[kind]:
        if name not in fields:
            raise BadEvent("missing_field", name)
    for rule in (_types, _finite, _ids):
        rule(fields)
    _time(fields["ts_ms"], kafka_ts_ms)
    _ranges(fields, rating_scale)
    _counts(fields.get("attributes", {}))
    if "value" in fields:
        fields["value"] = float(fields["value"])
    return EVENTS[kind](**fields)


def check_id(name: str, text: str | bytes) -> None:
    """Raise BadEvent if the text is not an id of 1 to 256 bytes; `name` is used in the message."""
    size = len(text.encode() if isinstance(text, str) else text)
    if not 0 < size <= ID_MAX_BYTES:
        raise BadEvent("bad_id", f"{name} has {size} bytes, not 1 to {ID_MAX_BYTES}")


def _load_rare(value: bytes, refusal: str) -> object:
    """Parse a document that orjson rejects although it is JSON: a number beyond a double.

    Such a number becomes infinite.
    """
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise BadEvent("not_utf8", f"byte {error.start}: {error.reason}") from None

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    def whole(digits: str) -> int | float:
        return int(digits) if len(digits) < 19 else float(digits)

    try:
        document = json.loads(text, parse_constant=refuse, parse_int=whole)
        # a lone surrogate cannot be encoded as UTF-8, so it cannot be an id or a title
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise BadEvent("not_json", refusal) from None
    return document


def _kind(kind: str | None, document: dict[str, Any]) -> str:
    """Return the event's kind, from the topic or `type`; raise BadEvent if the two disagree."""
    if kind is None:
        if "type" not in document:
            raise BadEvent("missing_field", "type")
        kind = document["type"]
        if not isinstance(kind, str) or kind not in EVENTS:
            raise BadEvent("unknown_type", f"type is {_show(kind)}")
    elif document.get("type", kind) != kind:
        raise BadEvent(
            "unknown_type", f"type is {_show(document['type'])}, but the topic is for {kind}"
        )
    return kind


_TEXT = (frozenset({str}), "a string")
_WHOLE = (frozenset({int}), "an integer")
_NUMBER = (frozenset({int, float}), "a number")
_TYPES: dict[str, tuple[frozenset[type], str]] = {
    "event_id": _TEXT,
    "ts_ms": _WHOLE,
    "user_id": _TEXT,
    "item_id": _TEXT,
    "value": _NUMBER,
    "impression_id": _TEXT,
    "position": _WHOLE,
    "propensity": _NUMBER,
    "shown": (frozenset({bool}), "a boolean"),
    "show_probability": _NUMBER,
    "title": _TEXT,
    "attributes": (frozenset({dict}), "an object"),
}
_ATTRIBUTE = frozenset({bool, int, float, str})


def _types(fields: dict[str, Any]) -> None:
    """Raise BadEvent if a field or attribute has the wrong JSON type."""
    for name, content in fields.items():
        allowed, wanted = _TYPES[name]
        if type(content) in allowed:
            continue
        # orjson reads an integer beyond 64 bits as a float; the range check rejects it later
        if int in allowed and type(content) is float and abs(content) >= 2.0**63:
            continue
        raise BadEvent("wrong_type", f"{name} is {_name(content)}, not {wanted}")
    for name, content in fields.get("attributes", {}).items():
        if type(content) in _ATTRIBUTE:
            continue
        if type(content) is not list or not set(map(type, content)) <= _TEXT[0]:
            wanted = "a number, a boolean, a string or a list of strings"
            raise BadEvent("wrong_type", f"attribute {name[:80]} is {_name(content)}, not {wanted}")


def _finite(fields: dict[str, Any]) -> None:
    """Raise BadEvent if a number is not finite."""
    for name in ("ts_ms", "value", "position", *PROBABILITIES):
        if name in fields and not math.isfinite(fields[name]):
            raise BadEvent("not_finite", name)
    for name, content in fields.get("attributes", {}).items():
        if type(content) is float and not math.isfinite(content):
            raise BadEvent("not_finite", f"attribute {name[:80]}")


def _ids(fields: dict[str, Any]) -> None:
    """Raise BadEvent if an id is empty or too long."""
    for name in IDS:
        # a character has at most 4 bytes, so most ids need not be encoded
        if name in fields and not 0 < len(fields[name]) <= ID_MAX_BYTES // 4:
            check_id(name, fields[name])


def _time(ts_ms: int | float, kafka_ts_ms: int) -> None:
    """Raise BadEvent if the time is negative or over a day ahead of the Kafka timestamp."""
    if ts_ms < 0:
        raise BadEvent("bad_time", f"ts_ms is {ts_ms}")
    ahead = kafka_ts_ms >= 0 and ts_ms > kafka_ts_ms + DAY_MS
    if ahead or ts_ms >= 2**63:
        raise BadEvent("bad_time", f"ts_ms is {ts_ms}, the record's Kafka time {kafka_ts_ms}")


def _ranges(fields: dict[str, Any], rating_scale: Scale) -> None:
    """Raise BadEvent if a number is outside its range."""
    low, high = rating_scale
    if "value" in fields and not low <= fields["value"] <= high:
        raise BadEvent("out_of_range", f"value is {fields['value']}, not {low} to {high}")
    _fits("value", fields.get("value", 0))
    for name, content in fields.get("attributes", {}).items():
        if type(content) in _NUMBER[0]:
            _fits(f"attribute {name[:80]}", content)
    if "position" in fields and not 1 <= fields["position"] < 2**31:
        raise BadEvent("out_of_range", f"position is {fields['position']}, positions start at 1")
    for name in PROBABILITIES:
        if name in fields and not 0 < fields[name] <= 1:
            raise BadEvent("out_of_range", f"{name} is {fields[name]}, not in (0, 1]")


def _fits(name: str, number: int | float) -> None:
    """Raise BadEvent if the number does not fit a 32-bit float."""
    if abs(number) > NUMBER_MAX:
        raise BadEvent("out_of_range", f"{name} is {number:.6g}, beyond 32-bit floating point")


def _counts(attributes: dict[str, Any]) -> None:
    """Raise BadEvent if there are too many attributes or list members."""
    if len(attributes) > ATTRIBUTES_MAX:
        raise BadEvent("too_many", f"{len(attributes)} attributes, {ATTRIBUTES_MAX} at most")
    members = sum(len(content) for content in attributes.values() if type(content) is list)
    if members > MEMBERS_MAX:
        raise BadEvent("too_many", f"{members} list members, {MEMBERS_MAX} at most")


def _show(content: object) -> str:
    return repr(content)[:80]


def _name(content: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if content is None:
        return "null"
    return names.get(type(content), "a number")
