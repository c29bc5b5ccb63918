"""The fast parser: it turns record batches into columns without a Python object per event.

It reads each value strictly within its record's bounds. It accepts only flat JSON objects of plain
ASCII strings, short decimals and literals. Every other record is left to the reference parser
(reference_parser.py), which alone rejects records.
"""

import importlib
import sys
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from stream.compiled import compiled
from stream.schemas import DAY_MS, ID_MAX_BYTES, KINDS, NUMBER_MAX, VALUE_MAX_BYTES

ir: Any = importlib.import_module("llvmlite.ir")  # llvmlite has no type annotations

# values of `status`: accepted, or left to the reference parser
ACCEPTED, DEFERRED = 1, 2
# rows of `at` and `length`
EVENT, USER, ITEM, IMPRESSION = 0, 1, 2, 3
# rows of `number`
VALUE, PROPENSITY, SHOW_PROBABILITY = 0, 1, 2

_ID_MAX, _VALUE_MAX, _DAY, _INT32_MAX = ID_MAX_BYTES, VALUE_MAX_BYTES, DAY_MS, 2**31 - 1
_NUMBER_MAX = NUMBER_MAX
_USER_KIND = KINDS.index("user")
_RATING, _IMPRESSION = KINDS.index("rating"), KINDS.index("impression")

_QUOTE, _COMMA, _COLON, _OPEN, _CLOSE = 34, 44, 58, 123, 125
_MINUS, _PLUS, _DOT, _ZERO, _NINE, _E, _e = 45, 43, 46, 48, 57, 69, 101

_TENS = np.array([10.0**power for power in range(23)])  # exact: 10**22 < 2**53 * 2**22

_TYPE_NAMES = np.zeros((len(KINDS), 16), np.uint8)
_TYPE_SIZES = np.array([len(kind) for kind in KINDS])
for _row, _kind in enumerate(KINDS):
    _TYPE_NAMES[_row, : len(_kind)] = np.frombuffer(_kind.encode(), np.uint8)


def _pack(name: str) -> int:
    return int.from_bytes(name.encode(), "little")


# fields 0 to 3 are the ids, in the order of `at`; a name is compared as two words of 8 bytes
_F_TS, _F_VALUE, _F_PROPENSITY, _F_SHOW, _F_POSITION, _F_SHOWN, _F_V, _F_TYPE = range(4, 12)
_N_EVENT, _N_USER, _N_ITEM = _pack("event_id"), _pack("user_id"), _pack("item_id")
_N_IMPRESSI, _N_ON_ID = _pack("impressi"), _pack("on_id")
_N_TS, _N_VALUE, _N_POSITION, _N_SHOWN = map(_pack, ("ts_ms", "value", "position", "shown"))
_N_PROPENSI, _N_TY = _pack("propensi"), _pack("ty")
_N_SHOW_PRO, _N_BABILITY = _pack("show_pro"), _pack("bability")
_N_V, _N_TYPE = _pack("v"), _pack("type")

_NEED_ALL = 1 << EVENT | 1 << USER | 1 << ITEM | 1 << _F_TS
_NEED_RATING = _NEED_ALL | 1 << _F_VALUE


def _load(builder: Any, args: Any, bits: int) -> Any:
    place = builder.inttoptr(builder.add(*args), ir.IntType(bits).as_pointer())
    word = builder.load(place, align=1)
    return builder.bswap(word) if sys.byteorder == "big" and bits > 8 else word


def _byte_of(typing: Any, data: Any, p: Any) -> Any:
    """Compile to the byte at `p` as an int64."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(_load(builder, args, 8), ir.IntType(64))

    return types.int64(types.int64, types.int64), code


def _word_of(typing: Any, data: Any, p: Any) -> Any:
    """Compile to the 8 bytes at `p`, aligned or not, as one little-endian int64."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(builder, args, 64)

    return types.int64(types.int64, types.int64), code


def _run_of(typing: Any, data: Any, p: Any) -> Any:
    """Compile to the number of plain bytes at `p`, 8 at most.

    A plain byte is printable ASCII other than a quote and a backslash. All 8 bytes are tested at
    once: (x - 0x01..) & ~x & 0x80.. marks the lowest zero byte exactly, and (x - 0x20..) & ~x &
    0x80.. the lowest byte below 0x20 (Mycroft; Warren, Hacker's Delight, 6-1). Marks above the
    lowest one may be wrong, and are not used.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def each(byte: int) -> Any:
            return ir.Constant(ir.IntType(64), byte * 0x0101010101010101)

        def below(word: Any, byte: int) -> Any:
            return builder.and_(builder.sub(word, each(byte)), builder.not_(word))

        word = _load(builder, args, 64)
        marks = builder.or_(word, below(word, 0x20))
        for stop in (_QUOTE, 0x5C):
            marks = builder.or_(marks, below(builder.xor(word, each(stop)), 1))
        marks = builder.and_(marks, each(0x80))
        lowest = builder.cttz(marks, ir.Constant(ir.IntType(1), 0))  # 64 if none
        return builder.lshr(lowest, ir.Constant(ir.IntType(64), 3))

    return types.int64(types.int64, types.int64), code


_byte: Any = intrinsic(_byte_of)
_word: Any = intrinsic(_word_of)
_run: Any = intrinsic(_run_of)


def _varint(data: int, p: int, end: int) -> tuple[int, int]:
    """Return a zigzag varint and the position after it; -1 if it does not end before `end`."""
    rest: Any = 0
    shift = 0
    while p < end and shift < 70:
        byte = _byte(data, p)
        p += 1
        rest |= (byte & 0x7F) << shift
        if byte < 0x80:
            return ((rest >> 1) & 0x7FFFFFFFFFFFFFFF) ^ -(rest & 1), p
        shift += 7
    return 0, -1


def _is_space(byte: int) -> bool:
    """Return whether the byte is one of JSON's four white-space characters."""
    return byte <= 0x20 and (byte == 0x20 or byte == 0x0A or byte == 0x0D or byte == 0x09)


def _blank(data: int, p: int, end: int) -> int:
    """Return the first position from `p` on that is not white space."""
    while p < end and _is_space(_byte(data, p)):
        p += 1
    return p


def _string(data: int, p: int, end: int) -> int:
    """Return the first position whose byte is not plain (`_run_of`), or a position >= `end`."""
    while p < end:
        run = _run(data, p)
        p += run
        if run < 8:
            break
    return p


def _field(size: int, first: int, second: int) -> int:
    """Return the number of the field of that name, -1 if the name is not known."""
    if size == 7:
        if first == _N_USER:
            return USER
        if first == _N_ITEM:
            return ITEM
    elif size == 5:
        if first == _N_TS:
            return _F_TS
        if first == _N_VALUE:
            return _F_VALUE
        if first == _N_SHOWN:
            return _F_SHOWN
    elif size == 8:
        if first == _N_EVENT:
            return EVENT
        if first == _N_POSITION:
            return _F_POSITION
    elif size == 4:
        if first == _N_TYPE:
            return _F_TYPE
    elif size == 1:
        if first == _N_V:
            return _F_V
    elif size == 13:
        if first == _N_IMPRESSI and second == _N_ON_ID:
            return IMPRESSION
    elif size == 10:
        if first == _N_PROPENSI and second == _N_TY:
            return _F_PROPENSITY
    elif size == 16:
        if first == _N_SHOW_PRO and second == _N_BABILITY:
            return _F_SHOW
    return -1


def _decimal(data: int, p: int, end: int) -> tuple[int, int, int, bool]:
    """Return the position after a number, its digits as an integer, its power of ten, and its sign.

    The position is -1 for what is not a JSON number, has more than 18 digits or an exponent of more
    than two digits. The power is 0 only for a number written as an integer; a number with a
    fraction or an exponent whose power is 0 is marked by the power 100. The sign is true if
    negative.
    """
    negative = _byte(data, p) == _MINUS
    if negative:
        p += 1
    begin = p
    mantissa: Any = 0
    while p < end and _ZERO <= _byte(data, p) <= _NINE:
        mantissa = mantissa * 10 + (_byte(data, p) - _ZERO)
        p += 1
    digits = p - begin
    if digits == 0 or digits > 18 or (digits > 1 and _byte(data, begin) == _ZERO):
        return -1, 0, 0, negative
    power = 0
    plain = True
    if p < end and _byte(data, p) == _DOT:
        p += 1
        begin = p
        while p < end and _ZERO <= _byte(data, p) <= _NINE:
            mantissa = mantissa * 10 + (_byte(data, p) - _ZERO)
            p += 1
        if p == begin or digits + p - begin > 18:
            return -1, 0, 0, negative
        power = begin - p
        plain = False
    if p < end and (_byte(data, p) == _E or _byte(data, p) == _e):
        p += 1
        down = False
        if p < end and (_byte(data, p) == _PLUS or _byte(data, p) == _MINUS):
            down = _byte(data, p) == _MINUS
            p += 1
        begin = p
        exponent: Any = 0
        while p < end and _ZERO <= _byte(data, p) <= _NINE:
            exponent = exponent * 10 + (_byte(data, p) - _ZERO)
            p += 1
        if p == begin or p - begin > 2:
            return -1, 0, 0, negative
        power += -exponent if down else exponent
        plain = False
    if not plain and power == 0:
        power = 100
    return p, mantissa, power, negative


def _read(
    data: int,
    p: int,
    end: int,
    kind: int,
    kafka_ts: int,
    low: float,
    high: float,
    row: int,
    at: Any,
    length: Any,
    number: Any,
    ts: Any,
    position: Any,
    shown: Any,
) -> bool:
    """Fill the row from the value at `p:end`; return whether it is one plain event of that kind."""
    for j in range(4):
        at[j, row] = 0
        length[j, row] = 0
    number[VALUE, row] = np.nan
    number[PROPENSITY, row] = np.nan
    number[SHOW_PROBABILITY, row] = 1.0
    position[row] = 0
    shown[row] = True
    seen = 0
    p = _blank(data, p, end)
    if p >= end or _byte(data, p) != _OPEN:
        return False
    p = _blank(data, p + 1, end)
    while True:
        # name
        if p >= end or _byte(data, p) != _QUOTE:
            return False
        p += 1
        begin = p
        p = _string(data, p, end)
        if p >= end or _byte(data, p) != _QUOTE:
            return False
        size = p - begin
        first = _word(data, begin)
        second = 0
        if size < 8:
            first &= (1 << (8 * size)) - 1
        elif 8 < size < 16:
            second = _word(data, begin + 8) & ((1 << (8 * (size - 8))) - 1)
        elif size == 16:
            second = _word(data, begin + 8)
        field = _field(size, first, second)
        if field >= 0:
            if seen & (1 << field):
                return False
            seen |= 1 << field
        p = _blank(data, p + 1, end)
        if p >= end or _byte(data, p) != _COLON:
            return False
        p = _blank(data, p + 1, end)
        if p >= end:
            return False
        # content
        byte = _byte(data, p)
        if byte == _QUOTE:
            p += 1
            begin = p
            p = _string(data, p, end)
            if p >= end or _byte(data, p) != _QUOTE:
                return False
            size = p - begin
            p += 1
            if 0 <= field < 4:
                if size == 0 or size > _ID_MAX:
                    return False
                at[field, row] = begin
                length[field, row] = size
            elif field == _F_TYPE:
                if size != _TYPE_SIZES[kind]:
                    return False
                for j in range(size):
                    if _byte(data, begin + j) != _TYPE_NAMES[kind, j]:
                        return False
            elif field >= 0:
                return False
        elif byte == _MINUS or _ZERO <= byte <= _NINE:
            p, mantissa, power, negative = _decimal(data, p, end)
            if p < 0:
                return False
            if field == _F_TS:
                if negative or power != 0:
                    return False
                ts[row] = mantissa
            elif field == _F_VALUE or field == _F_PROPENSITY or field == _F_SHOW:
                if power == 100:
                    power = 0
                # exact: both the digits (below 2**53) and the power of ten fit a double
                if mantissa >= 1_000_000_000_000_000 or power > 22 or power < -22:
                    return False
                if negative and mantissa == 0:
                    return False
                real = float(mantissa)
                real = real * _TENS[power] if power >= 0 else real / _TENS[-power]
                number[field - _F_VALUE, row] = -real if negative else real
            elif field == _F_POSITION:
                if negative or power != 0 or mantissa < 1 or mantissa > _INT32_MAX:
                    return False
                position[row] = mantissa
            elif field == _F_V:
                if negative or power != 0 or mantissa != 1:
                    return False
            elif field >= 0:
                return False
        else:
            if field >= 0 and field != _F_SHOWN:
                return False
            left = end - p
            if left >= 4 and byte == 116:  # true
                if (
                    _byte(data, p + 1) != 114
                    or _byte(data, p + 2) != 117
                    or _byte(data, p + 3) != 101
                ):
                    return False
                p += 4
            elif left >= 5 and byte == 102:  # false
                if (
                    _byte(data, p + 1) != 97
                    or _byte(data, p + 2) != 108
                    or _byte(data, p + 3) != 115
                ):
                    return False
                if _byte(data, p + 4) != 101:
                    return False
                p += 5
                if field == _F_SHOWN:
                    shown[row] = False
            elif left >= 4 and byte == 110 and field < 0:  # null
                if (
                    _byte(data, p + 1) != 117
                    or _byte(data, p + 2) != 108
                    or _byte(data, p + 3) != 108
                ):
                    return False
                p += 4
            else:
                return False
        p = _blank(data, p, end)
        if p >= end:
            return False
        if _byte(data, p) == _COMMA:
            p = _blank(data, p + 1, end)
            continue
        if _byte(data, p) != _CLOSE or _blank(data, p + 1, end) != end:
            return False
        break
    if ts[row] < 0 or (kafka_ts >= 0 and ts[row] > kafka_ts + _DAY):
        return False
    if kind == _RATING:
        if seen & _NEED_RATING != _NEED_RATING:
            return False
        if not low <= number[VALUE, row] <= high or abs(number[VALUE, row]) > _NUMBER_MAX:
            return False
    else:
        if seen & _NEED_ALL != _NEED_ALL:
            return False
        number[VALUE, row] = np.nan
    if kind == _IMPRESSION:
        if seen & (1 << _F_PROPENSITY) and not 0.0 < number[PROPENSITY, row] <= 1.0:
            return False
        if seen & (1 << _F_SHOW) and not 0.0 < number[SHOW_PROBABILITY, row] <= 1.0:
            return False
    else:
        number[PROPENSITY, row] = np.nan
        number[SHOW_PROBABILITY, row] = 1.0
        position[row] = 0
        shown[row] = True
    return True


def _scan(
    data: int,  # address of the arena, which ends with 8 unused bytes (see _word_of)
    spans: Any,  # (batches, 9) int64, columns as in PLACES
    low: float,
    high: float,
    status: Any,
    batch: Any,
    offset: Any,
    kafka_ts: Any,
    frame_at: Any,
    value_at: Any,
    value_len: Any,
    key_at: Any,
    key_len: Any,
    at: Any,  # (4, records) int64
    length: Any,  # (4, records) int32
    number: Any,  # (3, records) float64
    ts: Any,
    position: Any,
    shown: Any,
    result: Any,  # rows written; first batch with broken framing, or -1; rows not accepted
) -> None:
    """Fill one row for each record at or above its batch's fetch offset."""
    row = 0
    open_rows = 0
    result[1] = -1
    for b in range(spans.shape[0]):
        p = spans[b, 0]
        stop = spans[b, 1]
        kind = spans[b, 7]
        left = spans[b, 8]
        while left > 0:
            left -= 1
            begin = p
            size, p = _varint(data, p, stop)
            if p < 0 or size < 1 or size > stop - p:
                result[1] = b
                return
            end = p + size
            delta, p = _varint(data, p + 1, end)
            if p < 0:
                result[1] = b
                return
            step, p = _varint(data, p, end)
            if p < 0:
                result[1] = b
                return
            key_size, p = _varint(data, p, end)
            if p < 0 or key_size > end - p:
                result[1] = b
                return
            key_begin = p
            if key_size > 0:
                p += key_size
            value_size, p = _varint(data, p, end)
            if p < 0 or value_size > end - p:
                result[1] = b
                return
            if spans[b, 2] + step >= spans[b, 3]:
                time = spans[b, 5] if spans[b, 6] else spans[b, 4] + delta
                batch[row] = b
                offset[row] = spans[b, 2] + step
                kafka_ts[row] = time
                frame_at[row] = begin
                value_at[row] = p
                value_len[row] = value_size
                key_at[row] = key_begin
                key_len[row] = key_size
                ts[row] = -1
                status[row] = DEFERRED
                if (
                    kind < _USER_KIND
                    and 0 < value_size <= _VALUE_MAX
                    and _read(
                        data,
                        p,
                        p + value_size,
                        kind,
                        time,
                        low,
                        high,
                        row,
                        at,
                        length,
                        number,
                        ts,
                        position,
                        shown,
                    )
                ):
                    status[row] = ACCEPTED
                else:
                    open_rows += 1
                row += 1
            p = end
        if p != stop:
            result[1] = b
            return
    result[0] = row
    result[2] = open_rows


# columns of `places`, which has one row for each batch
PLACES = (
    "start",
    "stop",
    "base_offset",
    "fetch_offset",
    "first_ts_ms",
    "max_ts_ms",
    "log_append",
    "kind",
    "count",
)

_varint = compiled(_varint)
_is_space = compiled(_is_space)
_blank = compiled(_blank)
_string = compiled(_string)
_field = compiled(_field)
_decimal = compiled(_decimal)
_read = compiled(_read)
parse_batches = compiled(_scan)
