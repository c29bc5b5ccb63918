"""Blocks on threads of a CPU: the barrier, the sums of global terms, and the compiled driver.

The barrier counts arrivals in one atomic word. A waiting worker spins for some microseconds, about
as long as the workers' finishing times differ, and then yields to other threads.
"""

import functools
from typing import Any

from numba import types
from numba.extending import intrinsic

from stream.bare import bare
from stream.compiled import compiled, on_cpu
from stream.model import scalars as sc
from stream.model.blocks.names import Order, Room, Work, Worker
from stream.model.blocks.phases import barrier, blocks, totals
from stream.model.step import account
from stream.model.step.names import Given, Lane, Layouts, StepContext

SPINS = 2_000  # reads of the word before yielding to other threads
_yield = types.ExternalFunction("sched_yield", types.int32())


def _arrive(typing: Any, array: Any) -> Any:
    """Increment the count of arrivals atomically; return its previous value."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(array)(context, builder, args[0])
        return builder.atomic_rmw("add", view.data, context.get_constant(types.int64, 1), "acq_rel")

    return types.int64(array), code


def _arrivals(typing: Any, array: Any) -> Any:
    """Return the count of arrivals."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(array)(context, builder, args[0])
        return builder.load_atomic(view.data, ordering="acquire", align=8)

    return types.int64(array), code


arrive: Any = intrinsic(_arrive)
arrivals: Any = intrinsic(_arrivals)


@on_cpu(barrier)
def _barrier(worker: Any, arrived: Any) -> Any:
    def wait(worker: Any, arrived: Any) -> Any:
        if worker.all > 1:
            all_here = (arrive(arrived) // worker.all + 1) * worker.all
            spins = 0
            while arrivals(arrived) < all_here:
                spins += 1
                if spins > SPINS:
                    _yield()

    return wait


@on_cpu(totals)
def _totals(w: Any, b: Any, at: Any, worker: Any, sum_half_life: Any) -> Any:
    def one_by_one(w: Any, b: Any, at: Any, worker: Any, sum_half_life: Any) -> Any:
        if worker.own == 0 and w.m.on.live:
            g = w.m.terms
            for k in range(b.stop - b.event):
                account.collect(w.m, w.s.told[k])
                g.counters[sc.STEPS] += int(w.s.told[k, account.KIND]) & account.LEARNS
            if w.order.update_point[at]:
                sc.refresh(g, sum_half_life)

    return one_by_one


@functools.cache
def threaded(at: Layouts) -> Any:
    """Return the driver compiled for rows of these layouts; each worker calls it."""
    lane = Lane(0, 1)

    def learn(
        given: Given, order: Order, room: Room, work: Any, worker: Worker, arrived: Any,
        sum_half_life: float,
    ) -> None:  # fmt: skip
        scratch, out, hands = work
        terms, outcomes = bare(given.terms), bare(given.outcomes)
        m = StepContext(at, lane, bare(given.tables), terms, outcomes, given.rates, given.on)
        chains, segments, values = bare(order.chains), bare(order.segments), bare(order.values)
        rest = bare((order.events, order.segment, order.update_point))
        o = Order(rest[0], chains, segments, values, rest[1], rest[2])
        w = Work(m, bare(given.columns), bare(scratch), bare(out), o, bare(room), bare(hands))
        blocks(w, worker, arrived, sum_half_life)

    return compiled(learn, error_model="numpy")
