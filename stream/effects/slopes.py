"""What a change of an item's number (a price, say) does to its outcome, found within items."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.compiled import compiled
from stream.effects.moments import Z95
from stream.effects.regression import PathRegression
from stream.memory import reserve

OPENS = 1_000  # outcomes of items whose number has changed, before anything is built on a slope
FORGETS = 0.001  # an item's usual outcome and number follow at least this fast
PRIOR = 4.0  # outcomes that an item's own chance of a click is shrunk by, towards that of all
FLAT = 0.01  # least p (1 - p) of a click
COUNT, OUTCOME, USER, FIRST = range(4)  # columns of an item, the numbers last


@compiled
def _deviate(item, label, user, x, held, common, logit, z, y, kept):  # type: ignore[no-untyped-def]
    """Write the outcomes that a changed number may have moved, as deviations; return how many.

    kept: which of the outcomes they are.
    An item that has not the numbers it had before begins anew: what was usual is of another item.
    """
    n = 0
    numbers = x.shape[1]
    for j in range(len(item)):
        row = held[item[j]]
        some, same = False, True
        for a in range(numbers):
            there = np.isfinite(x[j, a])
            some |= there
            same &= there == np.isfinite(row[FIRST + a])
        if not some:
            row[COUNT] = 0
            continue
        common[0] += 1
        common[1] += max(1 / common[0], FORGETS) * (label[j] - common[1])
        if row[COUNT] == 0 or not same:
            row[COUNT], row[OUTCOME], row[USER] = 1, label[j], user[j]
            for a in range(numbers):
                row[FIRST + a] = x[j, a]
            continue
        count = row[COUNT]
        bend = 1.0
        if logit:
            p = (count * row[OUTCOME] + PRIOR * common[1]) / (count + PRIOR)
            bend = max(p * (1 - p), FLAT)
        scale = np.sqrt(count / (count + 1))  # the usual outcome has noise of its own
        rate = max(1 / (count + 1), FORGETS)
        moved = False
        for a in range(numbers):
            off = x[j, a] - row[FIRST + a] if np.isfinite(x[j, a]) else 0.0
            moved |= off != 0.0
            z[n, 1 + a] = scale * bend * off
            row[FIRST + a] += rate * off
        z[n, 0] = scale * bend * (user[j] - row[USER])
        y[n] = scale * (label[j] - row[OUTCOME])
        kept[n] = j
        row[USER] += rate * (user[j] - row[USER])
        row[OUTCOME] += rate * (label[j] - row[OUTCOME])
        row[COUNT] = min(count + 1, 1 / FORGETS)
        n += moved
    return n


class Slopes:
    """The coefficients of items' numbers on the link scale of one outcome, within items.

    Each outcome's deviation from what is usual for its item is regressed on the numbers'
    deviations and on that of the user's bias, so what is special to an item is in neither side
    (Mundlak 1978), nor is who came at which price. Deviations are from the mean of the item's
    earlier outcomes, times sqrt(n / (n + 1)): the orthogonal deviations of Arellano and Bover
    (1995), whose noise is independent from one to the next; without FORGETS the estimate is the
    within estimator. Clicks: to first order, at the item's own p (1 - p). The sandwich is that of
    `PathRegression`.

    It is the causal slope if what moved the number did not move the outcome in another way too.
    """

    def __init__(self, logit: bool, items: int, numbers: int, users: int = 0) -> None:
        """Nothing is known; address space for so many rows of items and users is reserved."""
        self.logit = logit
        self._held = reserve(items, FIRST + numbers, np.float32)
        self._used = 0
        self._common = np.zeros(2)
        names = ("user", *(f"number {n}" for n in range(numbers)))
        self._fit = PathRegression(names, users=users, items=items)

    def update(
        self,
        item: NDArray[np.int32],
        label: ArrayLike,
        user: ArrayLike,
        x: NDArray[np.float32],
        who: NDArray[np.int32] | None = None,
    ) -> None:
        """The outcomes are in the fit after the call, in their order.

        item (n,) rows, label (n,), user (n,) the users' biases as of before, x (n, N) the items'
        numbers as of the outcome, nan where an item has none, who (n,) the users' rows (-1, or none
        at all: outcomes of users of their own).
        """
        if not len(item):
            return
        self._used = max(self._used, int(item.max()) + 1)
        z, y = np.zeros((len(item), 1 + x.shape[1])), np.empty(len(item))
        kept = np.empty(len(item), np.int64)
        n = _deviate(
            item, np.asarray(label, np.float64), np.asarray(user, np.float64), x, self._held,
            self._common, self.logit, z, y, kept,
        )  # fmt: skip
        at = kept[:n]
        self._fit.update(z[:n], y[:n], None if who is None else who[at], item[at])

    def forget(self, item: int) -> None:
        """Nothing is usual for that item after the call; what it told stays told."""
        self._held[item] = 0

    def figures(self, names: Sequence[str]) -> dict[str, Any] | None:
        """Return names, beta, interval, covariance, outcomes, open, reason; None: nothing told.

        `names` are those of the numbers, in their order. Beta is per unit of the number, on the
        link scale. `open`: enough is told for `do` to build on it. `reason`: why there is no
        interval.
        """
        beta, covariance = self._fit.fit()
        told = [a for a in range(len(names)) if self._fit.told[1 + a]]
        if covariance is None or not told:
            return None
        at = np.array(told) + 1
        value, spread = beta[at], covariance[np.ix_(at, at)]
        reason = self._fit.reason
        if self._fit.n < OPENS:
            reason = f"{self._fit.n} outcomes of changed numbers observed, {OPENS} needed"
        reach = Z95 * np.sqrt(np.maximum(np.diag(spread), 0.0))
        return {
            "names": [names[a] for a in told],
            "beta": value.tolist(),
            "interval": None if reason else np.stack([value - reach, value + reach], 1).tolist(),
            "covariance": spread.tolist(),
            "outcomes": self._fit.n,
            "open": reason is None,
            "reason": reason,
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again."""
        fit = {f"fit.{name}": part for name, part in self._fit.state().items()}
        return fit | {"held": np.array(self._held[: self._used]), "common": self._common.copy()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The slopes are the saved ones after the call."""
        self._held[: self._used] = 0
        self._used = len(state["held"])
        self._held[: self._used] = state["held"]
        self._common[:] = state["common"]
        mine = [name for name in state if name.startswith("fit.")]
        self._fit.load({name.removeprefix("fit."): state[name] for name in mine})
