"""The learner alone, by step and batch size."""

import time

import numpy as np

from stream.batch import Batch
from stream.model.config import ModelConfig
from stream.model.learner import Learner

USERS, ITEMS = 100_000, 50_000


def batch(size: int, seed: int) -> Batch:
    """Return random ratings."""
    r = np.random.default_rng(seed)
    return Batch(
        r.integers(USERS, size=size).astype(np.int32),
        r.integers(ITEMS, size=size).astype(np.int32),
        np.zeros(size, np.int8),
        r.integers(1, 6, size).astype(np.float32),
        np.full(size, ITEMS, np.int32),
        r.integers(1 << 62, size=size).astype(np.uint64),
    )


def run() -> None:
    """Print events a second of each step at each batch size, and the ratio of the two."""
    for size in (256, 4_096, 65_536):
        rates = {}
        for step in ("compiled", "torch"):
            learner = Learner(ModelConfig(step=step))
            batches = [batch(size, n) for n in range(max(4, 262_144 // size))]
            for warm in batches[:2]:
                learner.step(warm)
            start = time.perf_counter()
            for b in batches[2:]:
                learner.step(b)
            rates[step] = size * (len(batches) - 2) / (time.perf_counter() - start)
        print(f"batch {size:>6}: compiled {rates['compiled'] / 1e6:.2f} M/s, torch "
              f"{rates['torch'] / 1e6:.2f} M/s, ratio {rates['compiled'] / rates['torch']:.1f} x; "
              f"D=32, {USERS:,} users, {ITEMS:,} items", flush=True)  # fmt: skip
