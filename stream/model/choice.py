"""Selects the driver of the learning step, once, when a model is created.

    sequential        one interaction after the other, on the CPU
    blocks            block by block, on threads of the CPU
    blocks on a GPU   block by block, on the GPU

`auto` must not fail on a stream that the CPU could learn. So it selects a GPU only if the tables
fit there at their maximal sizes, together with the old copy of the largest table while it grows.
`device = cuda` selects the GPU in any case.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from stream.errors import Inconsistent
from stream.model.config import ModelConfig
from stream.model.gpu import Gpu, gpu
from stream.model.layout import STRIDE, RowKind, layout

__all__ = ["DriverChoice", "DriverName", "Gpu", "choose", "cores", "gpu", "needed"]

DriverName = Literal["sequential", "blocks", "blocks on a GPU"]

FLOAT = 4  # bytes of a float32
LINK = 8  # bytes: the row of an attribute value, and the value
WORK = 1 << 30  # bytes for compiled kernels and the columns of a poll
GIB = 1 << 30
CORES_MAX = 4  # default limit of threads; other cores are left to Kafka, Redis and other work


@dataclass(frozen=True, slots=True)
class DriverChoice:
    """The selected driver, its device, threads and block size, and the reason."""

    driver: DriverName
    device: Literal["cpu", "cuda"]
    threads: int
    block: int  # interactions that are learned at a time
    why: str
    name: str = ""  # name of the GPU

    def __str__(self) -> str:
        """Return the choice and its reason in one line."""
        many = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        of = f"blocks of {self.block:,}"
        where = {
            "sequential": "the CPU",
            "blocks": f"{of}, {many}",
            "blocks on a GPU": f"{self.name}, {of}",
        }
        return f"{self.driver} ({where[self.driver]}), because {self.why}"

    def pinned(self, config: ModelConfig) -> ModelConfig:
        """Return a configuration under which every model makes this choice."""
        step: Literal["sequential", "blocks"] = (
            "sequential" if self.driver == "sequential" else "blocks"
        )
        return replace(config, step=step, device=self.device)


def choose(config: ModelConfig, gpu: Callable[[], Gpu] = gpu) -> DriverChoice:
    """Return the driver for this configuration.

    `gpu` is called only if a GPU could be chosen. Raises Inconsistent if `device` is cuda and the
    GPU cannot be used.
    """
    if config.device == "cuda":
        return _demanded(config, gpu())
    if config.step == "sequential":
        return DriverChoice("sequential", "cpu", 1, 1, "model.step is sequential")
    if config.device == "cpu":
        against = "model.device is cpu"
    else:
        found = gpu()
        against = _against(config, found)
        if not against:
            why = f"a GPU is there, and {_room(config, found)}"
            return DriverChoice("blocks on a GPU", "cuda", 1, config.block, why, found.name)
    if config.step == "blocks":
        why = f"model.step is blocks, and {against}"
        return DriverChoice("blocks", "cpu", _threads(config), config.block, why)
    return DriverChoice("sequential", "cpu", 1, 1, against)


def needed(config: ModelConfig) -> int:
    """Return how many bytes of GPU memory the step may need.

    This covers every table at its maximal size, the links of users and items, the old copy of the
    largest table while it grows, and working memory.
    """
    sizes = (
        config.factors, config.exposure_factors, config.session_factors, len(config.outcomes),
        config.average > 0,
    )  # fmt: skip
    bounds: dict[RowKind, int] = {
        "user": config.max_users, "item": config.max_items, "feature": config.max_features,
    }  # fmt: skip
    tables = [FLOAT * layout(part, *sizes, STRIDE).width * rows for part, rows in bounds.items()]
    links = LINK * config.max_links * (config.max_users + config.max_items)
    return sum(tables) + max(tables) + links + WORK


def _demanded(config: ModelConfig, found: Gpu) -> DriverChoice:
    """Return the choice if `device` is cuda; raise Inconsistent if the GPU cannot be used."""
    if found.lacks:
        raise Inconsistent(
            f"model.device is cuda, and {found.name or 'no GPU'} can"
            f"{'not' if found.name else ''} be used: {'; '.join(found.lacks)}",
            "add what is missing, or set COUNTERFLOW_MODEL__DEVICE=auto",
        )
    why = f"model.device is cuda; {_room(config, found)}"
    return DriverChoice("blocks on a GPU", "cuda", 1, config.block, why, found.name)


def _against(config: ModelConfig, found: Gpu) -> str:
    """Return the reason not to use the GPU; empty if it is usable and the tables fit."""
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
    """Describe the memory that the tables need and the memory that is free."""
    free = f"{found.free / GIB:.1f} of {found.memory / GIB:.1f} GiB are free"
    return f"full tables need {needed(config) / GIB:.1f} GiB where {free}"


def cores() -> int:
    """Return how many cores this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux: the cores given to a container
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _threads(config: ModelConfig) -> int:
    """Return the number of threads of the block driver on the CPU."""
    return config.threads or min(cores(), CORES_MAX)
