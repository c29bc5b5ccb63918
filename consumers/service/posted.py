"""Posted events: validated by the code that validates Kafka's records, then sent to Kafka."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from consumers.service.problems import Problem, invalid
from consumers.service.requests import EVENTS_MAX
from stream.errors import BadEvent
from stream.reference_parser import parse

_LIST = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Posted:
    """A valid event: its topic's kind, its key, and its bytes unchanged."""

    kind: str
    key: bytes
    value: bytes
    user_id: bytes = b""
    item_id: bytes = b""


# Returns for each event whether the broker has acknowledged it; blocks, so it runs in a thread.
Produce = Callable[[Sequence[Posted]], Sequence[bool]]


def read(body: bytes, now_ms: int, rating_scale: tuple[float, float]) -> list[Posted]:
    """Return the events of a body, one or a list; a 422 names every bad one."""
    values = split(body)
    events: list[Posted] = []
    errors: list[dict[str, str | int]] = []
    for index, value in enumerate(values):
        try:
            event = parse(None, value, now_ms, rating_scale=rating_scale)
        except BadEvent as error:
            errors.append({"index": index, "reason": error.reason, "detail": error.detail})
            continue
        user_id = getattr(event, "user_id", "").encode()
        item_id = getattr(event, "item_id", "").encode()
        events.append(Posted(event.type, user_id or item_id, value, user_id, item_id))
    if errors:
        raise Problem(
            422, "bad_events", f"{len(errors)} of {len(values)} events are bad", errors=errors
        )
    return events


def split(body: bytes) -> list[bytes]:
    """Return the bytes of each event; a 400 for a body that is not JSON."""
    if body.lstrip()[:1] != b"[":
        return [body.strip()]
    try:
        values = [bytes(value) for value in _LIST.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "not_json", f"the body is not a JSON list: {error}") from None
    if len(values) > EVENTS_MAX:
        raise invalid(
            "body", f"the body has {len(values)} events; at most {EVENTS_MAX} are allowed"
        )
    return values
