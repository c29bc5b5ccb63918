"""What interactions say of the global terms adds up alike in order and shared out by cells."""

import numpy as np

from stream.compiled import compiled
from stream.model import scalars as sc
from stream.model.config import OUTCOMES
from stream.model.layout import HEADS
from stream.model.scalars import Scalars
from stream.model.step import account
from stream.model.step.names import GlobalTerms, Lane, Layouts, StepContext

PAIRS = 2
BITS = (account.TREATED, account.EXPOSING, account.CONTROL, account.WEIGHED, account.WITHIN)


@compiled
def collected(m, told):
    """Add the rows in their order."""
    for k in range(told.shape[0]):
        account.collect(m, told[k])


def rows(n: int) -> np.ndarray:
    """Return what n interactions of all kinds say, as whole numbers: their sums are exact."""
    rng = np.random.default_rng(0)
    told = rng.integers(-50, 50, (n, account.columns(PAIRS))).astype(np.float64)
    kind = np.full(n, account.LEARNS)
    for bit in (*BITS, account.CALIBRATES, account.EXAMINES):
        kind |= np.where(rng.random(n) < 0.5, bit, 0)
    treated, exposing = kind & account.TREATED > 0, kind & account.EXPOSING > 0
    only = account.WEIGHED | account.WITHIN | account.EXAMINES
    kind = np.where(treated, kind, kind & ~only)
    told[:, account.KIND] = np.where(exposing, kind, kind & ~account.CALIBRATES)
    told[:, account.ROW] = rng.integers(0, len(OUTCOMES), n)
    told[:, account.HEAD] = rng.integers(0, HEADS, n)
    told[:, account.POSITION] = rng.integers(1, sc.POSITIONS, n)
    told[:, [account.NEW_USER, account.NEW_ITEM]] = rng.integers(0, 2, (n, 2))
    told[:, account.ONE] = 1.0
    return told


def shared_out(told: np.ndarray) -> GlobalTerms:
    """Return the sums by cells, as the workers of a GPU add them."""
    s = Scalars(OUTCOMES)
    terms = GlobalTerms(s.outcome, s.head, s.place, s.withheld, s.count)
    tables = (terms.outcome, terms.withheld, terms.head, terms.position)
    cells = account.cells(len(OUTCOMES), PAIRS)
    kind = told[:, account.KIND].astype(int)
    for at, (_, many, bit, of, row, to) in enumerate(cells.tolist()):
        own = told[:, account.ROW]
        if of == account.HEAD_ROW:
            own = told[:, account.HEAD] + (row & ~1)
        elif of == account.POSITION_ROW:
            own = told[:, account.POSITION]
        mine = kind & bit == bit
        if of != account.COUNTER:
            mine &= own == row
        total = sum(told[mine, cells[at + p, 0]].sum() for p in range(many))
        if of == account.COUNTER:
            terms.counters[to] += int(total)
        else:
            tables[of][row, to] += total
    return terms


def test_cells_add_up_what_is_collected_in_order() -> None:
    told, s = rows(500), Scalars(OUTCOMES)
    terms = GlobalTerms(s.outcome, s.head, s.place, s.withheld, s.count)
    shape = Layouts(0, 0, 0, PAIRS)  # type: ignore[arg-type]
    collected(StepContext(shape, Lane(0, 1), 0, terms, 0, 0, 0), told)  # type: ignore[arg-type]
    terms.counters[sc.STEPS] += len(told)  # a driver counts them
    for name, one, two in zip(terms._fields, terms, shared_out(told), strict=True):
        assert np.array_equal(one, two), name
