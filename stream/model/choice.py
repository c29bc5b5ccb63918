"""Which driver of the learning step runs, and why: decided once, when a model is made.

    sequential        one interaction after the other, on the CPU
    blocks            block by block on threads of the CPU
    blocks on a GPU   block by block on the GPU

`auto` must not stop a stream that the CPU would have learned. So it takes a GPU only where the
tables fit there at their bounds, and beside them the old copy of the largest while it grows.
`device = cuda` takes it all the same.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from stream.errors import Inconsistent
from stream.model.config import ModelConfig
from stream.model.gpu import Gpu, gpu
from stream.model.layout import STRIDE, Part, layout

__all__ = ["Choice", "Driver", "Gpu", "choose", "cores", "gpu", "needed"]

Driver = Literal["sequential", "blocks", "blocks on a GPU"]

FLOAT = 4  # bytes of a float32
LINK = 8  # bytes: the row of an attribute value, and the value
WORK = 1 << 30  # bytes for compiled kernels and the columns of a poll
GIB = 1 << 30
CORES_MAX = 4  # of the blocks' own choosing: the other cores belong to fetching, Redis and others


@dataclass(frozen=True, slots=True)
class Choice:
    """What learns, where, on how many threads of the CPU, how much at a time, and why that."""

    driver: Driver
    device: Literal["cpu", "cuda"]
    threads: int
    block: int  # interactions that are learned at a time
    why: str
    name: str = ""  # of the GPU

    def __str__(self) -> str:
        """Return all of it in one line."""
        many = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        of = f"blocks of {self.block:,}"
        where = {
            "sequential": "the CPU",
            "blocks": f"{of}, {many}",
            "blocks on a GPU": f"{self.name}, {of}",
        }
        return f"{self.driver} ({where[self.driver]}), because {self.why}"

    def settled(self, config: ModelConfig) -> ModelConfig:
        """Return the configuration under which any other model chooses the same."""
        step: Literal["sequential", "blocks"] = (
            "sequential" if self.driver == "sequential" else "blocks"
        )
        return replace(config, step=step, device=self.device)


def choose(config: ModelConfig, gpu: Callable[[], Gpu] = gpu) -> Choice:
    """Return the driver for this configuration; the GPU is asked for only where it could be it.

    Raises Inconsistent where `device` is cuda and the GPU cannot be used.
    """
    if config.device == "cuda":
        return _demanded(config, gpu())
    if config.step == "sequential":
        return Choice("sequential", "cpu", 1, 1, "model.step is sequential")
    if config.device == "cpu":
        against = "model.device is cpu"
    else:
        found = gpu()
        against = _against(config, found)
        if not against:
            why = f"a GPU is there, and {_room(config, found)}"
            return Choice("blocks on a GPU", "cuda", 1, config.block, why, found.name)
    if config.step == "blocks":
        why = f"model.step is blocks, and {against}"
        return Choice("blocks", "cpu", _threads(config), config.block, why)
    return Choice("sequential", "cpu", 1, 1, against)


def needed(config: ModelConfig) -> int:
    """Return the bytes of GPU memory that the step can come to need.

    Every table at its bound, the links of users and items, the old copy of the largest table while
    it grows, and what the step works in.
    """
    sizes = (
        config.factors, config.exposure_factors, config.session_factors, len(config.outcomes),
        config.average > 0,
    )  # fmt: skip
    bounds: dict[Part, int] = {
        "user": config.max_users, "item": config.max_items, "feature": config.max_features,
    }  # fmt: skip
    tables = [FLOAT * layout(part, *sizes, STRIDE).width * rows for part, rows in bounds.items()]
    links = LINK * config.max_links * (config.max_users + config.max_items)
    return sum(tables) + max(tables) + links + WORK


def _demanded(config: ModelConfig, found: Gpu) -> Choice:
    if found.lacks:
        raise Inconsistent(
            f"model.device is cuda, and {found.name or 'no GPU'} can"
            f"{'not' if found.name else ''} be used: {'; '.join(found.lacks)}",
            "add what is missing, or set COUNTERFLOW_MODEL__DEVICE=auto",
        )
    why = f"model.device is cuda; {_room(config, found)}"
    return Choice("blocks on a GPU", "cuda", 1, config.block, why, found.name)


def _against(config: ModelConfig, found: Gpu) -> str:
    """Return what speaks against the GPU; nothing where it is usable and the tables fit."""
    if not found.name:
        return "no GPU is seen"
    if found.lacks:
        return f"{found.name} cannot be used: {'; '.join(found.lacks)}"
    if needed(config) > found.free:
        return (
            f"{found.name} is too small: {_room(config, found)}; lower model.max_users, max_items"
            " or max_features, or take it all the same by model.device = cuda"
        )
    return ""


def _room(config: ModelConfig, found: Gpu) -> str:
    """Return in words what the tables need of what is free."""
    free = f"{found.free / GIB:.1f} of {found.memory / GIB:.1f} GiB are free"
    return f"full tables need {needed(config) / GIB:.1f} GiB where {free}"


def cores() -> int:
    """Return how many cores this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux: what a container was given
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _threads(config: ModelConfig) -> int:
    return config.threads or min(cores(), CORES_MAX)
