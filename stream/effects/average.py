"""The average effect of showing, estimated from closed windows of shown and withheld items."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.compiled import compiled
from stream.effects.clusters import Clusters, bounds, few, gather
from stream.effects.moments import Array, columns

LEAST = 500  # withheld windows needed for an interval
SHOWN = 100  # shown windows needed for an interval
LOGGED = "AIPW"
SHARE = "AIPW, share of shown as show_probability"
RANDOMISED = "each window was shown with its logged show_probability"
CONSTANT = "windows were withheld at random with one probability, which was not logged"
# elements of a window's vector: 1; then for the shown and the withheld arm the weight, the weight
# times the outcome, the weight times the arm's prediction, and the prediction itself
ONE, W1, Y1, P1, Q1, W0, Y0, P0, Q0 = range(9)
WIDTH = 9
FIRST = 32  # outcomes of an arm before its predictions are used
RECENT = 0.99  # decay of the squared errors, which thus cover an arm's last 100 outcomes or so
TINY = 1e-10
CHANCE = 9.99e-4  # least show_probability, and least probability of withholding: bounds weights
# of an arm: number and mean of outcomes, decayed squared errors of the prediction and of the mean
SEEN, MEAN, ERROR, PLAIN = range(4)


@compiled
def _expected(arm, prediction):  # type: ignore[no-untyped-def]
    """Return the prediction if it was more accurate than the arm's mean so far, else the mean."""
    if np.isfinite(prediction) and arm[SEEN] >= FIRST and arm[ERROR] < arm[PLAIN]:
        return prediction
    return arm[MEAN]


@compiled
def _follow(arm, prediction, y):  # type: ignore[no-untyped-def]
    """Add the outcome to the arm's mean and to both squared errors."""
    if np.isfinite(prediction):
        arm[ERROR] = RECENT * arm[ERROR] + (y - prediction) ** 2
        arm[PLAIN] = RECENT * arm[PLAIN] + (y - arm[MEAN]) ** 2
    arm[SEEN] += 1
    arm[MEAN] += (y - arm[MEAN]) / arm[SEEN]


@compiled
def _add(  # type: ignore[no-untyped-def]
    at, shown, outcome, chance, treated, control, every, counts, moments, waits, logged, share,
):  # fmt: skip
    """Add the windows one by one to the sums of their kind: 0 logged, 1 no logged probability.

    `moments` (2, 5) holds, by kind, the first outcome, which is subtracted from all, and the number
    and the sums of the first three powers of the differences. `every` (2, 2, 4) holds the arms.
    """
    x = np.empty(WIDTH)
    for n in range(len(outcome)):
        if not np.isfinite(outcome[n]):
            continue
        arm = 1 if shown[n] else 0
        e = chance[n]
        kind = 0 if 0.0 < e < 1.0 else 1
        if kind == 0 and not CHANCE <= e <= 1.0 - CHANCE:
            continue
        counts[kind, arm] += 1
        if kind == 1:
            if waits and counts[1, 0] == 0:
                continue
            e = 0.5  # any constant probability gives the same means
        arms, common = every[kind], moments[kind]
        if common[1] == 0:
            common[0] = outcome[n]
        y = outcome[n] - common[0]
        mu1, mu0 = treated[n] - common[0], control[n] - common[0]
        for power in range(4):
            common[1 + power] += y**power
        x[ONE] = 1.0
        x[Q1], x[Q0] = _expected(arms[1], mu1), _expected(arms[0], mu0)
        x[W1], x[W0] = arm / e, (1 - arm) / (1 - e)
        x[Y1], x[Y0] = x[W1] * y, x[W0] * y
        x[P1], x[P0] = x[W1] * x[Q1], x[W0] * x[Q0]
        if kind == 0:
            gather(x, at[n], *logged)
        else:
            gather(x, at[n], *share)
        _follow(arms[arm], mu1 if arm else mu0, y)


class AverageEffect:
    """Running augmented inverse propensity weighting (Robins, Rotnitzky and Zhao, 1994).

    With D whether the item was shown, e = show_probability, w1 = D / e, w0 = (1 - D) / (1 - e), and
    predictions mu1, mu0 from before the window closed, the shown arm's mean is

        mean(w1 y) / mean(w1) - l1 (mean(w1 mu1) / mean(w1) - mean(mu1))

    and the effect is this minus the same for the withheld arm. The first term is Hajek's weighted
    mean; the second corrects for differences between the arms that the predictions explain. The
    estimate is consistent however wrong the predictions are, because e is known. l1 and l0 minimise
    the variance (Lin, 2013; Angelopoulos, Duchi and Zrnic, 2023), so poor predictions can hardly
    widen the interval. A prediction is used only while it has been more accurate for its arm than
    the arm's running mean, which otherwise takes its place. The average is over the windows that
    the policy chose, not over all users and items.

    The variance is that of the users' sums, since the windows of one user are not independent.
    There is an interval once enough windows were withheld (`least`) and enough users contributed;
    before that, `reason` says what is missing.

    Windows count only if they were randomised (.001 <= e <= .999). If no window was, but some were
    withheld, e was not logged: then one constant probability is assumed, and the figures say so.

    Parameters
    ----------
    users
        The most user rows; address space for them is reserved.
    least
        The number of withheld windows needed for an interval.
    waits
        If true, windows that were not randomised count only from the first withheld one on: no
        constant probability held before it, and a stream that withholds nothing then costs nothing.
    """

    def __init__(self, users: int = 0, least: int = LEAST, waits: bool = False) -> None:
        """Start without any windows."""
        self._least, self._waits = least, waits
        self._logged, self._share = Clusters(WIDTH, users), Clusters(WIDTH, users)
        self._counts = np.zeros((2, 2), np.int64)  # (logged, not logged) x (withheld, shown)
        self._arms = np.zeros((2, 2, 4))  # of the same
        self._common = np.zeros((2, 5))

    def update(
        self,
        shown: ArrayLike,
        outcome: ArrayLike,
        show_probability: ArrayLike,
        treated: ArrayLike,
        control: ArrayLike,
        user: NDArray[np.int32] | None = None,
    ) -> None:
        """Add closed windows; columns have shape (n,), windows whose outcome is nan are ignored.

        `user` (n,) holds user rows. A row of -1, or no `user` at all, makes each window a user of
        its own.
        """
        arm, y, e, mu1, mu0 = columns(shown, outcome, show_probability, treated, control)
        at = self._logged.at(user, len(y))
        self._share.at(user, len(y))
        _add(
            at, arm, y, e, mu1, mu0, self._arms, self._counts, self._common,
            self._waits, self._logged.arrays, self._share.arrays,
        )  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """Return value, 95 % interval, shown, withheld, users, reason, estimator and assumption.

        `users` is the number of users of equal size that the windows are worth; `reason` says why
        there is no interval.
        """
        logged, share = self._counts.tolist()
        if min(logged) > 0:
            said = self._said(self._logged, logged, self._common[0])
            return said | {"estimator": LOGGED, "assumption": RANDOMISED}
        if min(share) > 0:
            said = self._said(self._share, share, self._common[1])
            return said | {"estimator": SHARE, "assumption": CONSTANT}
        counts = [a + b for a, b in zip(logged, share, strict=True)]
        return {
            "value": None, "interval": None, "shown": counts[1], "withheld": counts[0],
            "users": None, "reason": self._missing(counts),
            "estimator": LOGGED, "assumption": RANDOMISED,
        }  # fmt: skip

    def _said(self, sums: Clusters, counts: list[int], common: Array) -> dict[str, Any]:
        """Return value, interval, counts, users and reason from one kind of windows."""
        value, g = _estimate(sums)
        spread = sums.spread(g)
        users = sums.worth
        reason = self._missing(counts)
        if reason is None:
            reason = few(users)
        events = _events(sums, common)
        if reason is None and not spread.variance and not any(events):
            reason = "every outcome was the same"
        return {
            "value": value,
            "interval": bounds(value, spread, events) if reason is None else None,
            "shown": counts[1],
            "withheld": counts[0],
            "users": users,
            "reason": reason,
        }

    def _missing(self, counts: list[int]) -> str | None:
        """Return which windows are too few for an interval, None if there are enough."""
        if counts[0] < self._least:
            return f"{counts[0]} controls observed, {self._least} needed"
        shown = min(SHOWN, self._least)
        return f"{counts[1]} shown windows observed, {shown} needed" if counts[1] < shown else None

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs."""
        return {
            "by_arm": self._arms.copy(),
            "counts": self._counts.copy(),
            "common": self._common.copy(),
            **{f"logged.{name}": part for name, part in self._logged.state().items()},
            **{f"share.{name}": part for name, part in self._share.state().items()},
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore a saved effect.

        In an old state, which did not distinguish users, each window counts as a user of its own.
        """
        self._counts[:] = state["counts"]
        if "common" not in state:
            self._begin(state)
            return
        self._arms[:], self._common[:] = state["by_arm"], state["common"]
        for prefix, part in (("logged.", self._logged), ("share.", self._share)):
            names = [name for name in state if name.startswith(prefix)]
            part.load({name.removeprefix(prefix): state[name] for name in names})

    def _begin(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Load an old state, which holds both arms' means, the effect and its variance.

        The variance is attributed to the outcomes of the shown arm, where it has the same effect.
        """
        (_, mean0), (_, mean1) = state["arms"]
        self._arms[:, :, SEEN], self._arms[:, :, MEAN] = self._counts, (mean0, mean1)
        total = self._counts @ np.array([mean0, mean1])
        self._common[:] = np.stack([0 * total, self._counts.sum(1), total, total, total], 1)
        for prefix, part, counts in zip(
            ("logged", "share"), (self._logged, self._share), self._counts.tolist(), strict=True
        ):
            n = sum(counts)
            if not n:
                continue
            weights = [2 * c / n if prefix == "share" else float(c > 0) for c in counts]
            value, variance = mean1 - mean0, abs(mean1 * (1 - mean1)) / n
            if min(counts) > 0:
                value, variance = _before(prefix, state)
            mean, covariance = np.zeros(WIDTH), np.zeros((WIDTH, WIDTH))
            mean[[ONE, W1, W0]] = 1.0, weights[1], weights[0]
            mean[[Y1, Y0]] = weights[1] * (mean0 + value), weights[0] * mean0
            covariance[Y1, Y1] = variance * n * weights[1] ** 2
            part.begin(mean, covariance, n)


def _before(prefix: str, state: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
    """Return the effect and its variance from an old state, which did not distinguish users."""
    weight, mean, spread = (state[f"{prefix}.{name}"] for name in ("weight", "mean", "spread"))
    covariance = spread / max(weight[0] * (weight[0] - 1), 1.0)
    if prefix == "logged":
        return float(mean[0]), float(covariance[0, 0])
    e, difference, up, down = mean.tolist()
    up, down = up / e, down / (1 - e)
    slope = np.array([-up / e - down / (1 - e), 1.0, 1 / e, -1 / (1 - e)])
    return difference + up - down, float(slope @ covariance @ slope)


def _estimate(sums: Clusters) -> tuple[float, Array]:
    """Return the effect and its gradient (k,) in the sums, with the l1 and l0 of least variance."""
    total = sums.total
    n = total[ONE]
    plain, by1, by0 = np.zeros((3, WIDTH))
    parts = []
    for sign, (w, y, p, q), by in ((1.0, (W1, Y1, P1, Q1), by1), (-1.0, (W0, Y0, P0, Q0), by0)):
        mean, taken, all_of = total[y] / total[w], total[p] / total[w], total[q] / n
        plain[[y, w]] = sign / total[w], -sign * mean / total[w]
        by[[p, w]] = sign / total[w], -sign * taken / total[w]
        by[[q, ONE]] = -sign / n, sign * all_of / n
        parts.append((sign * mean, sign * (taken - all_of)))
    within = sums.within()
    turns = np.stack([by1, by0])
    both = turns @ within @ turns.T
    # constant predictions have only rounding errors here; TINY keeps their weight near 0
    size = np.array([within[P1, P1] / total[W1] ** 2, within[P0, P0] / total[W0] ** 2])
    weight = np.linalg.solve(both + np.diag(TINY * size + 1e-300), turns @ within @ plain)
    value = sum(mean for mean, _ in parts) - weight @ np.array([off for _, off in parts])
    return float(value), plain - weight @ turns


def _events(sums: Clusters, common: Array) -> list[float]:
    """Return by how much one more outcome in each arm would move the value.

    The size of that outcome is the ratio of the third to the second central moment of all outcomes.
    """
    _, n, one, two, three = common.tolist()
    mean = one / n
    spread = two / n - mean**2
    if spread <= 1e-12 * two / n:
        return [0.0, 0.0]
    size = (three / n - 3 * mean * two / n + 2 * mean**3) / spread
    within = sums.within()
    return [
        sign * size * float(within[w, w]) / float(sums.total[w]) ** 2
        for sign, w in ((1.0, W1), (-1.0, W0))
    ]
