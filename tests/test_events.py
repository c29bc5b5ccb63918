"""Laws of the wire: one record is judged alone, by the same rules on both paths."""

import json
import math
import subprocess
import sys
import warnings
from random import Random
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream import fast_parser
from stream.errors import BadEvent, Inconsistent
from stream.events import (
    KINDS,
    Decoded,
    Impression,
    Item,
    Rating,
    check,
    decode,
    parse,
    schemas,
    topic_kind,
)
from stream.framing import frame, unframe
from stream.records import RecordBatch
from stream.reference_parser import REASONS

T = 1_790_000_000_000
DAY = 86_400_000
HEADER_BYTES = 61  # of a magic-2 batch, before its records

RATING: dict[str, Any] = {
    "v": 1,
    "type": "rating",
    "event_id": "r-1",
    "ts_ms": T,
    "user_id": "7",
    "item_id": "50",
    "value": 4.0,
}
CLICK = {
    "type": "click",
    "event_id": "c-1",
    "ts_ms": T,
    "user_id": "7",
    "item_id": "50",
    "impression_id": "s-9",
}
IMPRESSION = {
    "v": 1,
    "type": "impression",
    "event_id": "i-1",
    "ts_ms": T,
    "impression_id": "s-9",
    "user_id": "7",
    "item_id": "50",
    "position": 1,
    "propensity": 0.12,
    "shown": False,
    "show_probability": 0.5,
}
USER = {
    "event_id": "u-1",
    "ts_ms": T,
    "user_id": "7",
    "attributes": {"age": 24, "occupation": "writer", "new": True},
}
ITEM = {
    "event_id": "m-1",
    "ts_ms": T,
    "item_id": "50",
    "title": "Star Wars",
    "attributes": {"genre": ["Action", "Sci-Fi"], "year": 1977},
}
SAMPLES: dict[str, dict[str, Any]] = {
    "rating": RATING,
    "click": CLICK,
    "impression": IMPRESSION,
    "user": USER,
    "item": ITEM,
}


def batch_of(
    values: list[bytes | None],
    kind: str = "rating",
    *,
    base: int = 0,
    fetch: int = 0,
    key: bytes | None = b"key",
    headers: list[tuple[str, bytes | None]] | None = None,
    log_append: bool = False,
    max_ts_ms: int = T,
) -> RecordBatch:
    data = b"".join(frame(i, i, key, value, headers or []) for i, value in enumerate(values))
    count = len(values)
    topic = f"counterflow.{kind}.v1"
    return RecordBatch(
        topic, kind, 0, base, fetch, base + count, T, max_ts_ms, log_append, count, data
    )


def text(decoded: Decoded, name: str, row: int) -> bytes:
    at, length = getattr(decoded, f"{name}_at")[row], getattr(decoded, f"{name}_len")[row]
    return bytes(decoded.data[at : at + length])


def row_of(decoded: Decoded, row: int) -> tuple[Any, ...]:
    ids = tuple(text(decoded, name, row) for name in ("event", "user", "item", "impression"))
    numbers = (decoded.value[row], decoded.propensity[row], decoded.show_probability[row])
    return (
        KINDS[decoded.kind[row]],
        int(decoded.ts_ms[row]),
        ids,
        tuple(None if math.isnan(number) else float(number) for number in numbers),
        int(decoded.position[row]),
        bool(decoded.shown[row]),
    )


def row_expected(kind: str, event: Any) -> tuple[Any, ...]:
    def given_or(name: str, default: Any) -> Any:
        found = getattr(event, name, msgspec.UNSET)
        return default if found is msgspec.UNSET else found

    return (
        kind,
        event.ts_ms,
        tuple(
            given_or(name, "").encode()
            for name in ("event_id", "user_id", "item_id", "impression_id")
        ),
        (given_or("value", None), given_or("propensity", None), given_or("show_probability", 1.0)),
        given_or("position", 0),
        given_or("shown", True),
    )


def assert_same_judgement(kind: str, values: list[bytes | None]) -> Decoded:
    """The poll's decode equals the reference reading of each record alone, in order."""
    decoded = decode([batch_of(values, kind)])
    good: list[tuple[int, tuple[Any, ...]]] = []
    bad: list[tuple[int, str, str]] = []
    for offset, value in enumerate(values):
        try:
            event = parse(kind, value, T + offset)
            good.append((offset, row_expected(kind, event)))
        except BadEvent as error:
            bad.append((offset, error.reason, error.detail))
    assert [(int(decoded.offset[i]), row_of(decoded, i)) for i in range(len(decoded))] == good
    assert [(record.offset, record.reason, record.detail) for record in decoded.bad] == bad
    assert all(record.value == values[record.offset] for record in decoded.bad)
    return decoded


# ---- good records ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_columns(kind: str) -> None:
    decoded = assert_same_judgement(kind, [orjson.dumps(SAMPLES[kind])])
    assert len(decoded) == 1
    assert decoded.kafka_ts_ms.tolist() == [T]


@pytest.mark.parametrize("kind", ["rating", "click", "impression"])
def test_plain_events_stay_in_the_compiled_scanner(kind: str) -> None:
    value = b" " + orjson.dumps({**SAMPLES[kind], "extra": None, "more": "x", "n": -1.5e3}) + b"\n"
    decoded = decode([batch_of([value], kind)])
    # ids still lie inside the record: the reference parser would have put them behind the arena
    assert text(decoded, "user", 0) == b"7"
    assert decoded.user_at[0] < len(batch_of([value], kind).data)


def test_user_and_item_events_carry_title_and_attributes() -> None:
    users = batch_of([b"bad", orjson.dumps(USER), None], "user", key=b"9")
    items = batch_of([orjson.dumps(ITEM)], "item")
    decoded = decode([users, items])
    user, removed, item = decoded.attributes
    assert (user.index, user.kind, user.id, user.attributes) == (0, "user", "7", USER["attributes"])
    assert (removed.index, removed.id, removed.attributes) == (1, "9", None)
    assert (item.index, item.title, item.attributes) == (2, "Star Wars", ITEM["attributes"])
    assert decoded.batch.tolist() == [0, 0, 1]
    assert text(decoded, "user", 1) == b"9" and decoded.event_len[1] == 0


def test_a_null_value_removes_users_and_items_and_is_bad_elsewhere() -> None:
    for kind in ("user", "item"):
        decoded = decode([batch_of([None], kind, key="ü".encode())])
        assert [(event.id, event.attributes) for event in decoded.attributes] == [("ü", None)]
        for key, reason in ((None, "missing_field"), (b"", "bad_id"), (b"\xff", "bad_id")):
            (record,) = decode([batch_of([None], kind, key=key)]).bad
            assert (record.reason, record.key, record.value) == (reason, key, None)
    for kind in ("rating", "click", "impression"):
        (record,) = decode([batch_of([None], kind)]).bad
        assert record.reason == "no_value"


def test_ids_with_escapes_and_beyond_ascii_are_their_text() -> None:
    value = orjson.dumps({**RATING, "item_id": "héé"}).replace(b'"7"', b'"\\u0037\\n"')
    decoded = assert_same_judgement("rating", [value])
    assert text(decoded, "user", 0) == b"7\n"
    assert text(decoded, "item", 0) == "héé".encode()


def test_records_below_the_fetch_offset_are_not_part_of_the_poll() -> None:
    values: list[bytes | None] = [
        orjson.dumps({**RATING, "event_id": f"r-{i}"}) if i % 2 else b"bad" for i in range(6)
    ]
    decoded = decode([batch_of(values, base=100, fetch=103)])
    assert decoded.offset.tolist() == [103, 105]
    assert [record.offset for record in decoded.bad] == [104]


def test_log_append_time_is_every_records_time() -> None:
    late = T + 5
    batch = batch_of([orjson.dumps(RATING), b"x"], log_append=True, max_ts_ms=late)
    decoded = decode([batch])
    assert decoded.kafka_ts_ms.tolist() == [late]
    assert decoded.bad[0].timestamp_ms == late
    assert decode([batch_of([b"y", b"x"])]).bad[1].timestamp_ms == T + 1


def test_an_empty_poll_has_no_rows() -> None:
    decoded = decode([])
    assert len(decoded) == 0 and decoded.bad == [] and decoded.attributes == []


def test_the_rating_scale_is_the_callers() -> None:
    batch = batch_of([orjson.dumps({**RATING, "value": value}) for value in (0, 1, 0.5, 7)])
    assert decode([batch], rating_scale=(0, 1)).value.tolist() == [0.0, 1.0, 0.5]


def test_records_as_kafka_python_frames_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python's, at its import
        from kafka.record.default_records import DefaultRecordBatchBuilder
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    headers = [("trace", b"\x00\xff"), ("none", None)]
    for i, value in enumerate((orjson.dumps(RATING), b"{", None)):
        key = None if i == 1 else b"k"
        builder.append(i, timestamp=T + 1000 * i, key=key, value=value, headers=headers)
    data = bytes(builder.build())[HEADER_BYTES:]
    assert data == b"".join(
        frame(i, 1000 * i, None if i == 1 else b"k", value, headers)
        for i, value in enumerate((orjson.dumps(RATING), b"{", None))
    )
    decoded = decode([RecordBatch("t", "rating", 0, 10, 0, 13, T, T + 2000, False, 3, data)])
    assert decoded.offset.tolist() == [10]
    cut, null = decoded.bad
    assert (cut.offset, cut.key, cut.value, cut.reason) == (11, None, b"{", "not_json")
    assert (null.offset, null.key, null.value, null.reason) == (12, b"k", None, "no_value")
    assert cut.headers == null.headers == headers
    assert (cut.timestamp_ms, null.timestamp_ms) == (T + 1000, T + 2000)
    assert cut.stage == "decode"


# ---- reasons -----------------------------------------------------------------------------------

# for each reason, a way to make it hold and none of those before it; on a rating unless named
FAULTS: dict[str, Any] = {
    "unknown_version": {"v": 2},
    "unknown_type": {"type": "click"},
    "missing_field": {"user_id": ...},
    "wrong_type": {"item_id": 50},
    "not_finite": {"value": math.inf},
    "bad_id": {"event_id": ""},
    "bad_time": {"ts_ms": -1},
    "out_of_range": {"value": 6.0},
}
AFTER = ("value", "event_id", "ts_ms", "user_id", "item_id")


def encoded(document: dict[str, Any]) -> bytes:
    kept = {name: content for name, content in document.items() if content is not ...}
    # a number beyond every double: JSON, and not finite
    return msgspec.json.encode(
        {n: msgspec.Raw(b"1e999") if c == math.inf else c for n, c in kept.items()}
    )


def reason(kind: str, value: bytes | None, ts_ms: int = T) -> str | None:
    try:
        parse(kind, value, ts_ms)
    except BadEvent as error:
        return error.reason
    return None


def test_the_first_reason_that_holds_is_given() -> None:
    order = [name for name in REASONS if name in FAULTS]
    for i, first in enumerate(order):
        assert reason("rating", encoded({**RATING, **FAULTS[first]})) == first
        for later in order[i + 1 :]:
            both = {**RATING, **FAULTS[later], **FAULTS[first]}
            assert reason("rating", encoded(both)) == first, (first, later)


def test_reasons_of_bytes_come_before_those_of_fields() -> None:
    assert reason("rating", None) == "no_value"
    assert reason("rating", b"\xff" * 65_537) == "too_large"
    assert reason("rating", b'{"\xff') == "not_utf8"
    for value in (b"", b"{", b"nan", b"[1,]", b'{"a":NaN}', b'"\\ud800"', b"\xef\xbb\xbf{}"):
        assert reason("rating", value) == "not_json"
    for value in (b"1", b"[]", b"null", b'"x"', b"1e999"):
        assert reason("rating", value) == "not_object"


@pytest.mark.parametrize(
    ("kind", "change", "wanted"),
    [
        ("rating", {"v": True}, "unknown_version"),
        ("rating", {"v": "1"}, "unknown_version"),
        ("rating", {"type": None}, "unknown_type"),
        ("rating", {"value": ...}, "missing_field"),
        ("rating", {"value": "4"}, "wrong_type"),
        ("rating", {"value": True}, "wrong_type"),
        ("rating", {"ts_ms": T + 0.5}, "wrong_type"),
        ("rating", {"ts_ms": True}, "wrong_type"),
        ("rating", {"user_id": None}, "wrong_type"),
        ("rating", {"impression_id": 9}, "wrong_type"),
        ("rating", {"position": "ignored"}, None),
        ("rating", {"user_id": "x" * 256}, None),
        ("rating", {"user_id": "x" * 257}, "bad_id"),
        ("rating", {"user_id": "é" * 129}, "bad_id"),
        ("rating", {"ts_ms": T + DAY}, None),
        ("rating", {"ts_ms": T + DAY + 1}, "bad_time"),
        ("rating", {"ts_ms": 2**63}, "bad_time"),
        ("rating", {"ts_ms": 1e30}, "bad_time"),
        ("rating", {"value": 0.999}, "out_of_range"),
        ("rating", {"value": 5}, None),
        ("impression", {"position": 0}, "out_of_range"),
        ("impression", {"position": 2**31}, "out_of_range"),
        ("impression", {"position": 1.5}, "wrong_type"),
        ("impression", {"propensity": 0}, "out_of_range"),
        ("impression", {"propensity": 1}, None),
        ("impression", {"propensity": 1.01}, "out_of_range"),
        ("impression", {"propensity": math.inf}, "not_finite"),
        ("impression", {"show_probability": 0.0}, "out_of_range"),
        ("impression", {"shown": 1}, "wrong_type"),
        ("impression", {"impression_id": ...}, None),
        ("click", {"impression_id": ""}, "bad_id"),
        ("item", {"title": 5}, "wrong_type"),
        ("item", {"attributes": []}, "wrong_type"),
        ("item", {"attributes": {"x": None}}, "wrong_type"),
        ("item", {"attributes": {"x": {"y": 1}}}, "wrong_type"),
        ("item", {"attributes": {"x": ["a", 1]}}, "wrong_type"),
        ("item", {"attributes": ...}, None),
        ("item", {"attributes": {str(i): i for i in range(64)}}, None),
        ("item", {"attributes": {str(i): i for i in range(65)}}, "too_many"),
        ("user", {"attributes": {"a": ["x"] * 128, "b": ["x"] * 128}}, None),
        ("user", {"attributes": {"a": ["x"] * 128, "b": ["x"] * 129}}, "too_many"),
    ],
)
def test_each_field_is_held_to_the_contract(kind: str, change: Any, wanted: str | None) -> None:
    value = encoded({**SAMPLES[kind], **change})
    assert reason(kind, value) == wanted
    assert_same_judgement(kind, [orjson.dumps(SAMPLES[kind]), value])


def test_an_attribute_beyond_every_double_is_not_finite() -> None:
    value = orjson.dumps(ITEM).replace(b"1977", b"1e999")
    assert reason("item", value) == "not_finite"


def test_a_value_of_64_kib_is_the_largest() -> None:
    body = orjson.dumps(RATING)
    full = body + b" " * (65_536 - len(body))
    assert [reason("rating", value) for value in (full, full + b" ")] == [None, "too_large"]
    assert_same_judgement("rating", [full, full + b" "])


def test_a_record_without_a_kafka_time_has_no_upper_bound_on_its_own() -> None:
    assert reason("rating", orjson.dumps({**RATING, "ts_ms": 2**62}), ts_ms=-1) is None


def test_a_posted_event_names_its_own_type() -> None:
    event = parse(None, orjson.dumps(RATING), T)
    assert isinstance(event, Rating) and event.value == 4.0
    assert isinstance(check(None, {**ITEM, "type": "item"}, T), Item)
    for document, wanted in ((ITEM, "missing_field"), ({"type": "x"}, "unknown_type")):
        with pytest.raises(BadEvent) as caught:
            check(None, document, T)
        assert caught.value.reason == wanted


# ---- both paths agree --------------------------------------------------------------------------

CONTENTS = [
    b"1", b"1.0", b"-0", b"-0.0", b"0", b"01", b"1.", b".5", b"4e0", b"40e-1", b"4E+0", b"1e",
    b"1e-", b"0.1", b"3.14159265358979", b"3.141592653589793238", b"1e22", b"1e23", b"1e999", b"-1",
    b"123456789012345678", b"1234567890123456789012", b"null", b"true", b"false", b"tru", b"NaN",
    b'""', b'"a"', b'"7"', b'"\\u0041"', b'"\xc3\xa9"', b'"\xff"', b'"rating"', b'"click"', b"[]",
    b"{}", b'["a"]', b'{"a":1}', b'"a\nb"', b'"' + b"x" * 257 + b'"', b"1790000000000",
    b"1790086400000", b"1790086400002", b'"\x7f"', b"+1", b"1 2", b"",
]  # fmt: skip
FIELDS = [
    b"v", b"type", b"event_id", b"ts_ms", b"user_id", b"item_id", b"impression_id", b"value",
    b"position", b"propensity", b"shown", b"show_probability", b"title", b"attributes", b"x", b"",
    b"show_probability2", b"value\\u0031",
]  # fmt: skip
SPACES = [b"", b" ", b"\t", b"\n", b"\r", b"\x0b", b"\xc2\xa0"]


@st.composite
def documents(draw: st.DrawFn, kind: str) -> bytes:
    """An event with fields changed, doubled, left out, reordered; then perhaps bytes changed."""
    pairs = [(name.encode(), orjson.dumps(body)) for name, body in SAMPLES[kind].items()]
    for _ in range(draw(st.integers(0, 3))):
        pair = (draw(st.sampled_from(FIELDS)), draw(st.sampled_from(CONTENTS)))
        spot = draw(st.integers(0, len(pairs)))
        if draw(st.booleans()):
            pairs = [kept for kept in pairs if kept[0] != pair[0]]
        pairs.insert(spot, pair)
    if draw(st.integers(0, 5)) == 0 and pairs:
        pairs.pop(draw(st.integers(0, len(pairs) - 1)))
    pairs = draw(st.permutations(pairs)) if draw(st.booleans()) else pairs
    gap = draw(st.sampled_from(SPACES[:5])) if draw(st.booleans()) else b""
    glue = gap + b"," + gap
    value = bytearray(b"{" + glue.join(b'"%s":%s%s' % (n, gap, c) for n, c in pairs) + gap + b"}")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        spot = draw(st.integers(0, len(value) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                value[spot] = draw(st.integers(0, 255))
            case 1:
                del value[spot]
            case 2:
                value[spot:spot] = draw(st.sampled_from([*SPACES, b'"', b"{", b"}", b",", b"\\"]))
            case _:
                del value[spot:]
        if not value:
            break
    return bytes(value)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_poll_of_mutated_records_is_judged_as_each_alone(kind: str, data: st.DataObject) -> None:
    good = orjson.dumps(SAMPLES[kind])
    values: list[bytes | None] = [good]
    for value in data.draw(st.lists(documents(kind), min_size=1, max_size=6)):
        values += [value, good]
    assert_same_judgement(kind, values)


@pytest.mark.parametrize("kind", ["rating", "click", "impression"])
def test_every_change_of_one_byte_is_judged_as_the_reference_does(kind: str) -> None:
    whole = orjson.dumps(SAMPLES[kind])
    spots = range(len(whole))
    values: list[bytes | None] = [whole[:i] + whole[i + 1 :] for i in spots]
    values += [whole[:i] for i in spots]
    values += [whole[:i] + bytes([byte]) + whole[i + 1 :] for i in spots for byte in range(256)]
    decoded = assert_same_judgement(kind, values)
    assert len(decoded) > len(spots) and len(decoded.bad) > len(spots)


def test_the_time_bounds_are_exact_in_the_scanner() -> None:
    limit = T + DAY
    for ts_ms, wanted in ((limit, []), (limit + 1, ["bad_time"]), (0, []), (-1, ["bad_time"])):
        decoded = decode([batch_of([orjson.dumps({**RATING, "ts_ms": ts_ms})])])
        assert [record.reason for record in decoded.bad] == wanted


@settings(max_examples=300, deadline=None)
@given(st.floats(1, 5) | st.decimals(1, 5, places=6).map(float), st.sampled_from("gfe"))
def test_decimals_are_read_to_the_nearest_double(value: float, spelling: str) -> None:
    words = [repr(value), format(value, f".9{spelling}"), format(value, ".0f")]
    values: list[bytes | None] = [
        orjson.dumps(RATING).replace(b":4.0", b":" + word.encode()) for word in words
    ]
    decoded = assert_same_judgement("rating", values)
    assert decoded.value.tolist() == [float(word) for word in words if 1 <= float(word) <= 5]


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=60))
def test_any_text_is_an_id_and_comes_back_as_utf8(name: str) -> None:
    value = msgspec.json.encode({**RATING, "user_id": name})
    decoded = assert_same_judgement("rating", [value])
    assert text(decoded, "user", 0) == name.encode()


# ---- the contract's list, read a second time ---------------------------------------------------

TEXTS = ("event_id", "user_id", "item_id", "impression_id", "title")
WHOLES = ("ts_ms", "position")
REALS = ("value", "propensity", "show_probability")
COMMON = ("event_id", "ts_ms")
KNOWN = {  # what a kind must have, and what it may have
    "rating": ((*COMMON, "user_id", "item_id", "value"), ("impression_id",)),
    "click": ((*COMMON, "user_id", "item_id"), ("impression_id",)),
    "impression": (
        (*COMMON, "user_id", "item_id"),
        ("impression_id", "position", "propensity", "shown", "show_probability"),
    ),
    "user": ((*COMMON, "user_id"), ("attributes",)),
    "item": ((*COMMON, "item_id"), ("title", "attributes")),
}


def right_type(name: str, content: Any) -> bool:
    number = isinstance(content, int | float) and not isinstance(content, bool)
    if name in TEXTS:
        return isinstance(content, str)
    if name in WHOLES:  # a double from 2**63 on is whole, however it is spelt
        return number and (isinstance(content, int) or abs(content) >= 2**63)
    if name in REALS:
        return number
    if name == "shown":
        return isinstance(content, bool)
    return isinstance(content, dict) and all(
        isinstance(said, str | int | float)
        or (isinstance(said, list) and all(isinstance(member, str) for member in said))
        for said in content.values()
    )


def as_the_contract_says(kind: str, value: bytes | None, kafka_ts_ms: int) -> str | None:
    """The first reason that holds, None for an event; shares no code with the package."""

    def refused(constant: str) -> None:
        raise ValueError(constant)

    if value is None:
        return "no_value"
    if len(value) > 64 * 1024:
        return "too_large"
    try:
        spelt = value.decode("utf-8")
    except UnicodeDecodeError:
        return "not_utf8"
    try:
        read = json.loads(spelt, parse_constant=refused)
        json.dumps(read, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no text
    except ValueError:
        return "not_json"
    if not isinstance(read, dict):
        return "not_object"
    if "v" in read and (type(read["v"]) is not int or read["v"] != 1):
        return "unknown_version"
    if "type" in read and read["type"] != kind:
        return "unknown_type"
    needed, allowed = KNOWN[kind]
    if any(name not in read for name in needed):
        return "missing_field"
    event = {name: read[name] for name in (*needed, *allowed) if name in read}
    if not all(right_type(name, content) for name, content in event.items()):
        return "wrong_type"
    attributes = event.get("attributes", {})
    numbers = [c for c in (*event.values(), *attributes.values()) if isinstance(c, int | float)]
    if any(abs(number) > sys.float_info.max for number in numbers):
        return "not_finite"
    ids = [event[name].encode() for name in TEXTS[:4] if name in event]
    if any(not 1 <= len(id_) <= 256 for id_ in ids):
        return "bad_id"
    if event["ts_ms"] < 0 or event["ts_ms"] - kafka_ts_ms > 24 * 60 * 60 * 1000:
        return "bad_time"
    chances = [event[name] for name in REALS[1:] if name in event]
    if (
        not 1 <= event.get("value", 1) <= 5
        or not 1 <= event.get("position", 1) < 2**31
        or not all(0 < chance <= 1 for chance in chances)
    ):
        return "out_of_range"
    members = sum(len(said) for said in attributes.values() if isinstance(said, list))
    return "too_many" if len(attributes) > 64 or members > 256 else None


WORDS: tuple[bytes, ...] = (
    b"null", b"true", b"false", b"[]", b"{}", b"0", b"-0", b"-0.0", b"1", b"1.0", b"1e0", b"2",
    b"-1", b"0.5", b"5", b"5.0", b"5.000001", b"0.999", b"6e3", b"1e-400", b"1e999", b"-1e999",
    b"1e19", b"1e16", b"9223372036854775807", b"9223372036854775808", b"-9223372036854775809",
    b"18446744073709551616", b"2147483647", b"2147483648", b"1.7976931348623159e308", b"NaN",
    b"-Infinity", b"01", b"1.", b"+1", b'""', b'"x"', b'"rating"', b'"item"', b'"\\ud800"',
    b'"\\ud83d\\ude00"', b'"\\u0000"', b'"\\x"', b'"\x01"', b'"\xff"', b'"\xed\xa0\x80"',
    b'"' + b"x" * 256 + b'"', b'"' + b"x" * 257 + b'"', '"{}"'.format("é" * 128).encode(),
    '"{}"'.format("é" * 129).encode(), '"{}"'.format("\N{GRINNING FACE}" * 64).encode(),
    '"{}"'.format("\N{GRINNING FACE}" * 65).encode(), b'["a"]', b'["a",1]', b'[["a"]]',
    b'{"a":1}', b'{"a":"b"}', b'{"a":null}', b'{"a":1e999}', b'{"a":["x"],"b":{}}', b'{"a":[1]}',
    *(b"%d" % (T + ahead) for ahead in (0, DAY - 1, DAY, DAY + 1)),
    *(b"{%s}" % b",".join(b'"%d":%d' % (n, n) for n in range(count)) for count in (64, 65)),
    *(b'{"a":[%s]}' % b",".join([b'"x"'] * count) for count in (256, 257)),
    b'{"a":true,"b":-0.0,"c":"","d":[]}', b"7" * 4_000, b"-" + b"7" * 4_000,
)  # fmt: skip
NAMES = (
    "v", "type", *COMMON, "user_id", "item_id", "impression_id", "title", "attributes", "shown",
    *WHOLES, *REALS, "unknown", "",
)  # fmt: skip


def mutated(kind: str, random: Random) -> bytes | None:
    """A good record of the kind, some of its parts changed, then some of its bytes."""
    pairs = [(name, orjson.dumps(content)) for name, content in SAMPLES[kind].items()]
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        spot = random.randrange(len(pairs)) if pairs else 0
        match random.randrange(6):
            case 0 if pairs:
                del pairs[spot]
            case 1:
                pairs.insert(spot, (random.choice(NAMES), random.choice(WORDS)))
            case 2:
                random.shuffle(pairs)
            case _ if pairs:
                pairs[spot] = (pairs[spot][0], random.choice(WORDS))
    value = b"{" + b",".join(b'"%s":%s' % (name.encode(), word) for name, word in pairs) + b"}"
    spot = random.randrange(len(value))
    match random.randrange(24):
        case 0:
            return value[:spot]
        case 1:
            return value[:spot] + value[spot + 1 :]
        case 2 | 3:
            flipped = bytes([value[spot] ^ 1 << random.randrange(8)])
            return value[:spot] + flipped + value[spot + 1 :]
        case 4:
            return value[:spot] + bytes([random.randrange(256)]) + value[spot:]
        case 5:
            return value + b" " * (65_536 - len(value) + random.randrange(2))
        case 6:
            return random.choice(WORDS)
        case 7:
            return None if kind not in ("user", "item") else b""
    return value


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_records_get_the_contracts_reason_as_read_a_second_time(kind: str) -> None:
    random = Random(f"mutations of {kind}")
    values = [mutated(kind, random) for _ in range(2_000)]
    decoded = decode([batch_of(values, kind, log_append=True)])
    found: list[str | None] = [None] * len(values)
    for record in decoded.bad:
        found[record.offset] = record.reason
    wanted = [as_the_contract_says(kind, value, T) for value in values]
    wrong = [row for row in zip(values, found, wanted, strict=True) if row[1] != row[2]]
    assert not wrong, (len(wrong), wrong[:3])
    not_here = {
        "rating": {"too_many"},
        "click": {"too_many", "out_of_range"},
        "impression": {"too_many"},
        "user": {"no_value", "out_of_range"},
        "item": {"no_value", "out_of_range"},
    }
    assert set(wanted) == {None, *REASONS} - not_here[kind]


# ---- borders -----------------------------------------------------------------------------------


def test_neighbours_that_would_mend_each_other_are_both_bad() -> None:
    good = orjson.dumps(RATING)
    two = good + b"," + good
    for cut in range(1, len(good)):
        values: list[bytes | None] = [good, two, good[:cut], good[cut:], good]
        decoded = assert_same_judgement("rating", values)
        assert decoded.offset.tolist() == [0, 4]
        assert [record.value for record in decoded.bad] == values[1:4]


def test_a_million_pairs_of_broken_neighbours_are_never_accepted() -> None:
    # '#' stands for a digit and occurs in no framing byte: lengths and offsets are even zigzags
    one = orjson.dumps({**RATING, "event_id": "r-####", "user_id": "###", "item_id": "##"})
    whole = one + b"," + one
    inner = [cut for cut in range(len(whole) + 1) if cut not in (len(one), len(one) + 1)]
    block = b"".join(
        frame(2 * i, 0, b"k", whole[:cut]) + frame(2 * i + 1, 0, b"k", whole[cut:])
        for i, cut in enumerate(inner)
    )
    repeats = -(-1_000_000 // len(inner))
    random = np.random.default_rng(3)
    template = np.frombuffer(block, np.uint8)
    hashes = np.flatnonzero(template == ord("#"))
    tried = 0
    for start in range(0, repeats, 500):
        count = min(500, repeats - start)
        data = np.tile(template, (count, 1))
        data[:, hashes] = random.integers(48, 58, (count, len(hashes)), np.uint8)
        records = 2 * len(inner) * count
        status = statuses(data.reshape(-1), records)
        assert len(status) == records and np.all(status == fast_parser.DEFERRED)
        tried += records // 2
    assert tried >= 1_000_000


def statuses(data: np.ndarray, count: int) -> np.ndarray:
    """What the fast parser alone says of the ratings in one batch."""
    from stream.events import _ColumnBuffers

    rows = _ColumnBuffers(count)
    places = np.array([[0, len(data), 0, 0, T, T, 0, 0, count]])
    padded = np.concatenate((data, np.zeros(8, np.uint8)))
    fast_parser.parse_batches(padded.ctypes.data, places, 1.0, 5.0, *rows.columns())
    assert rows.result[0] == count and rows.result[1] == -1
    return rows.status


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_broken_framing_names_its_batch_and_reads_nothing_beyond_it(data: st.DataObject) -> None:
    good = batch_of([orjson.dumps(RATING)] * 3)
    raw = bytearray(good.data)
    cut = data.draw(st.integers(0, len(raw) - 1))
    broken = batch_of([], base=500)
    with pytest.raises(Inconsistent, match=r"rating\.v1-0@500"):
        decode([good, replaced(broken, bytes(raw[:cut]), 3), good])
    raw[cut] = data.draw(st.integers(0, 255))
    try:
        assert len(decode([good, replaced(broken, bytes(raw), 3), good])) >= 6
    except Inconsistent as error:
        assert "rating.v1-0@500" in error.message


def replaced(batch: RecordBatch, data: bytes, count: int) -> RecordBatch:
    return RecordBatch(batch.topic, batch.kind, 0, 500, 0, 503, T, T, False, count, data)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**62), 2**62),
    st.none() | st.binary(max_size=200),
    st.none() | st.binary(max_size=200),
    st.lists(st.tuples(st.text(max_size=9), st.none() | st.binary(max_size=9)), max_size=3),
)
def test_a_framed_record_comes_back_untouched(
    step: int, delta: int, key: Any, value: Any, headers: Any
) -> None:
    record = frame(step, delta, key, value, headers)
    assert unframe(memoryview(b"xy" + record + b"z"), 2) == (key, value, headers)


# ---- types and names ---------------------------------------------------------------------------


def test_schemas_say_what_is_required() -> None:
    made = schemas()
    assert tuple(made) == KINDS
    rating = made["rating"]["$defs"]["Rating"]
    assert rating["required"] == ["event_id", "ts_ms", "user_id", "item_id", "value"]
    assert rating["properties"]["v"]["enum"] == [1]
    assert made["item"]["$defs"]["Item"]["required"] == ["event_id", "ts_ms", "item_id"]
    assert orjson.loads(orjson.dumps(made)) == made


def test_an_encoded_event_is_parsed_to_itself() -> None:
    event = Impression(event_id="i", ts_ms=T, user_id="u", item_id="m", position=3)
    assert parse("impression", msgspec.json.encode(event), T) == event


def test_topics_name_their_kind() -> None:
    assert topic_kind("counterflow.rating.v1") == "rating"
    assert topic_kind("my.own.prefix.item.v1", "my.own.prefix") == "item"
    for topic in ("rating", "rating.v1", ".rating.v1", "counterflow.dlq.v1", "a.rating.v2"):
        assert topic_kind(topic) is None
    assert topic_kind("other.rating.v1", "counterflow") is None


def test_the_reference_parser_needs_neither_numba_nor_torch() -> None:
    code = "import sys, stream.events as e; e.parse; print({'numba', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
