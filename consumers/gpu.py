"""What the doctor and `config show` say of the GPU and of the driver that would learn."""

from collections.abc import Callable
from typing import Any

from stream.errors import CounterflowError, Inconsistent
from stream.model.choice import Choice, Gpu, choose, gpu
from stream.model.config import ModelConfig

GIB = 1 << 30


class Advice(CounterflowError):
    """Everything works, and a remedy would make it work better."""


def ready(config: ModelConfig, gpu: Callable[[], Gpu] = gpu) -> None:
    """Raise Inconsistent where the settings demand a GPU that cannot be used.

    Nothing is asked where they demand none: then the step runs somewhere.
    """
    if config.device == "cuda":
        choose(config, gpu)


def check(config: ModelConfig, gpu: Callable[[], Gpu] = gpu) -> str:
    """Return what GPU is there and where the step runs.

    Raises Advice where a GPU is seen that the settings allow and libraries do not, Inconsistent
    where the settings demand one that cannot be used.
    """
    choice, found = choose(config, gpu), gpu()
    if not found.name:
        return f"no GPU; {_runs(choice)}"
    if found.lacks and config.device == "auto" and config.step != "sequential":
        raise Advice(f"{found.name} is not used; {_runs(choice)}", "; ".join(found.lacks))
    if choice.device == "cpu":
        return f"{found.name} is not used, because {choice.why}; {_runs(choice)}"
    free = f"{found.free / GIB:.1f} of {found.memory / GIB:.1f} GiB free"
    return f"{found.name}, {free}; {_runs(choice)}"


def shown(config: ModelConfig, gpu: Callable[[], Gpu] = gpu) -> dict[str, Any]:
    """Return the driver that would learn, and why; or the error why none would, and the remedy."""
    try:
        return told(choose(config, gpu))
    except Inconsistent as error:
        return {"driver": None, "error": error.message, "remedy": error.remedy}


def told(choice: Choice) -> dict[str, Any]:
    """Return the driver as it stands in JSON, and why it is that one."""
    return {
        "driver": choice.driver,
        "device": choice.device,
        "threads": choice.threads,
        "block": choice.block,
        "why": choice.why,
    }


def _runs(choice: Choice) -> str:
    if choice.driver == "sequential":
        return "the step runs sequentially on the CPU"
    if choice.driver == "blocks":
        return f"the step runs in blocks on {choice.threads} of the CPU's threads"
    return "the step runs in blocks on it"
