"""The GPU's kernels on a machine without one: lanes as threads of Python, in lockstep.

A process of its own (`NUMBA_DISABLE_JIT=1 python -m tests.simulated`), since nothing is compiled:
the functions of the step run as Python, and what lanes and workers do together is what
`stream.model.blocks.gpu` registers for a GPU. `Cuda` stands in for the module numba.cuda.

One lane runs at a time, up to where its warp meets. Lanes take turns forwards, then backwards, and
so do warps between grid barriers: what is read without a meeting is read too early or too late.
Lanes of a warp that meet at different places are an error; memory never written is nan.

The process reads calls (configuration, seed, state, method, arguments) of a `Learner` from its
standard input, and answers (result, state, error).
"""

import inspect
import os
import pickle
import sys
import threading
import traceback
from types import SimpleNamespace
from typing import Any, NamedTuple

import numba
import numba.extending
import numpy as np
import torch
from numba.np.numpy_support import as_dtype

LANES = 32
BLOCKS, WARPS = 2, 3  # of a launch, and of a block: few, so that each of them has more than one row


class Point(NamedTuple):
    """Where lanes meet."""

    kind: str
    at: tuple[Any, ...] = ()


END = Point("end")


class Abandoned(BaseException):
    """Another lane failed."""


class Warp:
    """Lanes that run one after the other up to where they meet, then in the other direction."""

    def __init__(self, launch: "Launch", own: int) -> None:
        self.own = own
        self.lanes = [Lane(launch, self, k) for k in range(LANES)]
        self.at, self.step, self.left = 0, 1, LANES

    def next(self) -> "Lane":
        return self.lanes[self.at]


class Lane(threading.Thread):
    """One thread of a GPU; it runs while it has the turn."""

    def __init__(self, launch: "Launch", warp: Warp, own: int) -> None:
        super().__init__(daemon=True)
        self.launch, self.warp, self.own = launch, warp, own
        self.block, first = divmod(warp.own, WARPS)
        self.thread = first * LANES + own
        self.turn = threading.Lock()
        self.turn.acquire()
        self.point = END
        self.arrays = self.shuffles = 0
        self.told: list[Any] = [None, None]  # to a shuffle, and to the next

    def run(self) -> None:
        np.seterr(over="ignore", invalid="ignore")  # as compiled
        self.turn.acquire()
        try:
            if not self.launch.failure:
                self.launch.law(*self.launch.args)
                self.meet(END)
        except Abandoned:
            pass
        except BaseException:
            self.launch.fail(traceback.format_exc())

    def meet(self, point: Point) -> None:
        """Go on when all lanes of the warp came here, or all of the grid."""
        self.point = point
        following = self.launch.following(self)
        if following is not self:
            if following:
                following.turn.release()
            if point is not END:
                self.turn.acquire()
                if self.launch.failure:
                    raise Abandoned


class Launch:
    """One launch of a kernel."""

    def __init__(self, law: Any, args: tuple[Any, ...], blocks: int) -> None:
        self.law, self.args, self.blocks = law, args, blocks
        self.failure = ""
        self.shared: dict[tuple[int, int], Any] = {}
        self.warps = [Warp(self, k) for k in range(blocks * WARPS)]
        self.waiting, self.arrived = self.warps[:0:-1], self.warps[:0]  # at a grid barrier
        self.done = threading.Lock()
        self.done.acquire()

    def run(self) -> None:
        lanes = [lane for warp in self.warps for lane in warp.lanes]
        for lane in lanes:
            lane.start()
        lanes[0].turn.release()
        self.done.acquire()
        for lane in lanes:
            lane.join()
        if self.failure:
            raise RuntimeError(self.failure)

    def fail(self, why: str) -> None:
        """End every lane."""
        self.failure = why
        for warp in self.warps:
            for lane in warp.lanes:
                if lane.turn.locked():
                    lane.turn.release()
        self.done.release()

    def following(self, lane: Lane) -> Lane | None:
        """Return whose turn it is after this lane came to its point; None's at the end."""
        warp = lane.warp
        warp.left -= 1
        if warp.left:
            warp.at += warp.step
            return warp.next()
        points = {other.point for other in warp.lanes}
        if len(points) > 1:
            raise AssertionError(f"lanes of one warp meet at different places: {points}")
        warp.left, warp.step = LANES, -warp.step
        if lane.point.kind not in ("grid", "end"):
            return lane
        self.arrived.append(warp)
        if self.waiting:
            return self.waiting.pop().next()
        kinds = {other.next().point.kind for other in self.warps}
        if len(kinds) > 1:
            raise AssertionError("some warps end, and others wait for them")
        if lane.point is END:
            self.done.release()
            return None
        self.waiting, self.arrived = self.arrived[:-1], []
        return lane


def here() -> Any:
    """Return the lane that runs."""
    return threading.current_thread()


def places() -> tuple[Any, ...]:
    """Return where the kernel calls for a meeting, and who calls it there."""
    inner = sys._getframe(2)
    outer = inner.f_back
    assert outer is not None
    return inner.f_lineno, outer.f_code.co_name, outer.f_lineno


def unset(shape: Any, dtype: Any) -> Any:
    """Return memory in which nothing was written."""
    made = np.empty(shape, as_dtype(dtype))
    made.fill(np.nan if made.dtype.kind == "f" else np.iinfo(made.dtype).min)
    return made


class Kernel:
    """A function as numba would launch it."""

    def __init__(self, law: Any) -> None:
        self.law = law

    def __getitem__(self, launch: tuple[int, int]) -> Any:
        blocks, threads = launch
        assert threads == WARPS * LANES, threads
        return lambda *args: Launch(self.law, args, blocks).run()

    def typeof_pyval(self, value: Any) -> type:
        return type(value)

    def compile(self, types: Any) -> Any:
        return SimpleNamespace(max_cooperative_grid_blocks=lambda threads: BLOCKS)


class Cuda:
    """What the kernels use of numba.cuda."""

    def __init__(self) -> None:
        self.shared, self.local = SimpleNamespace(array=self._shared), SimpleNamespace(array=unset)
        self.cg = SimpleNamespace(this_grid=lambda: SimpleNamespace(sync=self._sync))

    @staticmethod
    def jit(law: Any, **how: Any) -> Kernel:
        return Kernel(law)

    @property
    def threadIdx(self) -> Any:
        return SimpleNamespace(x=here().thread)

    @staticmethod
    def grid(axes: int) -> int:
        return int(here().block * WARPS * LANES + here().thread)

    @staticmethod
    def gridsize(axes: int) -> int:
        return int(here().launch.blocks * WARPS * LANES)

    @staticmethod
    def _shared(shape: Any, dtype: Any) -> Any:
        lane = here()
        key = lane.block, lane.arrays
        lane.arrays += 1
        if key not in lane.launch.shared:
            lane.launch.shared[key] = unset(shape, dtype)
        return lane.launch.shared[key]

    @staticmethod
    def _sync() -> None:
        here().meet(Point("grid", places()))

    @staticmethod
    def syncwarp() -> None:
        here().meet(Point("warp", places()))

    @staticmethod
    def shfl_xor_sync(lanes: int, value: Any, other: int) -> Any:
        """Return the value of the lane whose number differs in those bits."""
        assert lanes == 0xFFFFFFFF
        lane = here()
        turn, lane.shuffles = lane.shuffles & 1, lane.shuffles + 1
        lane.told[turn] = value
        lane.meet(Point("shuffle", (other, isinstance(value, float), *places())))
        return lane.warp.lanes[lane.own ^ other].told[turn]


def register(overload: Any, made: dict[Any, Any]) -> Any:
    """Return numba's `overload` that writes down what is registered for a GPU."""

    def registering(stub: Any, *args: Any, **how: Any) -> Any:
        def taking(law: Any) -> Any:
            if how.get("target") != "cuda":
                return overload(stub, *args, **how)(law)
            made[stub] = law(*[None] * len(inspect.signature(law).parameters))
            return law

        return taking

    return registering


def wrapped(tensor: Any, kind: str = "") -> Any:
    """Return the tensor's memory as an array."""
    array = tensor.numpy()
    return array.view(kind) if kind else array


def install() -> None:
    """The GPU's driver is made of Python from now on, on tensors of the CPU."""
    assert numba.config.DISABLE_JIT
    made: dict[Any, Any] = {}
    sys.modules["numba.cuda"] = Cuda()
    numba.extending.overload = register(numba.extending.overload, made)
    import stream.bare

    torch.use_deterministic_algorithms(True)  # its empty memory begins as nan, too
    stream.bare.bare = lambda arrays: arrays  # Python counts references anyway
    from stream.model import learner
    from stream.model.blocks import device, gpu
    from stream.model.choice import DriverChoice

    for module in [of for name, of in sys.modules.items() if name.startswith("stream.")]:
        for name, value in vars(module).copy().items():
            if inspect.isfunction(value) and value in made:
                setattr(module, name, made[value])
    gpu.WARPS, gpu.THREADS = WARPS, WARPS * LANES
    device.wrapped = wrapped
    learner.choose = lambda config: DriverChoice(
        "blocks on a GPU", "cpu", 1, config.block, "it is simulated"
    )


def answer(config: Any, seed: int, state: Any, method: str, args: Any) -> tuple[Any, Any, str]:
    """Return what a learner of that state answers, and its state afterwards."""
    from stream.model.learner import Learner

    try:
        learner = Learner(config, seed)
        learner.load(state)
        result = getattr(learner, method)(*args)
        return result, learner.state(), ""
    except Exception:
        return None, None, traceback.format_exc()


def main() -> None:
    """Answer calls until there are no more."""
    install()
    np.seterr(over="ignore", invalid="ignore")
    if hasattr(os, "sched_setaffinity"):  # turns are handed on faster within one core
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else writes among the answers
    while True:
        try:
            call = pickle.load(calls)
        except EOFError:
            return
        pickle.dump(answer(*call), answers)
        answers.flush()


if __name__ == "__main__":
    main()
