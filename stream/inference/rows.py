"""One user and n items, as their rows are served (docs/redis.md, layout 4)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stream.inference.model import Floats, PublishedModel, PublishedOutcome

Counts = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class ServedUser:
    """A user's row: bias [a Y | a0 Y], vector [g D | s E]; s includes the session factors."""

    bias: Floats  # (2Y,)
    vector: Floats  # (D + E,)
    events: int = 0
    exposures: int = 0
    controls: int = 0


@dataclass(frozen=True, slots=True)
class ServedItems:
    """Rows of items: bias [c Y | c0 Y | m H | q | has0], vector [h D | h0 D | t E]."""

    bias: Floats  # (n, 2Y + H + 2)
    vector: Floats  # (n, 2D + E)
    events: Counts  # (n,)
    exposures: Counts  # (n,)
    controls: Counts  # (n,)

    def __len__(self) -> int:
        return len(self.bias)

    def take(self, rows: NDArray[np.intp] | Sequence[int]) -> "ServedItems":
        """Return the items at these indices, in their order."""
        return ServedItems(
            self.bias[rows],
            self.vector[rows],
            self.events[rows],
            self.exposures[rows],
            self.controls[rows],
        )


@dataclass(frozen=True, slots=True)
class ServedFeatures:
    """Rows of attribute values: bias [b Y | b0 Y | m H | low | high | center | scale], vector v.

    If `present` is false, the value was never seen and its row is zeros.
    """

    bias: Floats  # (F, 2Y + H + 4)
    vector: Floats  # (F, D)
    events: Counts  # (F,)
    present: NDArray[np.bool_]  # (F,)

    @property
    def range(self) -> Floats:
        """Return low, high, center and scale of numbers (F, 4); zeros for other values."""
        return self.bias[:, -4:]


@dataclass(frozen=True, slots=True)
class ServedPairs:
    """One user and n items, under one model and for one outcome."""

    model: PublishedModel
    outcome: PublishedOutcome
    globals_: Floats  # (2Y,) base and base0; (Y,) if the model is not causal
    user: ServedUser
    items: ServedItems

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: NDArray[np.intp] | Sequence[int]) -> "ServedPairs":
        """Return the pairs with the items at these indices."""
        return replace(self, items=self.items.take(rows))

    def wide(self) -> "ServedPairs":
        """Return the pairs in double precision."""
        items, user = self.items, self.user
        return replace(
            self,
            globals_=self.globals_.astype(np.float64),
            items=replace(
                items, bias=items.bias.astype(np.float64), vector=items.vector.astype(np.float64)
            ),
            user=replace(
                user, bias=user.bias.astype(np.float64), vector=user.vector.astype(np.float64)
            ),
        )

    # the contents of the rows, under the symbols of docs/model.md

    @property
    def treated(self) -> int:
        """Return the column of the outcome in the biases if shown."""
        return self.outcome.index

    @property
    def control(self) -> int:
        """Return the column of the outcome in the biases if withheld."""
        return len(self.model.outcomes) + self.outcome.index

    @property
    def g(self) -> Floats:
        """Return the user's factors (D,)."""
        return self.user.vector[: self.model.factors]

    @property
    def lasting(self) -> Floats:
        """Return the exposure scores s_u . t_i (n,) by the long-term factors only."""
        width = self.lasting_width
        return self.t[:, :width] @ self.s[:width]

    @property
    def lasting_width(self) -> int:
        """Return how many exposure factors are long-term; the others are session factors."""
        width = self.model.lasting
        return max(len(self.s) if width is None else width, 1)

    @property
    def s(self) -> Floats:
        """Return the user's exposure factors (E,)."""
        return self.user.vector[self.model.factors :]

    @property
    def h(self) -> Floats:
        """Return the items' factors (n, D) if shown."""
        return self.items.vector[:, : self.model.factors]

    @property
    def h0(self) -> Floats:
        """Return the items' factors (n, D) if withheld."""
        return self.items.vector[:, self.model.factors : 2 * self.model.factors]

    @property
    def t(self) -> Floats:
        """Return the items' exposure factors (n, E)."""
        return self.items.vector[:, 2 * self.model.factors :]

    @property
    def m(self) -> Floats:
        """Return the items' exposure biases (n, H)."""
        begin = 2 * len(self.model.outcomes)
        return self.items.bias[:, begin : begin + self.model.heads]

    @property
    def q(self) -> Floats:
        """Return the items' popularity (n,): log(1 + decayed count of clicks and ratings)."""
        return self.items.bias[:, -2]

    @property
    def has_control(self) -> NDArray[np.bool_]:
        """Return which items have control outcomes of their own (n,)."""
        return self.items.bias[:, -1] > 0
