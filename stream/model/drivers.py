"""The drivers by what was chosen: each learns batches, over the same functions of the step."""

from typing import Any, Protocol

from stream.model.choice import Choice
from stream.model.config import ModelConfig
from stream.model.step.arguments import scratch
from stream.model.step.names import Given, Layouts, Predictions
from stream.model.step.sequential import sequential


class Driver(Protocol):
    """Learns batches."""

    compiled: Any  # the function that numba compiled

    def learn(self, given: Given, out: Predictions, memory: float, linked: bool) -> None:
        """Learn the columns in order, and write what was expected of each before.

        `memory` is `ModelConfig.memory`; `linked` says whether any row has attribute values.
        """


class Sequential:
    """One interaction after the other, on one core."""

    def __init__(self, at: Layouts) -> None:
        """Make room for one interaction."""
        self.compiled = sequential(at)
        self._scratch = scratch(at, 1)

    def learn(self, given: Given, out: Predictions, memory: float, linked: bool) -> None:
        """Learn the columns in order, and write what was expected of each before."""
        self.compiled(given, self._scratch, out, memory)


def driver(choice: Choice, at: Layouts, config: ModelConfig) -> Driver:
    """Return the chosen driver for rows of these layouts."""
    if choice.driver == "sequential":
        return Sequential(at)
    rows = (config.max_users, config.max_items, config.max_features)
    from stream.model.blocks.cpu import Threaded  # the other drivers need not compile it

    return Threaded(at, rows, config.block, choice.threads)
