"""The learner alone: its drivers by block, table size, items and attributes; quality by block."""

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import cache, partial

import numpy as np
import torch

from stream.batch import Batch
from stream.model.choice import gpu
from stream.model.config import ModelConfig, PathConfig
from stream.model.learner import Learner
from tests.benchmarks.device import alone, bandwidth, moved
from tests.benchmarks.interactions import DESCRIBED, HUGE, LARGE, SMALL, Case, batch, describe
from tests.test_model import progressive

BATCHES = 4
REPLAYED = 4
CLOSED = PathConfig(*[False] * len(astuple(PathConfig())))
SEQUENTIAL = ModelConfig(step="sequential", device="cpu")
THREADED = replace(SEQUENTIAL, step="blocks")
REPLAY = f"sequential, replay x{REPLAYED}"


@dataclass(frozen=True)
class Effort:
    """How much is measured: each driver learns in turn, so that a slow moment is all's."""

    size: int  # interactions a batch
    gpu_size: int  # of them on a GPU
    rounds: int
    seconds: float  # of a driver in a round
    blocks: tuple[int, ...]


FULL = Effort(32_768, 524_288, 3, 0.4, (256, 1_024, 16_384))
QUICK = Effort(4_096, 65_536, 1, 0.1, (256,))


def usable() -> bool:
    """Return whether blocks can learn on a GPU here."""
    return bool(gpu().name) and not gpu().lacks


def cases(effort: Effort) -> list[Case]:
    """Return what is learned; the largest tables on a GPU alone, the smallest alone if quick."""
    if effort is QUICK:
        return [Case(SMALL)]
    found = [Case(SMALL), Case(LARGE), Case(LARGE, "log-uniform"), Case(LARGE, "one in 16")]
    found.append(Case(DESCRIBED, described=True))
    return [*found, Case(HUGE)] if usable() else found


def drivers(case: Case, effort: Effort) -> dict[str, ModelConfig]:
    """Return the drivers that are worth a case, by name."""
    found = {"sequential": SEQUENTIAL}
    if case == Case(LARGE):
        found |= {"sequential, paths closed": replace(SEQUENTIAL, paths=CLOSED), REPLAY: SEQUENTIAL}
    for block in effort.blocks:
        for threads in (1, 2) if case.rows != HUGE else ():
            name = f"blocks of {block:,}, {threads} thread{'s' * (threads > 1)}"
            found[name] = replace(THREADED, block=block, threads=threads)
        if usable():
            found[f"blocks of {block:,}, GPU"] = replace(THREADED, block=block, device="cuda")
    return found


def again(learner: Learner, batch: Batch) -> None:
    """The batch, and as many remembered interactions several times, were learned."""
    learner.step(batch)
    learner.replay(REPLAYED * len(batch))


class Race:
    """The drivers of a case, each with a learner of its own that has learned every batch once."""

    def __init__(self, case: Case, effort: Effort) -> None:
        """Rows are created and kernels compiled afterwards."""
        self.effort = effort
        made = cache(lambda size: [batch(case, size, seed) for seed in range(BATCHES)])
        self.learners = {name: Learner(config) for name, config in drivers(case, effort).items()}
        self.batches: dict[str, list[Batch]] = {}
        self.steps: dict[str, Callable[[Batch], object]] = {}
        for name, learner in self.learners.items():
            if case.described:
                describe(learner)
            on_gpu = learner.device.type == "cuda"
            self.batches[name] = made(effort.gpu_size if on_gpu else effort.size)
            self.steps[name] = partial(again, learner) if name == REPLAY else learner.step
            for b in self.batches[name]:
                self.steps[name](b)

    def rates(self) -> dict[str, list[float]]:
        """Return events a second by driver, of each round."""
        found: dict[str, list[float]] = {name: [] for name in self.learners}
        for _ in range(self.effort.rounds):
            for name, step in self.steps.items():
                batches, events = self.batches[name], 0
                start, done = time.perf_counter(), 0
                while (passed := time.perf_counter() - start) < self.effort.seconds or not done:
                    step(batches[done % BATCHES])
                    events += len(batches[done % BATCHES])
                    done += 1
                found[name].append(events / passed)
        return found


@cache
def copies(device: torch.device) -> float:
    """Return the bytes a second that the device's memory moves, measured in this run."""
    return bandwidth(device)


def said(learner: Learner, rate: float, times: int = 1) -> str:
    """Return a rate in words: of events, each learned so many times, and of the bandwidth."""
    pace = f", {1e6 * learner.config.block / rate:,.0f} us a block"
    share = times * rate * moved(learner) / copies(learner.device)
    return (
        f"{rate / 1e6:.3f} M/s{'' if learner.config.step == 'sequential' else pace}, "
        f"{share:.1%} of the bandwidth"
    )


def show(case: Case, effort: Effort) -> None:
    """Print a case: the step as a whole by driver, and on a GPU its kernel alone."""
    race = Race(case, effort)
    told = race.rates()
    print(f"\n{case}", flush=True)
    for name, rates in told.items():
        learner = race.learners[name]
        ratio = float(np.median(np.divide(rates, told["sequential"])))
        words = said(learner, float(np.median(rates)), 1 + REPLAYED if name == REPLAY else 1)
        print(f"  {name:<27} {words}, {ratio:.2f} x", flush=True)
        if learner.device.type == "cuda":
            kernel, sorts = alone(learner, race.batches[name])
            print(f"  {'  its kernel alone':<27} {said(learner, kernel)}; "
                  f"with its sorts {sorts / 1e6:.3f} M/s", flush=True)  # fmt: skip


def quality() -> None:
    """Print the progressive error on MovieLens-100K by block."""
    print("\nMovieLens-100K in time order, one pass, polls of 25,000: mean absolute error")
    found = {"sequential": SEQUENTIAL}
    for block in (1, 16, 256, 1_024, 4_096):
        found[f"blocks of {block:,}"] = replace(THREADED, block=block, threads=2)
    for name, config in found.items():
        print(f"  {name:<27} {progressive(config, 100_000, 25_000)[0]:.4f}", flush=True)


def run(quick: bool = False) -> None:
    """Print events a second of each driver, as multiples of the sequential one, and the quality.

    A quick run has the smallest tables, one block and one round, and no quality.
    """
    c, effort = SEQUENTIAL, QUICK if quick else FULL
    speed = ", ".join(
        f"{copies(torch.device(device)) / 1e9:.0f} GB/s ({device})"
        for device in (("cpu", "cuda") if usable() else ("cpu",))
    )
    print(f"D={c.factors}, E={c.exposure_factors}, S={c.session_factors}, {c.pairs} uniform pairs "
          f"an event; half ratings, half exposures; batches of {effort.size:,}, on a GPU "
          f"{effort.gpu_size:,}; Learner.step whole; a copy moves {speed}; each figure is a median "
          f"of {effort.rounds} round{'s' * (effort.rounds > 1)}: x that of the ratios to the "
          "sequential rate of the same round, which is not the ratio of the medians printed",
          flush=True)  # fmt: skip
    for case in cases(effort):
        show(case, effort)
    if not quick:
        quality()
