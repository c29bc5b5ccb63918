"""What a device can do, and what of a step it does: its memory, and the kernel alone."""

import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch

from stream.batch import Batch
from stream.model.learner import Learner

COPIED = 1 << 27  # floats: more than any cache holds
COPIES = 4


def wait(device: torch.device) -> None:
    """Nothing is under way on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def bandwidth(device: torch.device) -> float:
    """Return the bytes a second that a large copy reads and writes, the best of a few."""
    here = torch.ones(COPIED, device=device)
    there = torch.empty_like(here)
    best = 0.0
    for _ in range(COPIES):
        wait(device)
        start = time.perf_counter()
        there.copy_(here)
        wait(device)
        best = max(best, 2 * here.nbytes / (time.perf_counter() - start))
    return best


def moved(learner: Learner) -> float:
    """Return the bytes that an interaction moves: the rows that it is about, read and written.

    Those are its user, its target and its pairs, and one row for each of their links; what lies in
    a cache because it comes again is counted all the same.
    """
    user, item, value = (t.layout.width for t in (learner.user, learner.item, learner.feature))
    of_user, of_item = (
        float((learner.links[kind].rows[: learner.table(kind).used] != 0).sum(1).mean())
        for kind in ("user", "item")
    )
    items = 1 + learner._at.pairs
    return 8.0 * (user + items * item + (of_user + items * of_item) * value)


def alone(learner: Learner, batches: Sequence[Batch]) -> tuple[float, float]:
    """Return events a second of a GPU's kernel, and of the kernel with the sorts before it.

    Both are waited for before and after, so nothing of the host is in them.
    """
    from stream.model.blocks import device as driver

    spent = {"kernel": 0.0, "sorts": 0.0}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def waited(*args: Any) -> Any:
            wait(learner.device)
            start = time.perf_counter()
            told = call(*args)
            wait(learner.device)
            spent[name] += time.perf_counter() - start
            return told

        return waited

    launch = timed("kernel", learner.driver._launch)
    sorts = timed("sorts", driver.device_order)
    with (
        patch.object(learner.driver, "_launch", launch),
        patch.object(driver, "device_order", sorts),
    ):
        for b in batches:
            learner.step(b)
    events = sum(map(len, batches))
    return events / spent["kernel"], events / (spent["kernel"] + spent["sorts"])
