"""The GPU and the learning driver, as `doctor` and `config show` report them."""

import sys
from collections.abc import Callable
from typing import Any

from stream.errors import CounterflowError, Inconsistent
from stream.model.choice import DriverChoice, Gpu, choose, cores, gpu
from stream.model.config import ModelConfig

GIB = 1 << 30


class Advice(CounterflowError):
    """Everything works, but following the remedy would improve it."""


def ready(config: ModelConfig, gpu: Callable[[], Gpu] = gpu) -> None:
    """Raise Inconsistent if the settings require a GPU that cannot be used.

    If they require none, nothing is checked: some driver then runs in any case.
    """
    if config.device == "cuda":
        choose(config, gpu)


def check(
    config: ModelConfig, gpu: Callable[[], Gpu] = gpu, *, batch_max: int = sys.maxsize
) -> str:
    """Return a sentence on the GPU and on where the learning step runs.

    Raises
    ------
    Advice
        If the settings allow a GPU that is present, but libraries for it are missing, or if blocks
        cannot have the size or the threads that the settings ask for.
    Inconsistent
        If the settings require a GPU that cannot be used.
    """
    choice, found = choose(config, gpu), gpu()
    better = advice(choice, batch_max)
    if not found.name:
        said = f"no GPU; {_runs(choice)}"
    elif found.lacks and config.device == "auto" and config.step != "sequential":
        said = f"{found.name} is not used; {_runs(choice)}"
        better = [*found.lacks, *better]
    elif choice.device == "cpu":
        said = f"{found.name} is not used, because {choice.why}; {_runs(choice)}"
    else:
        free = f"{found.free / GIB:.1f} of {found.memory / GIB:.1f} GiB free"
        said = f"{found.name}, {free}; {_runs(choice)}"
    if better:
        raise Advice(said, "; ".join(better))
    return said


def advice(choice: DriverChoice, batch_max: int) -> list[str]:
    """Return what of the settings blocks cannot follow, each with what to do about it."""
    found = []
    if choice.block > batch_max:
        found.append(
            f"a block ends with a poll, so none reaches model.block {choice.block:,}: lower it to"
            f" trainer.batch_max {batch_max:,} or raise that"
        )
    if choice.threads > cores():
        found.append(
            f"model.threads {choice.threads} is more than the cores, {cores()}, so threads wait for"
            " each other: lower it, or set 0"
        )
    return found


def shown(config: ModelConfig, gpu: Callable[[], Gpu] = gpu) -> dict[str, Any]:
    """Return the driver that would learn and why; if none can, the error and the remedy."""
    try:
        return told(choose(config, gpu))
    except Inconsistent as error:
        return {"driver": None, "error": error.message, "remedy": error.remedy}


def told(choice: DriverChoice) -> dict[str, Any]:
    """Return the driver as it stands in JSON, and why it is that one."""
    return {
        "driver": choice.driver,
        "device": choice.device,
        "threads": choice.threads,
        "block": choice.block,
        "why": choice.why,
    }


def _runs(choice: DriverChoice) -> str:
    if choice.driver == "sequential":
        return "the step runs sequentially on the CPU"
    if choice.driver == "blocks":
        return f"the step runs in blocks on {choice.threads} of the CPU's threads"
    return "the step runs in blocks on it"
