"""The learner alone on one core: what each part of the law costs, by batch size."""

import time
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import partial

import numpy as np

from stream.batch import Batch, ratings
from stream.model.config import ModelConfig, Paths
from stream.model.learner import Learner
from stream.roles import Role

USERS, ITEMS = 100_000, 50_000
DESCRIBED = 10_000  # users and items with attributes; the events with attributes are of these
ROUNDS, SECONDS = 3, 0.4  # each case learns in turn, so that a slow moment of the machine is all's
REPLAYED = 4
CLOSED = Paths(*[False] * len(astuple(Paths())))
CONFIG = ModelConfig()
CASES = {
    "plain": replace(CONFIG, paths=CLOSED),
    "full": CONFIG,
    f"replay x{REPLAYED}": CONFIG,
    "blocks": replace(CONFIG, step="blocks"),
}


def batch(size: int, seed: int, users: int, items: int) -> Batch:
    """Return random interactions: half ratings without an impression, half exposures of clicks."""
    r = np.random.default_rng(seed)
    exposed = r.random(size) < 0.5
    made = ratings(
        r.integers(users, size=size).astype(np.int32),
        r.integers(items, size=size).astype(np.int32),
        exposed.astype(np.int8),
        np.where(exposed, r.integers(0, 2, size), r.integers(1, 6, size)).astype(np.float32),
        np.full(size, items, np.int32),
        r.integers(1 << 62, size=size).astype(np.uint64),
        1_790_000_000_000 + np.arange(seed * size, (seed + 1) * size),
    )
    role = np.where(exposed, Role.EXPOSED, Role.FACTUAL).astype(np.int8)
    position = np.where(exposed, r.integers(1, 11, size), 0).astype(np.int32)
    return replace(made, role=role, position=position, counts=~exposed | (made.label > 0))


def described() -> Learner:
    """Return a learner whose first rows have attributes: at most 6 links a user, 7 an item."""
    learner, r = Learner(CONFIG), np.random.default_rng(0)
    for row in range(DESCRIBED):
        age, job = int(r.integers(15, 80)), f"j{r.integers(20)}"
        learner.set_attributes("user", row, {"age": age, "job": job, "paid": bool(row % 2)})
        genres = [f"g{n}" for n in r.choice(20, 3, replace=False)]
        learner.set_attributes("item", row, {"year": int(r.integers(1930, 2027)), "genre": genres})
    return learner


def again(learner: Learner, batch: Batch) -> None:
    """The batch, and as many remembered interactions several times, were learned."""
    learner.step(batch)
    learner.replay(REPLAYED * len(batch))


def rates(size: int, attributes: Learner | None) -> dict[str, float]:
    """Return events a second by case, the median of the rounds."""
    users, items = (DESCRIBED, DESCRIBED) if attributes else (USERS, ITEMS)
    batches = [batch(size, n, users, items) for n in range(max(2, 131_072 // size))]
    state = attributes.state() if attributes else None
    learn: dict[str, Callable[[Batch], object]] = {}
    for name, config in CASES.items():
        learner = Learner(config)
        if state is not None:
            learner.load(state)
        learn[name] = partial(again, learner) if name.startswith("replay") else learner.step
        for b in batches[:2]:  # rows are created, kernels compiled
            learn[name](b)
    found: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, step in learn.items():
            start, done = time.perf_counter(), 0
            while (passed := time.perf_counter() - start) < SECONDS or not done:
                step(batches[done % len(batches)])
                done += 1
            found[name].append(size * done / passed)
    return {name: float(np.median(told)) for name, told in found.items()}


def run() -> None:
    """Print events a second of each case at each batch size, as multiples of the plain step."""
    c = CONFIG
    print(f"one core; D={c.factors}, E={c.exposure_factors}, {c.pairs} uniform pairs an event; "
          f"half ratings, half exposures; {USERS:,} users, {ITEMS:,} items (with attributes "
          f"{DESCRIBED:,} each); plain has every causal path closed; x is the time of an event "
          f"against plain; median of {ROUNDS} rounds", flush=True)  # fmt: skip
    for learner in (None, described()):
        for size in (256, 4_096, 65_536):
            told = rates(size, learner)
            said = ", ".join(
                f"{name} {rate / 1e6:.3f} M/s ({told['plain'] / rate:.2f} x)"
                for name, rate in told.items()
            )
            kind = "with attributes" if learner else "no attributes"
            print(f"{kind}, batch {size:>6}: {said}", flush=True)
