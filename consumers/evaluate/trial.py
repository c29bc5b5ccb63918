"""A randomised trial for the engine: each row is a new user; the one item is shown or withheld."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from consumers.evaluate import served
from consumers.evaluate.feed import Feed, FeedEvent, ensure_rows, event
from consumers.evaluate.table import Attributes
from stream.engine import Engine
from stream.errors import Inconsistent
from stream.model.config import SCALE_MAX, ModelConfig, OutcomeConfig, scale_fault

START_MS = 1_600_000_000_000
STEP_MS = 3 * 3_600_000  # between rows: every window closes before the next row
CHUNK = 256  # rows that are predicted before any of them is learned
ITEM = "treatment"

Arms = NDArray[np.float64]  # (n, 2): outcome if treated, and if not


def scaled(outcome: NDArray[np.float64]) -> tuple[OutcomeConfig, OutcomeConfig]:
    """Return the model's outcomes with the observed range as the rating scale."""
    low, high = float(outcome.min()), float(outcome.max())
    if low == high:
        raise Inconsistent(f"the outcome is always {low:g}", "choose an outcome that varies")
    if fault := scale_fault(low, high):
        raise Inconsistent(
            f"the outcome goes from {low:g} to {high:g}: {fault}",
            f"give the column in a unit in which it stays within {SCALE_MAX:g}, around 0",
        )
    return (
        OutcomeConfig("rating", "identity", low, high),
        OutcomeConfig("click", "logit", 0.0, 1.0),
    )


class Trial:
    """The rows of a trial, learned in file order.

    Parameters
    ----------
    attributes : sequence of dict
        Each row's attributes.
    treatment, outcome, chance : array, shape (N,)
        Treatment (0 or 1), outcome, and probability of treatment.
    """

    def __init__(
        self,
        attributes: Sequence[Attributes],
        treatment: NDArray[np.int8],
        outcome: NDArray[np.float64],
        chance: NDArray[np.float64],
        config: ModelConfig,
        seed: int = 0,
    ) -> None:
        """Set up an engine that has learned nothing yet."""
        self.attributes = attributes
        self.treatment, self.outcome, self.chance = treatment, outcome, chance
        self.name = "click" if np.isin(outcome, (0, 1)).all() else "rating"
        config = replace(config, max_users=len(treatment) + 2, max_items=2)
        if self.name == "rating":
            config = replace(config, outcomes=scaled(outcome))
        self.feed = Feed(Engine(config, seed))
        self.feed.learn([event("item", START_MS, event_id="item", item_id=ITEM)])

    def one_pass(self, learned: int) -> Arms:
        """Learn the first `learned` rows; return each row's prediction before it, shape (N, 2)."""
        total = len(self.treatment)
        out = np.empty((total, 2))
        cuts = [*range(0, learned, CHUNK), learned, total]
        for begin, end in pairwise(cuts):
            if begin < end:
                self.feed.learn(self._people(begin, end))
                out[begin:end] = self._predicted(begin, end)
            if end <= learned:
                self.feed.learn(self._outcomes(begin, end))
                self.feed.engine.close_windows()
        return out

    def _predicted(self, begin: int, end: int) -> Arms:
        """Return the predicted outcomes by arm."""
        engine = self.feed.engine
        users = ensure_rows(engine, "user", map(str, range(begin, end)))
        item = ensure_rows(engine, "item", [ITEM])
        arms = [
            served.scores(engine, users, item, self.name, arm)[:, 0]
            for arm in (served.treated, served.control)
        ]
        return np.stack(arms, 1)

    def _people(self, begin: int, end: int) -> Iterator[FeedEvent]:
        """Yield the user events of these rows."""
        for n in range(begin, end):
            yield event(
                "user", START_MS + n * STEP_MS,
                event_id=f"u{n}", user_id=str(n), attributes=self.attributes[n],
            )  # fmt: skip

    def _outcomes(self, begin: int, end: int) -> Iterator[FeedEvent]:
        """Yield the impressions and outcomes of these rows."""
        for n in range(begin, end):
            ts_ms, y = START_MS + n * STEP_MS, float(self.outcome[n])
            ids = {"user_id": str(n), "item_id": ITEM, "impression_id": str(n)}
            yield event(
                "impression", ts_ms, event_id=f"i{n}", **ids,
                shown=bool(self.treatment[n]), show_probability=float(self.chance[n]),
            )  # fmt: skip
            if self.name == "rating":
                yield event("rating", ts_ms + 1, event_id=f"o{n}", **ids, value=y)
            elif y:
                yield event("click", ts_ms + 1, event_id=f"o{n}", **ids)
