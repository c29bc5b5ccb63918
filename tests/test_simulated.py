"""The GPU's kernels without a GPU (see `tests.simulated`): against threads and the reference.

What a GPU alone can show (registers, races of warps, speed) is in `test_drivers`, `pytest -k cuda`.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream.batch import Batch
from stream.interaction_type import InteractionType
from stream.model import scalars as sc
from stream.model.blocks.names import TILE
from stream.model.config import ModelConfig
from stream.model.learner import Learner, Rows, Update
from stream.testing import _near, _parts, steps_agree
from tests.test_drivers import agrees, crowd, hot_batch
from tests.test_model import BLOCKS, open_every_path
from tests.test_reference import AVERAGED, attributed, mixed_batch

ROOT = Path(__file__).parents[1]
PATIENCE = 240  # seconds for one answer
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Yield a function that has a simulated GPU's learner called, and returns what it answers."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.simulated"], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip
    assert child.stdin and child.stdout

    def asked(*call: Any) -> Any:
        pickle.dump(call, child.stdin)
        child.stdin.flush()
        late = threading.Timer(PATIENCE, child.kill)
        late.start()
        try:
            result, state, error = pickle.load(child.stdout)
        finally:
            late.cancel()
        assert not error, error
        return result, state

    with child:
        yield asked
        child.stdin.close()


class Simulated(Learner):
    """A learner whose steps are those of the GPU's kernels."""

    def __init__(self, learner: Learner, ask: Ask) -> None:
        super().__init__(learner.config, learner.seed)
        self.load(learner.state())
        self._ask = ask

    def asked(self, method: str, *args: Any) -> Any:
        result, state = self._ask(self.config, self.seed, self.state(), method, args)
        self.load(state)
        return result

    def step(self, batch: Batch) -> Update:
        return self.asked("step", batch)

    def replay(self, count: int) -> Update:
        return self.asked("replay", count)

    def served_rows(self, kind: Any, rows: Any) -> Rows:
        return self.asked("served_rows", kind, rows)


def crowded(n: int, seed: int) -> Batch:
    """Return interactions of many users, most of them with item 0.

    The first worker sums its first tile and takes its step: others have yet to sum the other tiles.
    """
    batch = hot_batch(n, seed)
    most = np.random.default_rng(100 + seed).random(n) < 0.5
    item = np.where(most | (batch.item == 4), 0, batch.item)
    return replace(batch, item=item.astype(np.int32))


def test_what_is_simulated_is_what_threads_learn_replay_and_serve(ask: Ask) -> None:
    """Two blocks around a border, the second with more than a tile of an item and of a value."""
    learner = crowd(replace(BLOCKS, block=128, max_features=256))
    learner.step(hot_batch(900, 1))
    open_every_path(learner)
    learner.scalars.count[sc.STEPS] = sc.BLOCK - 12
    other, batch = Simulated(learner, ask), crowded(80, 2)
    rest = batch.slice(20, 80)
    assert (rest.item == 0).sum() > TILE and len(np.unique(rest.user)) > TILE
    steps_agree(learner, other, batch, 1e-4)
    assert learner.scalars.count[sc.STEPS] > sc.BLOCK
    learner.replay(16)
    other.replay(16)
    left, right = dict(_parts(learner)), dict(_parts(other))
    for name, part in left.items():
        _near(name, part, right[name], 1e-4, 1e-4)
    rows = np.arange(63, dtype=np.int32)  # the last ones were never met
    for kind in ("user", "item"):
        served = learner.served_rows(kind, rows), other.served_rows(kind, rows)
        for name in ("vector", "bias", "events"):
            _near(name, *(getattr(of, name) for of in served), 1e-4, 1e-4)


def mild(n: int, seed: int) -> Batch:
    """Return interactions without corrections, which move a young click's base to its end.

    There float32 knows no error, and so moves no mean.
    """
    batch = mixed_batch(n, seed)
    role = np.where(
        batch.role == InteractionType.CORRECTION, InteractionType.EXPOSED, batch.role
    ).astype(np.int8)
    return replace(batch, role=role)


WIDE = {"factors": 40, "exposure_factors": 35, "session_factors": 33, **AVERAGED}
NARROW = {"session_factors": 0, "average": 0.0, "pairs": 3}


@pytest.mark.parametrize(
    "more, made", [(WIDE, attributed), (NARROW, Learner)], ids=["wide", "narrow"]
)
def test_what_is_simulated_from_the_first_interaction_on_is_the_reference(
    more: dict, made: Callable[[ModelConfig], Learner], ask: Ask
) -> None:
    """Rows begin there; a wide row's vectors have a stride and a part of one."""
    agrees(
        replace(BLOCKS, block=8, **more), [mild(20, 1), mild(12, 2)],
        lambda config: Simulated(made(config), ask), 2e-4,
    )  # fmt: skip
