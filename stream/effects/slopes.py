"""The effect of an item's number (such as a price) on its outcome, estimated within items."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.compiled import compiled
from stream.effects.moments import Z95
from stream.effects.regression import PathRegression
from stream.memory import reserve

OPENS = 1_000  # outcomes of items whose number has changed that are needed to use a slope
FORGETS = 0.001  # least rate of an item's running means of outcomes and numbers
PRIOR = 4.0  # outcomes by which an item's click probability is shrunk towards that of all items
FLAT = 0.01  # least p (1 - p) of a click
COUNT, OUTCOME, USER, FIRST = range(4)  # columns of an item, the numbers last


@compiled
def _deviate(item, label, user, x, held, common, logit, z, y, kept):  # type: ignore[no-untyped-def]
    """Write the outcomes whose item's number has changed, as deviations; return how many.

    `kept` receives the indices of these outcomes. If an item has other numbers missing than before,
    its running means start again, since they describe a different item.
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
        scale = np.sqrt(count / (count + 1))  # accounts for the noise of the running mean
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
    """Coefficients of items' numbers on the link scale of one outcome, estimated within items.

    Each outcome's deviation from its item's running mean is regressed on the deviations of the
    item's numbers and of the user's bias. So neither the item's own level (Mundlak, 1978) nor which
    users came at which price biases the slopes. Deviations are from the mean of the item's n
    earlier outcomes, times sqrt(n / (n + 1)): the orthogonal deviations of Arellano and Bover
    (1995), whose noise is independent from one outcome to the next. Without FORGETS the estimate
    would be the within estimator. For clicks the link is linearised at the item's own p (1 - p).
    The covariance is the sandwich of `PathRegression`.

    The slope is causal if what changed the number did not change the outcome in another way too.

    Parameters
    ----------
    logit
        Whether the outcome has the logit link.
    items, users
        The most rows of either; address space for them is reserved.
    numbers
        How many numeric attributes items have.
    """

    def __init__(self, logit: bool, items: int, numbers: int, users: int = 0) -> None:
        """Start without any outcomes."""
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
        """Add outcomes to the fit, in order.

        Parameters
        ----------
        item
            Item rows (n,).
        label
            Outcomes (n,).
        user
            The users' biases (n,) before the outcome was learned.
        x
            The items' numbers (n, N) at the outcome's event time, nan where an item has none.
        who
            User rows (n,); -1, or None for all, makes each outcome a user of its own.
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

    def discard(self, item: int) -> None:
        """Forget the running means of that item; its outcomes stay in the fit."""
        self._held[item] = 0

    def figures(self, names: Sequence[str]) -> dict[str, Any] | None:
        """Return names, beta, interval, covariance, outcomes, open and reason; None without data.

        `names` are those of the numbers, in order of their columns. `beta` is per unit of the
        number, on the link scale. `open` says whether the data suffice for `do` to use the slopes;
        `reason` says why there is no interval.
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
        """Return copies of the arrays that `load` needs."""
        fit = {f"fit.{name}": part for name, part in self._fit.state().items()}
        return fit | {"held": np.array(self._held[: self._used]), "common": self._common.copy()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore saved slopes."""
        self._held[: self._used] = 0
        self._used = len(state["held"])
        self._held[: self._used] = state["held"]
        self._common[:] = state["common"]
        mine = [name for name in state if name.startswith("fit.")]
        self._fit.load({name.removeprefix("fit."): state[name] for name in mine})
