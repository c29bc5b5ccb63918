"""The sequential step gives the bits that it gave: a change of them is meant, or it is a mistake.

golden/step.json holds a hash of every array of the learner's state after 200,000 mixed events, for
each kind of machine that it was made on: compiled arithmetic and the C library's exp and log differ
in the last bits from one kind to another. A change that is meant renews it for the kind at hand:

    python -m tests.test_golden_step
"""

import hashlib
import json
import platform
from dataclasses import astuple
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import pytest

from stream.model.config import ModelConfig
from stream.model.learner import Learner
from tests.test_model import draw_batch, open_every_path, with_attributes

PATH = Path(__file__).parent / "golden" / "step.json"
CONFIG = ModelConfig(max_users=5_000, max_items=5_000, max_features=1_000, step="sequential")
POLLS, EVENTS = 5, 40_000


def machine() -> str:
    """Return the kind of machine, as far as it is in the bits."""
    has = llvmlite.binding.get_host_cpu_features()
    wide = [name for name in ("avx2", "avx512f") if has.get(name)]
    cpu = [platform.machine(), llvmlite.binding.get_host_cpu_name(), *wide]
    return " ".join([*cpu, *platform.libc_ver(), "numba", numba.__version__])


def hash_of(*arrays: np.ndarray) -> str:
    """Return a hash of the arrays' types, shapes and bits."""
    made = hashlib.sha256()
    for array in arrays:
        made.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return made.hexdigest()[:16]


def hashes() -> dict[str, str]:
    """Return the hash of what is drawn, of what is told, and of each array of the state."""
    learner = with_attributes(Learner(CONFIG, 5), 60, 60)
    drawn, told = [], []
    for seed in range(POLLS):
        batch = draw_batch(EVENTS, seed, users=3_000, items=2_000)
        drawn += astuple(batch)
        if seed == 1:
            open_every_path(learner)
        update = learner.step(batch)
        told += [update.prediction, update.control, update.terms, update.served]
        learner.replay(200)
    state = {name: hash_of(array) for name, array in sorted(learner.state().items())}
    return {"drawn": hash_of(*drawn), "told": hash_of(*told), **state}


def test_the_sequential_step_gives_the_bits_that_it_gave() -> None:
    known = json.loads(PATH.read_text(encoding="utf-8"))
    kind = machine()
    if kind not in known:
        pytest.skip(f"golden/step.json knows no {kind}: {', '.join(known)}")
    found = hashes()
    assert found["drawn"] == known[kind]["drawn"], "NumPy draws other events: renew step.json"
    assert {n for n in found.keys() | known[kind] if found.get(n) != known[kind].get(n)} == set()


if __name__ == "__main__":
    held = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    PATH.write_text(json.dumps(held | {machine(): hashes()}, indent=1, sort_keys=True) + "\n")
