"""The one way in which functions are compiled: without the GIL, kept on disk where that is allowed.

A read-only installation without a writable home has no folder for compiled code. Everything still
runs there; it is compiled again at each start, which takes about a minute.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numba
from numba.core import event

log = logging.getLogger(__name__)

Inline = Literal["never", "always"]
EMBEDDED: dict[str, Any] = {
    "forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True,
}  # fmt: skip


def compiled(
    function: Callable[..., Any], inline: Inline = "never", error_model: str = "python"
) -> Any:
    """Return the function compiled, and kept on disk where a folder can be written.

    The error model "numpy" leaves out checks for division by zero.
    """
    how: dict[str, Any] = {"nogil": True, "error_model": error_model, "inline": inline}
    try:
        return numba.njit(cache=True, **how)(function)
    except RuntimeError as exc:  # numba found no folder that it may write
        log.debug("%s", exc)
        _warn()
        return numba.njit(**how)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Return the function compiled into its callers: a call would count references of arrays."""
    return compiled(function, "always")


def embedded(function: Callable[..., Any]) -> Any:
    """Return the function typed once and compiled into its callers; Python cannot call it.

    So a function made of many small ones compiles in a fraction of the time that `inlined` takes.
    Arrays have to come without their owners (`stream.bare`), or their references are counted.
    """
    return numba.njit(nogil=True, error_model="numpy", **EMBEDDED)(function)


@contextmanager
def compiling(tell: Callable[[], object]) -> Iterator[None]:
    """Within it `tell` is called once, before the first function that is not in the cache."""

    class First(event.Listener):
        told = False

        def on_start(self, event: object) -> None:
            if not self.told:
                self.told = True
                tell()

        def on_end(self, event: object) -> None:
            pass

    with event.install_listener("numba:compile", First()):
        yield


@functools.cache
def _warn() -> None:
    """Say it once, not for each function."""
    log.warning(
        "compiled code cannot be kept, so each start compiles for about a minute: make "
        "model.cache_dir (or NUMBA_CACHE_DIR) a folder that can be written"
    )
