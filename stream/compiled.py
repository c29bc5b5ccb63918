"""The only way this project compiles functions: without the GIL, cached on disk if possible.

A read-only installation without a writable home has no folder for the cache. Everything still works
there, but each start compiles again, which takes about a minute.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numba
from numba.core import event
from numba.extending import overload

log = logging.getLogger(__name__)

Inline = Literal["never", "always"]
EMBEDDED: dict[str, Any] = {
    "nogil": True, "error_model": "numpy", "forceinline": True, "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}  # fmt: skip


def compiled(
    function: Callable[..., Any], inline: Inline = "never", error_model: str = "python"
) -> Any:
    """Compile a function with numba and cache it on disk where a folder is writable.

    Parameters
    ----------
    function
        The function to compile.
    inline
        "always" inlines it into its compiled callers (numba's `inline` option).
    error_model
        "numpy" omits the checks for division by zero.
    """
    how: dict[str, Any] = {"nogil": True, "error_model": error_model, "inline": inline}
    try:
        return numba.njit(cache=True, **how)(function)
    except RuntimeError as exc:  # numba found no writable folder for its cache
        log.debug("%s", exc)
        _warn()
        return numba.njit(**how)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function into its compiled callers; a call would count references of its arrays."""
    return compiled(function, "always")


def embedded(function: Callable[..., Any]) -> Any:
    """Compile a function once and force its inlining into compiled callers; Python cannot call it.

    A function built of many small ones compiles in a fraction of the time that `inlined` takes.
    Pass arrays without their owners (`stream.bare`), or their references are counted.
    """
    return numba.njit(**EMBEDDED)(function)


def on_cpu(function: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Return the decorator by which the CPU supplies what an `embedded` function calls.

    The decorated function takes the arguments' types, and returns a function of their values.
    """
    how: Any = EMBEDDED
    supply: Callable[[Callable[..., Any]], Any] = overload(function, target="cpu", jit_options=how)
    return supply


@contextmanager
def compiling(tell: Callable[[], object]) -> Iterator[None]:
    """Call `tell` once in this context, before the first function that is not in the cache."""

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
    """Log the warning once per process rather than once per function."""
    log.warning(
        "compiled code cannot be cached, so each start compiles for about a minute: set "
        "model.cache_dir (or NUMBA_CACHE_DIR) to a writable folder"
    )
