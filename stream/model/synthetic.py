"""Counterfactual outcomes made from those just learned: abduction, action, prediction.

(Pearl, Causality, 2009, theorem 7.1.7.) Abduction: the residual of an observed outcome, its label
minus its prediction. Action: another item or another time. Prediction: that of the learning kernel
for the changed interaction, with the residual added. The label column of a synthetic interaction
therefore holds the residual r, and each of the two models (if shown, as observed) takes the label
y' = clip(mu' + r) from its own prediction mu'.

    between   from two successive outcomes of a user, on items i and j: k is the item, of a few
              uniform ones, that shares most attribute values with both; r is the mean of the two
              residuals
    shifted   the same pair at a time within half a half-life of popularity around its own, with
              its residual r; kappa (q' - q) is part of the kernel's prediction at that time

The gradient of the score is c (clip(mu') - y') for both links, with c = `model.synthetic`, so c is
exactly the weight. Popularity adds to the score and kappa does not move here, so a shifted pair
only repeats its residual with the weight c; it carries no new information about popularity.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.batch import Batch
from stream.interaction_type import SYNTHETIC, InteractionType
from stream.memory import reserve
from stream.model.features import EntityKind
from stream.model.kernels import Array, compiled, splitmix64
from stream.model.links import LinkTable
from stream.model.living import GONE, Living
from stream.model.step.compose import link_count

CANDIDATES = 8  # uniform items, of which the most similar one is taken
MADE = 2  # most synthetic outcomes made from one outcome
SALT = np.uint64(0x5BE0CD19137E2179)


@compiled
def between(links: Array, values: Array, i: int, j: int, k: int) -> int:
    """Return how many attribute values k shares with i or with j, the smaller of the two.

    A number between those of i and j is shared with both.
    """
    ni, nj = link_count(links, i), link_count(links, j)
    with_i = with_j = 0
    for a in range(link_count(links, k)):
        x = values[k, a]
        at_i, at_j = -1, -1
        for c in range(ni):
            if links[i, c] == links[k, a]:
                at_i = c
        for c in range(nj):
            if links[j, c] == links[k, a]:
                at_j = c
        if at_i >= 0 and at_j >= 0:
            y, z = values[i, at_i], values[j, at_j]
            inside = min(y, z) <= x and x <= max(y, z)
            with_i += inside or x == y
            with_j += inside or x == z
        elif at_i >= 0:
            with_i += x == values[i, at_i]
        elif at_j >= 0:
            with_j += x == values[j, at_j]
    return min(with_i, with_j)


class ObservedOutcomes(NamedTuple):
    """The outcomes just learned (B,); `residual` is nan for an interaction without one."""

    user: Array
    item: Array
    outcome: Array
    residual: Array
    known: Array
    key: Array
    ts_ms: Array


class Latest(NamedTuple):
    """Each user's latest outcome (U, Y): its item + 1, and its residual."""

    item: Array
    residual: Array


class Near(NamedTuple):
    """The attribute links of items, and `Living.place`, which tells removed items."""

    links: Array
    values: Array
    list_index: Array


class Made(NamedTuple):
    """The synthetic outcomes (2 B,): index of their source, item, residual and time."""

    source: Array
    item: Array
    residual: Array
    ts_ms: Array


@compiled
def nearest(
    c: ObservedOutcomes, near: Near, s: int, j: int, counter: np.uint64
) -> tuple[int, np.uint64]:
    """Return, of a few uniform items, the one most similar to the outcome's item and to j.

    Returns -1 if no candidate is valid, and the state of the random numbers.
    """
    i, best, found = c.item[s], 0, -1
    for _ in range(CANDIDATES):
        counter = splitmix64(counter)
        k = int(counter % np.uint64(c.known[s]))
        if k != i and k != j and near.list_index[k] != GONE:
            shared = between(near.links, near.values, i, j, k)
            if shared > best:
                best, found = shared, k
    return found, counter


@compiled
def imagine(
    c: ObservedOutcomes, latest: Latest, near: Near, half_life_ms: float, made: Made
) -> int:
    """Write the synthetic outcomes of each outcome that has a residual; return their number.

    Random numbers are derived from the outcome's own key.
    """
    n = 0
    for s in range(c.user.size):
        if np.isnan(c.residual[s]):
            continue
        u, i, o = c.user[s], c.item[s], c.outcome[s]
        counter = splitmix64(c.key[s] ^ SALT)
        j = latest.item[u, o] - 1
        if j >= 0 and j != i and c.known[s] > 0:
            found, counter = nearest(c, near, s, j, counter)
            if found >= 0:
                made.source[n], made.item[n], made.ts_ms[n] = s, found, c.ts_ms[s]
                made.residual[n] = (c.residual[s] + latest.residual[u, o]) / np.float32(2)
                n += 1
        unit = np.float64(splitmix64(counter) >> np.uint64(11)) * 2.0**-53
        made.source[n], made.item[n], made.residual[n] = s, i, c.residual[s]
        made.ts_ms[n] = c.ts_ms[s] + np.int64((unit - 0.5) * half_life_ms)
        n += 1
        latest.item[u, o], latest.residual[u, o] = i + 1, c.residual[s]
    return n


class Imagined:
    """Makes synthetic interactions; remembers each user's latest residual of every outcome."""

    def __init__(self, users: int, outcomes: int, half_life_s: float) -> None:
        """Start without any residuals."""
        self._item = reserve(users, outcomes, np.int32)  # (U, Y) item + 1; 0: none
        self._residual = reserve(users, outcomes, np.float32)  # (U, Y)
        self._half_life_ms = half_life_s * 1000.0
        self._used = 0
        self._gone: list[int] = []  # items + 1 that were removed and are still to be erased

    def make(
        self, batch: Batch, prediction: NDArray[np.float32], logit: NDArray[np.bool_],
        items: LinkTable, living: Living,
    ) -> Batch:  # fmt: skip
        """Return synthetic interactions (at most 2 B) of the batch's outcomes if shown.

        `prediction` (B,) is that before each was learned. Only clicks at the first position are
        used: at other positions the residual also contains that of examination.
        """
        outcome = (batch.role == InteractionType.FACTUAL) | (batch.role == InteractionType.EXPOSED)
        outcome &= ~logit[batch.outcome] | (batch.position <= 1)
        residual = np.where(outcome, batch.label - prediction, np.float32(np.nan))
        self._apply_removals()
        self._used = max(self._used, int(batch.user.max(initial=-1)) + 1)
        n = MADE * len(batch)
        source, item, ts_ms = np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n, np.int64)
        made = np.empty(n, np.float32)
        outcomes = ObservedOutcomes(
            batch.user, batch.item, batch.outcome, residual, batch.known_items, batch.key,
            batch.ts_ms,
        )  # fmt: skip
        latest, near = (
            Latest(self._item, self._residual),
            Near(items.rows, items.values, living.list_index),
        )
        n = imagine(outcomes, latest, near, self._half_life_ms, Made(source, item, made, ts_ms))
        at = source[:n]
        return Batch(
            user=batch.user[at],
            item=item[:n],
            outcome=batch.outcome[at],
            label=made[:n],
            known_items=np.zeros(n, np.int32),  # no uniform items are drawn
            key=batch.key[at],
            role=np.full(n, SYNTHETIC, np.int8),
            propensity=np.full(n, np.nan, np.float32),
            position=np.zeros(n, np.int32),
            ts_ms=ts_ms[:n],
            counts=np.zeros(n, np.bool_),
        )

    def discard(self, kind: EntityKind, row: int) -> None:
        """Discard what is remembered of the user or item."""
        if kind == "item":
            self._gone.append(row + 1)
        else:
            self._item[row] = 0
            self._residual[row] = 0

    def _apply_removals(self) -> None:
        """Erase latest outcomes whose item was removed since."""
        if self._gone:
            held = self._item[: self._used]
            gone = np.isin(held, self._gone)
            held[gone] = 0
            self._residual[: self._used][gone] = 0
            self._gone.clear()

    def state(self, used: int) -> dict[str, NDArray[Any]]:
        """Return copies of the used rows."""
        self._apply_removals()
        return {
            "synthetic.item": np.array(self._item[:used]),
            "synthetic.residual": np.array(self._residual[:used]),
        }

    def load(self, state: Mapping[str, NDArray[Any]], used: int) -> None:
        """Replace the first `used` rows by the saved ones, if any."""
        self._gone.clear()
        self._used = len(state.get("synthetic.item", ()))
        for held, name in ((self._item, "item"), (self._residual, "residual")):
            held[:used] = 0
            saved = state.get(f"synthetic.{name}", held[:0])
            held[: len(saved)] = saved
