"""Reads and writes the framing of one record inside a Kafka record batch (magic 2)."""

from collections.abc import Sequence

from stream.errors import Inconsistent

Headers = list[tuple[str, bytes | None]]


def varint(number: int) -> bytes:
    """Return the zigzag varint of a signed integer of up to 64 bits."""
    rest = (number << 1) ^ (number >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def frame(
    offset_delta: int,
    ts_delta_ms: int,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]] = (),
) -> bytes:
    """Return one record as it is stored in the records section of a batch."""
    parts = [b"\0", varint(ts_delta_ms), varint(offset_delta), _sized(key), _sized(value)]
    parts.append(varint(len(headers)))
    for name, content in headers:
        parts += (_sized(name.encode()), _sized(content))
    body = b"".join(parts)
    return varint(len(body)) + body


def record_header(data: memoryview, at: int) -> tuple[int, int, int]:
    """Return the end of the record whose length field is at `at`, and its two deltas.

    The deltas are those of its time (ms) and of its offset, relative to its batch.
    """
    size, at = _read(data, at)
    ts_delta_ms, then = _read(data, at + 1)
    offset_delta, _ = _read(data, then)
    return at + size, ts_delta_ms, offset_delta


def unframe(data: memoryview, at: int) -> tuple[bytes | None, bytes | None, Headers]:
    """Return the key, value and headers of the record whose length field is at `at`."""
    size, at = _read(data, at)
    record = data[at : at + size]
    _, at = _read(record, 1)
    _, at = _read(record, at)
    key, at = _take(record, at)
    value, at = _take(record, at)
    count, at = _read(record, at)
    headers: Headers = []
    for _ in range(count):
        name, at = _take(record, at)
        content, at = _take(record, at)
        # header names should be UTF-8; a record with another name must still reach the DLQ
        headers.append(((name or b"").decode("utf-8", "replace"), content))
    return key, value, headers


def _sized(content: bytes | None) -> bytes:
    return varint(-1) if content is None else varint(len(content)) + content


def _take(record: memoryview, at: int) -> tuple[bytes | None, int]:
    size, at = _read(record, at)
    if size < 0:
        return None, at
    if at + size > len(record):
        raise Inconsistent("a field of a Kafka record is longer than the rest of the record")
    return bytes(record[at : at + size]), at + size


def _read(record: memoryview, at: int) -> tuple[int, int]:
    rest = 0
    for shift in range(0, 70, 7):
        if at >= len(record):
            break
        byte = record[at]
        at += 1
        rest |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (rest >> 1) ^ -(rest & 1), at
    raise Inconsistent("a varint of a Kafka record does not end within the record")
