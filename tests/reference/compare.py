"""What differs between a reference and a learner, by name."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.model import scalars as sc
from stream.model.learner import Learner, Update
from tests.reference.law import Reference, Told
from tests.reference.rows import named

COLUMNS = {
    "outcome": (
        "W_SUM W_COUNT W_PENDING W_FRESH Q_SUM Q_COUNT Q_PENDING Q_FRESH Q_MEAN SLOPE INFO SCORE "
        "SEEN GAIN GAIN_SQUARE GAIN_COUNT GAIN_NEW GAIN_SQUARE_NEW GAIN_COUNT_NEW GATE BASE TOTAL "
        "WEIGHT TOTAL_NEW WEIGHT_NEW MIDDLE LOGIT CROSS NOISE NOISE_NEW OF OF_NEW"
    ),
    "head": "SCALE SHIFT I_AA I_AB I_BB S_A S_B N_AA N_AB N_BB EXPOSED EXPOSED_NEW SHARE",
    "place": "PHI T_INFO T_SCORE T_SEEN THETA",
    "withheld": "CARRIED LEVEL C_AA C_AB C_BB C_A C_B C_NAA C_NAB C_NBB",
    "count": "STEPS USERS ITEMS CONTROLS SETTLED",
}


def differences(reference: Reference, learner: Learner, tolerance: float = 1e-4) -> list[str]:
    """Return where the learner is further from the reference than the tolerance, by part.

    The tolerance is absolute plus a share of the size; counts have none.
    """
    found: list[str] = []
    for name, mine, theirs in _parts(reference, learner):
        found += _far(name, mine, theirs, tolerance)
    return found


def untold(told: Told, update: Update, tolerance: float = 1e-4) -> list[str]:
    """Return where the learner expected something else of an interaction."""
    found: list[str] = []
    for name, mine in vars(told).items():
        found += _far(name, mine, getattr(update, name), tolerance)
    return found


def _parts(
    reference: Reference, learner: Learner
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    tables = {"user": learner.user, "item": learner.item, "feature": learner.feature}
    for kind, table in tables.items():
        rows, theirs = reference.rows[kind], named(table.state(), table.layout)
        for name, part in theirs.items():
            mine = np.zeros_like(part)  # rows that neither has touched are zeros
            held = rows[name][: len(part)]
            mine[: len(held)] = held
            yield f"{kind}.{name}", mine, part
    for name, columns in COLUMNS.items():
        mine, theirs = getattr(reference, name), getattr(learner.scalars, name)
        starts = [getattr(sc, column) for column in columns.split()] + [mine.shape[-1]]
        for column, a, b in zip(columns.split(), starts, starts[1:], strict=False):
            yield f"global {name} {column}", mine[..., a:b], theirs[..., a:b]


def _far(name: str, mine: NDArray[Any], theirs: NDArray[Any], tolerance: float) -> list[str]:
    if mine.dtype.kind == "i":
        close = mine == theirs
    else:
        close = np.isclose(theirs, mine, atol=tolerance, rtol=tolerance, equal_nan=True)
    at = np.argwhere(~close)
    if not len(at):
        return []
    first = tuple(at[0])
    return [
        f"{name}{at[0].tolist()}: {theirs[first]} against {mine[first]} as written, "
        f"and {len(at) - 1} more"
    ]
