"""Detects drift of the loss and of the mean prediction with river's detectors.

A detector sees the mean of each block of 128 events: updates per event are too slow, as is river's
KSWIN, and single losses are too noisy. river's objects do not load across its versions, so only
their inputs are stored, and a detector is always the replay of its inputs (`_inputs`), which are
halved when full. A restored detector therefore equals one that was never stopped.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river.drift import ADWIN, PageHinkley

from stream.compiled import compiled

BLOCK = 128  # events per mean
_KEEP = 2_048  # inputs that are replayed: 262,144 events


@compiled
def _blocks(open_, outcome, loss, predicted):  # type: ignore[no-untyped-def]
    """Add the events one by one; return the outcome and the two means of each block now full."""
    n = len(outcome)
    closed = np.empty(n // BLOCK + len(open_), np.int8)
    means = np.empty((len(closed), 2))
    count = 0
    for i in range(n):
        block = open_[outcome[i]]
        block[0] += 1
        block[1] += loss[i]
        block[2] += predicted[i]
        if block[0] == BLOCK:
            closed[count] = outcome[i]
            means[count, 0] = block[1] / BLOCK
            means[count, 1] = block[2] / BLOCK
            count += 1
            block[:] = 0
    return closed[:count], means[:count]


class Detector:
    """One signal monitored by one of river's detectors."""

    def __init__(self, method: str) -> None:
        self.method = method
        self._inputs: list[float] = []
        self._detector = self._make()

    def _make(self) -> Any:
        # ADWIN keeps river's default delta of .002. PageHinkley reports when the excess over its
        # tolerance sums to .5 (half a star); the noise of the means is near .08.
        if self.method == "adwin":
            return ADWIN()  # type: ignore[no-untyped-call]
        return PageHinkley(delta=0.02, threshold=0.5)

    def update(self, x: float) -> bool:
        """Feed x to the detector; return whether it now reports drift."""
        if len(self._inputs) >= 2 * _KEEP:
            self.load(np.array(self._inputs[-_KEEP:]))
        self._inputs.append(x)
        self._detector.update(x)
        return bool(self._detector.drift_detected)

    def state(self) -> NDArray[np.float64]:
        """Return the inputs from which `load` rebuilds the detector."""
        return np.array(self._inputs, np.float64)

    def load(self, inputs: NDArray[np.float64]) -> None:
        """Rebuild the detector by replaying the inputs."""
        self._inputs = inputs.tolist()
        self._detector = self._make()
        for x in self._inputs:
            self._detector.update(x)


class DriftDetectors:
    """Detectors on the loss and the prediction of each outcome, fed one block at a time."""

    def __init__(self, outcomes: Sequence[str]) -> None:
        self._outcomes = tuple(outcomes)
        self._open = np.zeros((len(self._outcomes), 3))  # count, loss, prediction of the open block
        self.detectors = {
            f"{o}_{what}_{method}": Detector(method)
            for o in self._outcomes
            for what in ("loss", "prediction")
            for method in ("adwin", "page_hinkley")
        }
        self.detections = dict.fromkeys(self.detectors, 0)

    def update(
        self,
        outcome: NDArray[np.int8],
        loss: NDArray[np.float64],
        predicted: NDArray[np.float32],
    ) -> list[str]:
        """Feed every block that is now full to its detectors; return the signals that fired.

        Blocks end by event count, never with a batch, so the same events always give the same
        blocks.
        """
        fired: list[str] = []
        closed, means = _blocks(self._open, outcome, loss, predicted)
        for o, (mean_loss, mean_prediction) in zip(closed.tolist(), means.tolist(), strict=True):
            for what, mean in (("loss", mean_loss), ("prediction", mean_prediction)):
                for method in ("adwin", "page_hinkley"):
                    signal = f"{self._outcomes[o]}_{what}_{method}"
                    if self.detectors[signal].update(mean):
                        self.detections[signal] += 1
                        fired.append(signal)
        return fired

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs."""
        counts = np.array(list(self.detections.values()), np.int64)
        return {"open": self._open.copy(), "detections": counts} | {
            name: detector.state() for name, detector in self.detectors.items()
        }

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore saved detectors."""
        self._open[:] = state["open"]
        self.detections = dict(zip(self.detectors, state["detections"].tolist(), strict=True))
        for name, detector in self.detectors.items():
            detector.load(state[name])
