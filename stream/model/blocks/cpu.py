"""The driver that learns blocks on threads of a CPU."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stream.memory import reserve
from stream.model.blocks.names import Size, Worker
from stream.model.blocks.order import faded, order, update_points
from stream.model.blocks.room import hands, room
from stream.model.blocks.threads import threaded
from stream.model.drivers import Host, ModelTables
from stream.model.step.arguments import scratch
from stream.model.step.names import Given, Layouts, Predictions


class Threaded(Host):
    """Learns batches in blocks; the bits are the same for any number of threads."""

    def __init__(self, at: Layouts, tables: ModelTables, size: Size, threads: int) -> None:
        """Reserve a mark for each row; start the threads."""
        super().__init__(tables)
        self.at, self.size, self.threads = at, size, threads
        user, item, value = (reserve(of.rows, 1, np.int32)[:, 0] for of in tables.rows)
        self._marks = (user.view(np.int32), item.view(np.int32), value.view(np.int32))
        self._hands = [hands(at, tables.links[0].rows.shape[1]) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads - 1, "step") if threads > 1 else None
        self.compiled = threaded(at)

    def learn(self, given: Given, out: Predictions, sum_half_life: float, linked: bool) -> None:
        """Learn the columns in order; `linked` says whether any row has attribute values."""
        c, live = given.columns, given.on.live
        edges = update_points(c.role, int(given.terms.counters[0]), self.size, live)
        made = order((c.user, c.item, c.pair), edges, given.tables, self._marks, linked)
        between = room(self.at, made)
        arrived, sum_half_life = np.zeros(1, np.int64), faded(sum_half_life, self.size.block)

        def work(own: int) -> None:
            s = scratch(self.at, 0)._replace(told=between.told)
            worker = Worker(own, self.threads)
            self.compiled(
                given, made, between, (s, out, self._hands[own]), worker, arrived, sum_half_life
            )

        others = [self._pool.submit(work, n) for n in range(1, self.threads)] if self._pool else []
        work(0)
        for other in others:
            other.result()
