"""Scores computed with the service's formulas from the rows that it would serve."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stream.engine import Engine
from stream.inference import outcome as formulas
from stream.inference.model import Floats, parse
from stream.inference.rows import ServedItems, ServedPairs, ServedUser

Rows = NDArray[np.int32]
Score = Callable[[ServedPairs], Floats]


def scores(
    engine: Engine, users: Rows, items: Rows, outcome: str, score: Score
) -> NDArray[np.float64]:
    """Return the score of every pair (users, items); no row is created."""
    model, learner = parse(engine.model()), engine.learner
    user, item = learner.served_rows("user", users), learner.served_rows("item", items)
    held = ServedItems(item.bias, item.vector, item.events, item.exposures, item.controls)
    each = [
        ServedPairs(
            model, model.outcomes[outcome], learner.globals(), ServedUser(bias, vector), held
        )
        for bias, vector in zip(user.bias, user.vector, strict=True)
    ]
    return np.array([score(pairs) for pairs in each], np.float64).reshape(len(users), len(items))


def if_shown(pairs: ServedPairs) -> Floats:
    """Return the outcomes if shown (n,), with the effects of position and popularity removed.

    Clicks are probabilities; ratings may lie outside their scale, because clipped ones would tie.
    """
    arm = formulas.shown(pairs, formulas.IF_SHOWN)
    return arm.mean if pairs.outcome.link == "logit" else arm.eta


def treated(pairs: ServedPairs) -> Floats:
    """Return the expected outcomes if shown (n,), in the world as it is."""
    return formulas.shown(pairs).mean


def control(pairs: ServedPairs) -> Floats:
    """Return the expected outcomes if withheld (n,)."""
    return formulas.withheld(pairs).mean


def examined(engine: Engine, outcome: str, position: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each position's examination probability theta (n,); 1 for outcomes without one."""
    model = parse(engine.model())
    if model.outcomes[outcome].link != "logit":
        return np.ones(len(position))
    return np.asarray(model.theta[np.minimum(position, len(model.theta)) - 1], np.float64)


SCORES: dict[str, Score] = {"outcome": if_shown, "consumption": formulas.consumption}
