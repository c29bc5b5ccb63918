"""Which GPU there is, and what it lacks before the step can run on it.

Where torch is built for the CPU the question costs the reading of two small files: neither torch
nor numba is imported for it, and the driver is left alone.
"""

import functools
import os
import re
import warnings
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any

OLDEST = (7, 0)  # compute capability: from Volta on
EXTRA = "pip install 'counterflow[cuda]'"
INDEX = "https://download.pytorch.org/whl/cu130"


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU; the step can run on it where nothing is lacking."""

    name: str  # empty where none is seen
    memory: int  # bytes; 0 where it could not be asked
    free: int  # bytes, as of the first question
    lacks: tuple[str, ...]  # what is missing, each with what to do about it


@functools.cache
def gpu() -> Gpu:
    """Return the GPU as this process found it at first, so that every model of it chooses alike."""
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
    """Return torch's version, and the version of CUDA it is built with, without importing torch."""
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
    """Return the name of the first NVIDIA GPU that the system lists; empty where none is shown."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):  # hidden on purpose
        return ""
    for told in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        model = re.search(r"^Model:\s*(.+?)\s*$", told.read_text(errors="replace"), re.MULTILINE)
        return model.group(1) if model else "NVIDIA GPU"
    return "NVIDIA GPU" if any(root.glob("dev/nvidia[0-9]*")) else ""


def unseen(cuda: str = "") -> str:
    """Return what lacks where the driver shows no device."""
    newest = f" for CUDA {cuda} or newer" if cuda else ""
    return (
        f"no device is seen by the driver: install NVIDIA's driver{newest}, hand the GPU to the"
        " container, look at CUDA_VISIBLE_DEVICES"
    )


def asked(lacks: list[str]) -> Gpu:
    """Return the GPU that torch, which is built with CUDA, sees; it lacks what is lacking so far.

    Asking makes a context on the device, which the step then uses.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old driver: `unseen` says what to do
        if not torch.cuda.is_available():
            return Gpu(seen(), 0, 0, (*lacks, unseen(str(torch.version.cuda))))
        at = torch.cuda.get_device_properties(torch.cuda.current_device())
        free, memory = torch.cuda.mem_get_info()
    if (at.major, at.minor) < OLDEST:
        lacks = [*lacks, f"compute capability {at.major}.{at.minor} is below 7.0: a newer GPU"]
    elif not lacks:
        lacks = [*numba_lacks()]
    return Gpu(str(at.name), int(memory), int(free), tuple(lacks))


def numba_lacks() -> list[str]:
    """Return what numba-cuda lacks on the device that torch sees."""
    try:
        cuda: Any = import_module("numba.cuda")
        if not cuda.is_available():
            return [f"numba-cuda finds no CUDA toolkit: {EXTRA}"]
        if not cuda.get_current_device().COOPERATIVE_LAUNCH:
            return ["the device has no cooperative launch: another GPU, or its driver outside MPS"]
    except Exception as error:  # whatever a library raises that does not fit the others
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return [f"numba-cuda cannot be used ({said}): {EXTRA}"]
    return []
