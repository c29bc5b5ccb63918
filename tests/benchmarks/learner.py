"""The learner alone: its drivers by block, table size, items and attributes; quality by block."""

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch

from stream.batch import Batch, ratings
from stream.model.choice import gpu
from stream.model.config import ModelConfig, Paths
from stream.model.learner import Learner
from stream.roles import Role
from tests.test_model import progressive

SIZE = 32_768  # interactions a batch
ROUNDS, SECONDS = 3, 0.4  # each case learns in turn, so that a slow moment of the machine is all's
SMALL, LARGE, HUGE = (943, 1_682), (100_000, 50_000), (1_000_000, 1_000_000)
DESCRIBED = (10_000, 10_000)  # users and items with attributes
CLOSED = Paths(*[False] * len(astuple(Paths())))
SEQUENTIAL = ModelConfig(step="sequential", device="cpu")


@dataclass(frozen=True)
class Case:
    """What is learned: how many rows, how items are drawn, whether rows are described."""

    rows: tuple[int, int]
    items: str = "uniform"
    described: bool = False

    def __str__(self) -> str:
        users, items = self.rows
        kind = ", attributes" if self.described else ""
        return f"{users:,} x {items:,}, {self.items} items{kind}"


def drawn(case: Case, r: np.random.Generator) -> np.ndarray:
    """Return the items of a batch: uniform, log-uniform, or one of them in 16 interactions."""
    items = case.rows[1]
    if case.items == "log-uniform":
        return (items ** r.random(SIZE) - 1).astype(np.int32).clip(0, items - 1)
    found = r.integers(items, size=SIZE).astype(np.int32)
    if case.items == "one in 16":
        found[::16] = 7
    return found


def batch(case: Case, seed: int) -> Batch:
    """Return random interactions: half ratings without an impression, half exposures of clicks."""
    r = np.random.default_rng(seed)
    exposed = r.random(SIZE) < 0.5
    made = ratings(
        r.integers(case.rows[0], size=SIZE).astype(np.int32),
        drawn(case, r),
        exposed.astype(np.int8),
        np.where(exposed, r.integers(0, 2, SIZE), r.integers(1, 6, SIZE)).astype(np.float32),
        np.full(SIZE, case.rows[1], np.int32),
        r.integers(1 << 62, size=SIZE).astype(np.uint64),
        1_790_000_000_000 + np.arange(seed * SIZE, (seed + 1) * SIZE),
    )
    role = np.where(exposed, Role.EXPOSED, Role.FACTUAL).astype(np.int8)
    position = np.where(exposed, r.integers(1, 11, SIZE), 0).astype(np.int32)
    return replace(made, role=role, position=position, counts=~exposed | (made.label > 0))


def describe(learner: Learner) -> Learner:
    """Give every row attributes: at most 6 links a user, 7 an item."""
    r = np.random.default_rng(0)
    for row in range(DESCRIBED[0]):
        age, job = int(r.integers(15, 80)), f"j{r.integers(20)}"
        learner.set_attributes("user", row, {"age": age, "job": job, "paid": bool(row % 2)})
        genres = [f"g{n}" for n in r.choice(20, 3, replace=False)]
        learner.set_attributes("item", row, {"year": int(r.integers(1930, 2027)), "genre": genres})
    return learner


def drivers(case: Case) -> dict[str, ModelConfig]:
    """Return the drivers that are worth a case, by name."""
    found = {"sequential": SEQUENTIAL}
    if case.rows == LARGE and case.items == "uniform":
        found["sequential, paths closed"] = replace(SEQUENTIAL, paths=CLOSED)
    for block in (256, 1_024, 16_384):
        blocks = replace(SEQUENTIAL, step="blocks", block=block)
        for threads in (1, 2):
            found[f"blocks of {block:,}, {threads} threads"] = replace(blocks, threads=threads)
        if not gpu().lacks and gpu().name:
            found[f"blocks of {block:,}, GPU"] = replace(blocks, device="cuda")
    return found


def moved(learner: Learner, case: Case) -> float:
    """Return the bytes that an interaction reads and writes at least: its rows, once each way."""
    user, item, value = (t.layout.width for t in (learner.user, learner.item, learner.feature))
    links = 6 + 7 * (1 + learner.config.pairs) if case.described else 0
    return 2.0 * 4 * (user + (1 + learner.config.pairs) * item + links * value)


def bandwidth(device: torch.device) -> float:
    """Return the bytes a second that a large copy reads and writes."""
    here = torch.ones(1 << 27, device=device)
    there = torch.empty_like(here)
    best = 0.0
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        there.copy_(here)
        _wait(device)
        best = max(best, 2 * here.nbytes / (time.perf_counter() - start))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def rates(case: Case) -> dict[str, tuple[float, Learner]]:
    """Return events a second by driver, the median of the rounds, and the learner."""
    batches = [batch(case, seed) for seed in range(4)]
    learners = {name: Learner(config) for name, config in drivers(case).items()}
    for learner in learners.values():
        if case.described:
            describe(learner)
        for b in batches:  # rows are created, kernels compiled
            learner.step(b)
    found: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(ROUNDS):
        for name, learner in learners.items():
            start, done = time.perf_counter(), 0
            while (passed := time.perf_counter() - start) < SECONDS or not done:
                learner.step(batches[done % len(batches)])
                done += 1
            found[name].append(SIZE * done / passed)
    return {name: (float(np.median(told)), learners[name]) for name, told in found.items()}


def show(case: Case, copies: Callable[[torch.device], float]) -> None:
    """Print the rates of a case."""
    told = rates(case)
    base = told["sequential"][0]
    print(f"\n{case}", flush=True)
    for name, (rate, learner) in told.items():
        block = learner.config.block
        pace = "" if name.startswith("seq") else f", {1e6 * block / rate:,.0f} us a block"
        share = rate * moved(learner, case) / copies(learner.device)
        print(f"  {name:<28} {rate / 1e6:6.3f} M/s ({rate / base:.2f} x){pace}, "
              f"{share:.0%} of the memory's bandwidth", flush=True)  # fmt: skip


def quality() -> None:
    """Print the progressive error on MovieLens-100K by block."""
    print("\nMovieLens-100K in time order, one pass, polls of 25,000: mean absolute error")
    cases = {"sequential": SEQUENTIAL}
    for block in (1, 16, 256, 1_024, 4_096):
        cases[f"blocks of {block:,}"] = replace(SEQUENTIAL, step="blocks", block=block, threads=2)
    for name, config in cases.items():
        print(f"  {name:<28} {progressive(config, 100_000, 25_000)[0]:.4f}", flush=True)


def run() -> None:
    """Print events a second of each driver, as multiples of the sequential one, and the quality."""
    c = SEQUENTIAL
    held = {"cpu": bandwidth(torch.device("cpu"))}

    def copies(device: torch.device) -> float:
        if device.type not in held:
            held[device.type] = bandwidth(device)
        return held[device.type]

    print(f"D={c.factors}, E={c.exposure_factors}, S={c.session_factors}, {c.pairs} uniform pairs "
          f"an event; half ratings, half exposures; batches of {SIZE:,}; median of {ROUNDS}; "
          f"a copy on the CPU moves {held['cpu'] / 1e9:.1f} GB/s", flush=True)  # fmt: skip
    cases = [Case(SMALL), Case(LARGE), Case(LARGE, "log-uniform"), Case(LARGE, "one in 16")]
    cases.append(Case(DESCRIBED, described=True))
    if gpu().name and not gpu().lacks:
        cases.append(Case(HUGE))
    for case in cases:
        show(case, copies)
    quality()
