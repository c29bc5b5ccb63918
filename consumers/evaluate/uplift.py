"""`evaluate uplift`: effects in a randomised trial from a CSV file, beside two regressions.

Both methods learn the first half of the rows in file order and rank the second half. The average
effect is estimated by AIPW over all rows: ours with predictions made before each row was learned,
the baseline's with each half predicted from the other (cross-fitting, Chernozhukov et al. 2018).
Both use the variance-minimising coefficient of the predictions, so that poor predictions do not
widen the interval.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumers.evaluate import lift, table, two_model
from consumers.evaluate.trial import Arms, Trial
from stream.effects import AverageEffect
from stream.errors import Inconsistent
from stream.model.config import ModelConfig

Array = NDArray[Any]
LEAST = 100  # controls needed for an interval: a trial has one look and balanced arms


def run(
    path: str,
    treatment: str,
    outcome: str,
    features: Sequence[str],
    probability: str | None = None,
    user: str | None = None,
    *,
    config: ModelConfig,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the figures of both methods.

    Parameters
    ----------
    path : str
        The CSV file.
    treatment, outcome : str
        Columns of the treatment (0 or 1) and of the outcome.
    features : sequence of str
        Columns known before the treatment.
    probability : str, optional
        Column of the probability of treatment; without one, the share of treated rows is used.
    user : str, optional
        Column of the row's user; without one, rows are independent.

    Raises
    ------
    Inconsistent
        If a column, a cell or an arm is wrong or missing.
    """
    data = table.read(path)
    t, y = data.arms(treatment), data.numbers(outcome)
    for name in features:
        if name in (treatment, outcome):
            raise Inconsistent(
                f"{name!r} is both a feature and the treatment or outcome",
                "--features takes columns that were known before the treatment",
            )
    half = len(t) // 2
    for part, where in ((t[:half], "first"), (t[half:], "second")):
        if len(np.unique(part)) < 2:
            raise Inconsistent(
                f"{data.name}: the {where} half of the rows has only one arm",
                "shuffle the rows: the first half is learned, the second is judged",
            )
    chance = chances(data, probability, t)
    x = data.design(features)
    ours = Trial(data.attributes(features), t, y, chance, config, seed).one_pass(half)
    # events need a probability; AIPW must know that it was estimated if there is no column
    logged = chance if probability else np.full(len(t), np.nan)
    whose = data.groups(user) if user else None
    return {
        "counterflow": figures(ours, t, y, logged, half, whose),
        "two_model": figures(crossed(x, t, y, half), t, y, logged, half, whose),
        "rows": len(t),
        "learned": half,
    }


def chances(data: table.TextTable, name: str | None, treatment: Array) -> NDArray[np.float64]:
    """Return each row's probability of treatment: its column, or the share of treated rows."""
    if not name:
        return np.full(len(treatment), treatment.mean())
    found = data.numbers(name)
    if not ((found > 0) & (found < 1)).all():
        raise data.wrong(name, int(np.flatnonzero((found <= 0) | (found >= 1))[0]), "within (0, 1)")
    return found


def crossed(x: Array, treatment: Array, outcome: Array, half: int) -> Arms:
    """Return each half's outcomes by arm (N, 2), predicted from the other half."""
    out = np.empty((len(outcome), 2))
    first, second = slice(0, half), slice(half, None)
    for learned, judged in ((first, second), (second, first)):
        arms = two_model.predict(x[learned], outcome[learned], treatment[learned], x[judged])
        out[judged] = np.stack(arms, 1)
    return out


def figures(
    arms: Arms,
    treatment: Array,
    outcome: Array,
    chance: Array,
    half: int,
    user: NDArray[np.int32] | None = None,
) -> dict[str, Any]:
    """Return Qini and AUUC of the second half, and the average effect over all rows.

    AUUC is None unless the outcome is binary, because scikit-uplift's perfect ranking needs that.
    The interval is None, and `reason` says why, if it would not be valid. `user` (N,) has each
    row's user for clustered variances.
    """
    average = AverageEffect(0 if user is None else int(user.max()) + 1, LEAST)
    average.update(treatment == 1, outcome, chance, arms[:, 0], arms[:, 1], user)
    said = average.figures()
    effect = arms[half:, 0] - arms[half:, 1]
    y, t = outcome[half:], treatment[half:]
    binary = bool(np.isin(outcome, (0, 1)).all())
    return {
        "qini": lift.qini(y, effect, t),
        "auuc": lift.auuc(y, effect, t) if binary else None,
        "ate": said["value"],
        "interval": said["interval"],
        "estimator": said["estimator"],
        "reason": said["reason"],
    }
