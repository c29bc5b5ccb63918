"""The input and output columns of the joiner."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.schemas import KINDS

Dtypes = dict[str, type[np.generic]]

REMOVES_USER, REMOVES_ITEM = len(KINDS), len(KINDS) + 1  # kinds of arrivals besides KINDS

ARRIVALS: Dtypes = {
    "kind": np.int8,
    "partition": np.int32,
    "user": np.int32,
    "item": np.int32,
    "slate": np.uint64,
    "ts_ms": np.int64,
    "kafka_ts_ms": np.int64,
    "value": np.float32,
    "position": np.int32,
    "propensity": np.float32,
    "show_probability": np.float32,
    "shown": np.bool_,
}
JOINED: Dtypes = {
    "source": np.int32,
    "user": np.int32,
    "item": np.int32,
    "outcome_is_click": np.bool_,
    "label": np.float32,
    "role": np.int8,
    "propensity": np.float32,
    "position": np.int32,
    "ts_ms": np.int64,
    "counts": np.bool_,
    "slot": np.int32,
}
CLOSED: Dtypes = {
    "user": np.int32,
    "item": np.int32,
    "shown": np.bool_,
    "click": np.float32,
    "rating": np.float32,
    "propensity": np.float32,
    "show_probability": np.float32,
    "position": np.int32,
    "ts_ms": np.int64,
    "first": np.bool_,
    "treated": np.float32,
    "control": np.float32,
    "predicted_by": np.int32,
}

# the same columns as named tuples for the compiled code
_tuple_of: Any = namedtuple
ArrivalRows = _tuple_of("ArrivalRows", tuple(ARRIVALS))
JoinedRows = _tuple_of("JoinedRows", tuple(JOINED))
ClosedRows = _tuple_of("ClosedRows", tuple(CLOSED))


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Records in poll order, as columns of length N."""

    kind: NDArray[np.int8]  # (N,) index into KINDS, or REMOVES_USER, REMOVES_ITEM
    partition: NDArray[np.int32]  # (N,) dense number of (topic, partition)
    user: NDArray[np.int32]  # (N,) row, -1: none
    item: NDArray[np.int32]  # (N,) row, -1: none
    slate: NDArray[np.uint64]  # (N,) hash of impression_id, 0: none
    ts_ms: NDArray[np.int64]  # (N,)
    kafka_ts_ms: NDArray[np.int64]  # (N,) below 0: none
    value: NDArray[np.float32]  # (N,) of a rating
    position: NDArray[np.int32]  # (N,) 0: none
    propensity: NDArray[np.float32]  # (N,) nan: not logged
    show_probability: NDArray[np.float32]  # (N,)
    shown: NDArray[np.bool_]  # (N,) false: withheld

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, slots=True)
class Closed:
    """Closed windows in closing order, as columns of length C."""

    user: NDArray[np.int32]  # (C,)
    item: NDArray[np.int32]  # (C,)
    shown: NDArray[np.bool_]  # (C,)
    click: NDArray[np.float32]  # (C,) 0 or 1; nan: rated and not clicked
    rating: NDArray[np.float32]  # (C,) nan: none
    propensity: NDArray[np.float32]  # (C,) nan: not logged
    show_probability: NDArray[np.float32]  # (C,)
    position: NDArray[np.int32]  # (C,) 0: none
    ts_ms: NDArray[np.int64]  # (C,) of the exposure
    first: NDArray[np.bool_]  # (C,) a first decision, which enters the comparison of the arms
    treated: NDArray[np.float32]  # (C,) prediction if shown when it opened; nan: unknown
    control: NDArray[np.float32]  # (C,) prediction if withheld when it opened; nan: unknown
    predicted_by: NDArray[np.int32]  # (C,) its PREDICT row in this call, -1: an earlier call

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True, slots=True)
class Joined:
    """Interactions in order, as columns of length J, and the windows that closed."""

    source: NDArray[np.int32]  # (J,) index into the arrivals, -1: closed by close_all
    user: NDArray[np.int32]  # (J,)
    item: NDArray[np.int32]  # (J,)
    outcome_is_click: NDArray[np.bool_]  # (J,) click or rating; true for PREDICT
    label: NDArray[np.float32]  # (J,) 0 for PREDICT
    role: NDArray[np.int8]  # (J,) Role
    propensity: NDArray[np.float32]  # (J,) the exposure's; nan: not logged, or no exposure
    position: NDArray[np.int32]  # (J,) the exposure's; 0: none
    ts_ms: NDArray[np.int64]  # (J,) of the learned outcome, else of the exposure
    counts: NDArray[np.bool_]  # (J,) true once for each accepted click or rating
    slot: NDArray[np.int32]  # (J,) for PREDICT the slot of its exposure (`Joiner.note`), else -1
    closed: Closed

    def __len__(self) -> int:
        return len(self.source)


def columns(length: int, dtypes: Dtypes) -> list[NDArray[Any]]:
    """Return uninitialised columns."""
    return [np.empty(length, dtype) for dtype in dtypes.values()]


def doubled(held: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return columns of twice the length that begin with the given contents."""
    return [np.concatenate([column, np.empty_like(column)]) for column in held]
