"""Causal figures computed from outcomes and closed windows; the model does not learn from them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.batch import Batch
from stream.effects import AverageEffect, OffPolicy, PathRegression, Slopes, Waiting
from stream.interaction_type import InteractionType
from stream.join import Closed
from stream.model.config import OutcomeConfig
from stream.model.links import NUMBERS
from stream.model.step.names import TERMS

Numbers = Callable[[NDArray[np.int32]], NDArray[np.float32] | None]  # item rows -> current numbers


class Estimators:
    """Average effects, path coefficients, slopes of items' numbers, and the greedy policy's value.

    Parameters
    ----------
    outcomes
        The configured outcomes.
    items, users
        The most rows of either; address space for them is reserved, memory is committed on use.
    """

    def __init__(self, outcomes: Sequence[OutcomeConfig], items: int, users: int) -> None:
        """Start without any observations."""
        names = [o.name for o in outcomes]
        self.effects = {name: AverageEffect(users, waits=True) for name in names}
        self.paths = {name: PathRegression(TERMS, users=users, items=items) for name in names}
        self.slopes = {o.name: Slopes(o.link == "logit", items, NUMBERS, users) for o in outcomes}
        self.waiting = Waiting(items, NUMBERS)
        self._logit = np.array([o.link == "logit" for o in outcomes])
        self.greedy = OffPolicy(users=users)
        self._expected = np.zeros(2)  # sum, count of predictions: their mean is DR's reward model
        self._clicks = np.zeros(3)  # shown windows with a prediction: expected, observed, count

    def regress(self, batch: Batch, terms: NDArray[np.float32]) -> None:
        """Add the sampled outcomes to the path regression on the terms of their scores."""
        sampled = terms[:, 0] > 0
        for o, fit in enumerate(self.paths.values()):
            mine = sampled & (batch.outcome == o)
            if mine.any():
                fit.update(terms[mine], batch.label[mine], batch.user[mine], batch.item[mine])

    def follow(self, batch: Batch, terms: NDArray[np.float32], now: Numbers) -> None:
        """Queue the outcomes with their items' numbers, and add those that are due to the slopes.

        Only clicks at the first position are used, since examination is certain there.
        """
        told = (batch.role == InteractionType.FACTUAL) | (batch.role == InteractionType.EXPOSED)
        told &= ~self._logit[batch.outcome] | (batch.position <= 1)
        columns = {name: getattr(batch, name)[told] for name in ("item", "outcome", "label")}
        columns |= {"user": terms[told, 1], "ts_ms": batch.ts_ms[told], "who": batch.user[told]}
        self._slope(self.waiting.add(columns), now)

    def flush(self, now: Numbers) -> None:
        """Add all queued outcomes to the slopes."""
        self._slope(self.waiting.all(), now)

    def _slope(self, due: Mapping[str, NDArray[Any]], now: Numbers) -> None:
        """Add the outcomes that are due to the slopes, with the numbers of their event times."""
        numbers = now(due["item"]) if len(due["item"]) else None
        if numbers is None:
            return
        x = self.waiting.as_of(due, numbers)
        for o, slopes in enumerate(self.slopes.values()):
            mine = due["outcome"] == o
            slopes.update(
                due["item"][mine], due["label"][mine], due["user"][mine], x[mine], due["who"][mine]
            )

    def discard(self, item: int) -> None:
        """Forget the running means of that item and its queued outcomes."""
        self.waiting.discard(item)
        for slopes in self.slopes.values():
            slopes.discard(item)

    def update(
        self, closed: Closed, treated: NDArray[np.float32], control: NDArray[np.float32]
    ) -> None:
        """Add the closed windows to the average effects, the calibration and the off-policy value.

        Only first decisions of a user and item enter the comparison of the arms; the calibration of
        clicks and the off-policy value use all windows.

        Parameters
        ----------
        closed
            The windows that closed in this poll.
        treated, control
            Predictions (J,) for this poll's interactions; a window that opened in this poll takes
            its prediction from there.
        """
        if not len(closed):
            return
        now = closed.predicted_by >= 0
        mu1, mu0 = closed.treated.copy(), closed.control.copy()
        mu1[now], mu0[now] = treated[closed.predicted_by[now]], control[closed.predicted_by[now]]
        nothing = np.full(len(closed), np.nan, np.float32)
        first = closed.first
        for name, effect in self.effects.items():
            label = closed.click if name == "click" else closed.rating
            clicked = name == "click"  # predictions are of clicks
            effect.update(
                closed.shown[first], label[first], closed.show_probability[first],
                (mu1 if clicked else nothing)[first], (mu0 if clicked else nothing)[first],
                closed.user[first],
            )  # fmt: skip
        shown = closed.shown & np.isfinite(closed.click)
        told = shown & np.isfinite(mu1)
        for n, column in enumerate((mu1, closed.click)):  # cumsum adds in order, unlike sum
            self._clicks[n] = np.cumsum(np.append(self._clicks[n], column[told]))[-1]
        self._clicks[2] += int(told.sum())
        self._judge(closed.click[shown], closed.propensity[shown], mu1[shown], closed.user[shown])

    def _judge(
        self,
        reward: NDArray[np.float32],
        propensity: NDArray[np.float32],
        expected: NDArray[Any],
        user: NDArray[np.int32],
    ) -> None:
        """Update the off-policy value of the policy that never explores.

        If the share of exploration is below 1/2, an item stood at its position by rank if and only
        if its logged propensity is above 1/2. The log does not tell what the greedy policy would
        have shown instead, so the reward model of the doubly robust estimate is a constant: the
        mean prediction so far.
        """
        told = np.isfinite(propensity)
        reward, propensity, expected = reward[told], propensity[told], expected[told].astype(float)
        greedy = (propensity > 0.5).astype(float)
        expected = np.nan_to_num(expected, nan=0.0)
        sums = self._expected[0] + np.concatenate([[0.0], np.cumsum(expected)])
        counts = self._expected[1] + np.arange(len(expected) + 1)
        constant = sums[:-1] / np.maximum(counts[:-1], 1)
        self._expected[:] = sums[-1], counts[-1]
        self.greedy.update(reward, propensity, greedy, constant, constant, user[told])

    def figures(self, numbers: Sequence[str] = ()) -> dict[str, Any]:
        """Return effects, paths and slopes by outcome, and the greedy policy's value, for JSON.

        `numbers` are the names of the items' numeric attributes, in the order of their columns.
        """
        slopes = {name: of.figures(numbers) for name, of in self.slopes.items()}
        return {
            "effects": {name: effect.figures() for name, effect in self.effects.items()},
            "paths": {name: fit.figures() for name, fit in self.paths.items()},
            "slopes": {name: said for name, said in slopes.items() if said is not None},
            "calibration": {"click": self._calibration()},
            "off_policy": {"greedy": self.greedy.figures()},
        }

    def _calibration(self) -> dict[str, float | int | None]:
        """Return the mean click predicted when a window opened and the mean click observed."""
        expected, observed, count = self._clicks.tolist()
        ratio = observed / expected if expected else None
        mean = (expected / count, observed / count) if count else (None, None)
        return {"expected": mean[0], "observed": mean[1], "ratio": ratio, "windows": int(count)}

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs."""
        state = {f"greedy.{k}": v for k, v in self.greedy.state().items()}
        for name, fit in self.paths.items():
            state |= {f"path.{name}.{k}": v for k, v in fit.state().items()}
        state |= {f"waiting.{k}": v for k, v in self.waiting.state().items()}
        for name, slopes in self.slopes.items():
            state |= {f"slope.{name}.{k}": v for k, v in slopes.state().items()}
        for name, effect in self.effects.items():
            state |= {f"effect.{name}.{k}": v for k, v in effect.state().items()}
        return state | {"expected": self._expected.copy(), "clicks": self._clicks.copy()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore saved figures."""

        def part(prefix: str) -> dict[str, NDArray[Any]]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        self.greedy.load(part("greedy."))
        for name, fit in self.paths.items():
            fit.load(part(f"path.{name}."))
        self.waiting.load(part("waiting."))
        for name, slopes in self.slopes.items():
            slopes.load(part(f"slope.{name}."))
        for name, effect in self.effects.items():
            effect.load(part(f"effect.{name}."))
        self._expected[:] = state["expected"]
        self._clicks[:] = state["clicks"]
