"""The interactions that a learner alone is measured on: made at random, some rows described."""

from dataclasses import dataclass, replace

import numpy as np

from stream.batch import Batch, ratings
from stream.interaction_type import InteractionType
from stream.model.learner import Learner

SMALL, LARGE, HUGE = (943, 1_682), (100_000, 50_000), (1_000_000, 1_000_000)  # users, items
DESCRIBED = (10_000, 10_000)  # users and items with attributes


@dataclass(frozen=True)
class Case:
    """What is learned: how many rows, how items are drawn, whether rows have attributes."""

    rows: tuple[int, int]
    items: str = "uniform"
    described: bool = False

    def __str__(self) -> str:
        users, items = self.rows
        kind = ", with attributes" if self.described else ""
        return f"{users:,} x {items:,}, {self.items} items{kind}"


def drawn(case: Case, size: int, r: np.random.Generator) -> np.ndarray:
    """Return the items of a batch: uniform, log-uniform, or one of them in 16 interactions."""
    items = case.rows[1]
    if case.items == "log-uniform":
        return (items ** r.random(size) - 1).astype(np.int32).clip(0, items - 1)
    found = r.integers(items, size=size).astype(np.int32)
    if case.items == "one in 16":
        found[::16] = 7
    return found


def batch(case: Case, size: int, seed: int) -> Batch:
    """Return random interactions: half ratings without an impression, half exposures of clicks."""
    r = np.random.default_rng(seed)
    exposed = r.random(size) < 0.5
    made = ratings(
        r.integers(case.rows[0], size=size).astype(np.int32),
        drawn(case, size, r),
        exposed.astype(np.int8),
        np.where(exposed, r.integers(0, 2, size), r.integers(1, 6, size)).astype(np.float32),
        np.full(size, case.rows[1], np.int32),
        r.integers(1 << 62, size=size).astype(np.uint64),
        1_790_000_000_000 + np.arange(seed * size, (seed + 1) * size),
    )
    role = np.where(exposed, InteractionType.EXPOSED, InteractionType.FACTUAL).astype(np.int8)
    position = np.where(exposed, r.integers(1, 11, size), 0).astype(np.int32)
    return replace(made, role=role, position=position, counts=~exposed | (made.label > 0))


def describe(learner: Learner) -> None:
    """Give rows attributes: at most 6 links a user, 7 an item, as a number has four."""
    r = np.random.default_rng(0)
    for row in range(DESCRIBED[0]):
        age, job = int(r.integers(15, 80)), f"j{r.integers(20)}"
        learner.set_attributes("user", row, {"age": age, "job": job, "paid": bool(row % 2)})
        genres = [f"g{n}" for n in r.choice(20, 3, replace=False)]
        learner.set_attributes("item", row, {"year": int(r.integers(1930, 2027)), "genre": genres})
