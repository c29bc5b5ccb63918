"""What a learner holds, copied in float64, and one interaction of a batch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.batch import Batch
from stream.interaction_type import SYNTHETIC, InteractionType
from stream.model import kernels
from stream.model.learner import Learner
from tests.reference.rows import Composed, Rows, compose

SALTS = {"user": 0, "item": 1}  # of a new row's vector
TREATED = (InteractionType.FACTUAL, InteractionType.EXPOSED, InteractionType.CORRECTION, SYNTHETIC)


@dataclass(frozen=True)
class Event:
    """One interaction; `items` are its own item, then the uniform ones."""

    user: int
    items: list[int]
    outcome: int
    label: float
    role: int
    propensity: float
    place: int  # from 0
    now_s: int
    counts: bool
    contrasts: int  # uniform items that are wanted, n in docs/model.md
    live: bool

    @property
    def item(self) -> int:
        return self.items[0]

    @property
    def treated(self) -> bool:
        """Whether it teaches the outcome if shown."""
        return self.role in TREATED

    @property
    def learned(self) -> bool:
        return self.role not in (InteractionType.PREDICT, InteractionType.CLOSED)

    @property
    def head(self) -> int:
        """The exposure head: self-selection, or the policy."""
        return 0 if self.role in (InteractionType.FACTUAL, InteractionType.CONSUMED) else 1


class State:
    """Copies of a learner's rows, links, global terms and configuration."""

    def __init__(self, learner: Learner) -> None:
        self.config = c = learner.config
        self.paths = c.paths
        self.seed, self._start = learner.seed, learner._start
        self.Y = len(c.outcomes)
        self.logit = [o.link == "logit" for o in c.outcomes]
        tables = {"user": learner.user, "item": learner.item, "feature": learner.feature}
        self.rows = {kind: Rows(table.state(), table.layout) for kind, table in tables.items()}
        self.user, self.item, self.feature = self.rows.values()
        self.links = {
            kind: (links.rows[: tables[kind].used].copy(), links.values[: tables[kind].used].copy())
            for kind, links in learner.links.items()
        }
        s = learner.scalars
        self.outcome, self.head, self.place = s.outcome.copy(), s.head.copy(), s.place.copy()
        self.withheld, self.count = s.withheld.copy(), s.count.copy()
        assert not learner._living.size.any(), "items were removed: pairs have another rule"

    def clip(self, outcome: int, score: float) -> float:
        """Return the score within the outcome's scale."""
        scale = self.config.outcomes[outcome]
        return min(max(score, scale.low), scale.high)

    def composed(self, kind: str, row: int, values: Rows | None = None) -> Composed:
        """Return the row as it enters the score, with its attribute values, or with these."""
        links, numbers = self.links[kind]
        if row >= len(links):  # nothing was ever said of it
            links, numbers = np.zeros((row + 1, 1), np.int32), np.zeros((row + 1, 1), np.float32)
        features = self.feature if values is None else values
        return compose(self.rows[kind], features, row, links[row], numbers[row])

    def exist(self, kind: str, rows: NDArray[np.int32]) -> None:
        """Every named row exists after the call; new ones begin as the seed has it."""
        if not len(rows):
            return
        table, at = self.rows[kind], self.rows[kind].at
        table.grow(int(rows.max()) + 1)
        new = np.unique(rows[table["vector_sum"][rows] == 0]).astype(np.int64)
        if len(new):
            drawn = np.zeros((int(new.max()) + 1, at.width), np.float32)
            salt = SALTS[kind]
            kernels.ensure(drawn, new, at, salt, np.uint64(self.seed), self._start[salt])
            table.put(new, drawn[new])

    def draw(self, batch: Batch) -> NDArray[np.int32]:
        """Return the uniform items of each interaction (B, P): the seed's counter, mixed."""
        c = self.config
        wanted = c.pairs if c.paths.exposure or c.paths.robust else 0
        pair = np.full((len(batch), wanted), -1, np.int32)
        for j in range(len(batch)):
            counter, known = batch.key[j], int(batch.known_items[j])
            if known and batch.role[j] not in (InteractionType.PREDICT, InteractionType.CLOSED):
                for p in range(wanted):
                    counter = np.uint64(kernels.splitmix64(counter))
                    pair[j, p] = int(counter) % known
        return pair

    def event(self, batch: Batch, pair: NDArray[np.int32], j: int, live: bool) -> Event:
        """Return one interaction of the batch."""
        return Event(
            user=int(batch.user[j]),
            items=[int(batch.item[j]), *(int(p) for p in pair[j] if p >= 0)],
            outcome=int(batch.outcome[j]),
            label=float(batch.label[j]),
            role=int(batch.role[j]),
            propensity=float(batch.propensity[j]),
            place=min(max(int(batch.position[j]), 1), len(self.place)) - 1,
            now_s=int(batch.ts_ms[j]) // 1000,
            counts=bool(batch.counts[j]),
            contrasts=pair.shape[1],
            live=live,
        )

    def exposing(self, e: Event) -> bool:
        """Whether it teaches who is shown what."""
        return self.paths.exposure and e.role != InteractionType.CORRECTION and len(e.items) > 1

    def in_session(self, e: Event) -> bool:
        """Whether it teaches what goes with the items just chosen: a replay has not the moment."""
        return self.exposing(e) and e.live and self.user.at.S > 0
