"""Finds the GPU, and what is missing before the step can run on it.

If torch is built without CUDA, this only reads two small files: it imports neither torch nor numba
and does not touch the GPU driver.
"""

import functools
import os
import re
import warnings
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any

OLDEST = (7, 0)  # least compute capability: Volta
EXTRA = "pip install 'counterflow[cuda]'"
INDEX = "https://download.pytorch.org/whl/cu130"


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU; the step can run on it if `lacks` is empty."""

    name: str  # empty if no GPU is seen
    memory: int  # bytes; 0 if unknown
    free: int  # bytes that were free at the first call of `gpu`
    lacks: tuple[str, ...]  # what is missing, each with its remedy


@functools.cache
def gpu() -> Gpu:
    """Return the GPU as this process first found it, so that all its models choose alike."""
    version, cuda = torch_build()
    lacks = []
    if cuda is None:
        lacks.append(
            f"torch is built without CUDA: pip install torch=={version}+cu130 --index-url {INDEX}"
        )
    if util.find_spec("numba_cuda") is None:
        lacks.append(f"numba-cuda is not installed: {EXTRA}")
    if cuda is None:
        name = seen()
        return Gpu(name, 0, 0, (*lacks, *([] if name else [unseen()])))
    return asked(lacks)


def torch_build() -> tuple[str, str | None]:
    """Return torch's version and the CUDA version it was built with, without importing torch."""
    found = util.find_spec("torch")
    if found is None or found.origin is None:
        return "", None
    at = Path(found.origin).with_name("version.py")
    spec = util.spec_from_file_location("_torch_version", at)
    if spec is None or spec.loader is None:
        return "", None
    told = util.module_from_spec(spec)
    spec.loader.exec_module(told)
    return str(told.__version__).partition("+")[0], told.cuda


def seen(root: Path = Path("/")) -> str:
    """Return the name of the first NVIDIA GPU that the system lists; empty if there is none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):  # deliberately hidden
        return ""
    for told in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        model = re.search(r"^Model:\s*(.+?)\s*$", told.read_text(errors="replace"), re.MULTILINE)
        return model.group(1) if model else "NVIDIA GPU"
    return "NVIDIA GPU" if any(root.glob("dev/nvidia[0-9]*")) else ""


def unseen(cuda: str = "") -> str:
    """Return the remedy if the driver shows no device."""
    newest = f" for CUDA {cuda} or newer" if cuda else ""
    return (
        f"no device is seen by the driver: install NVIDIA's driver{newest}, hand the GPU to the"
        " container, look at CUDA_VISIBLE_DEVICES"
    )


def asked(lacks: list[str]) -> Gpu:
    """Return the GPU that torch, built with CUDA, sees; `lacks` is what is missing so far.

    This creates a context on the device, which the step then uses.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an old driver; `unseen` gives the remedy
        if not torch.cuda.is_available():
            return Gpu(seen(), 0, 0, (*lacks, unseen(str(torch.version.cuda))))
        at = torch.cuda.get_device_properties(torch.cuda.current_device())
        free, sum_half_life = torch.cuda.mem_get_info()
    if (at.major, at.minor) < OLDEST:
        lacks = [*lacks, f"compute capability {at.major}.{at.minor} is below 7.0: a newer GPU"]
    elif not lacks:
        lacks = [*numba_lacks()]
    return Gpu(str(at.name), int(sum_half_life), int(free), tuple(lacks))


def numba_lacks() -> list[str]:
    """Return what numba-cuda lacks on the device that torch sees."""
    try:
        cuda: Any = import_module("numba.cuda")
        if not cuda.is_available():
            return [f"numba-cuda finds no CUDA toolkit: {EXTRA}"]
        if not cuda.get_current_device().COOPERATIVE_LAUNCH:
            return ["the device has no cooperative launch: another GPU, or its driver outside MPS"]
    except Exception as error:  # incompatible libraries raise anything
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return [f"numba-cuda cannot be used ({said}): {EXTRA}"]
    return []
