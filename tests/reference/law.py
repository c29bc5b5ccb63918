"""The law of a block of interactions: users in order, then items, attribute values, global terms.

A block of one interaction is the sequential law, wherever no row and no attribute value comes twice
within the interaction.
"""

import copy
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream.batch import Batch
from stream.interaction_type import InteractionType
from stream.model import scalars as sc
from stream.model.learner import Learner
from stream.model.step.names import GlobalTerms
from tests.reference import loss
from tests.reference.rows import Composed, Floats, Key, Rows, Sums, rate_of
from tests.reference.scores import expected, listed, popularity, score, unusual
from tests.reference.state import Event, State
from tests.reference.sums import add_control, add_exposure, add_outcome, add_usual

SAMPLE = 8  # one in so many interactions tells all terms of its score


@dataclass(frozen=True)
class Told:
    """What was expected of each interaction before it was learned, nan where nothing is."""

    prediction: Floats  # (B,)
    control: Floats  # (B,)
    terms: Floats  # (B, 6)
    served: Floats  # (B,)


@dataclass
class Block:
    """What the walk over a block's users leaves for its items and attribute values."""

    seen: list[tuple[Event, Composed | None, Composed | None]] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)
    touched: Counter[tuple[str, int]] = field(default_factory=Counter)  # what averages move by
    values: dict[int, Rows] = field(default_factory=dict)  # as a user's own interactions move them


def closes(state: State, e: Event) -> bool:
    """Tell whether a window closes with it."""
    untouched = state.logit[e.outcome] and e.label == 0 and not e.counts
    return e.live and (
        e.role == InteractionType.CLOSED or (e.role == InteractionType.EXPOSED and untouched)
    )


class Reference(State):
    """A learner's state in float64, which learns by the written law."""

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner)

    def learn(self, batch: Batch, pair: NDArray[np.int32], block: int, live: bool = True) -> Told:
        """Learn the batch in blocks, with these uniform items (B, P), -1 for none.

        A block ends where global terms move, after `block` interactions, after `block_share` of
        those learned before it, and with the batch. Where not `live` (replay, synthetic outcomes)
        nothing is counted and no global term moves.
        """
        if block > sc.BLOCK:
            raise ValueError("what a border does behind so large a block is not written here")
        n = len(batch)
        prediction, control, served = np.full((3, n), np.nan)
        told = Told(prediction, control, np.zeros((n, 6)), served)
        self.exist("user", batch.user)
        self.exist("item", batch.item)
        self.exist("item", pair[pair >= 0])
        begin = 0
        while begin < n:
            young = max(1, int(self.count[sc.STEPS] * self.config.block_share))
            last = min(begin + min(block, young), n)
            begin = self._block(batch, pair, range(begin, last), live, told)
        return told

    def _block(
        self, batch: Batch, pair: NDArray[np.int32], most: range, live: bool, told: Told
    ) -> int:
        """Learn a block that begins with `most`; return where it ends."""
        block, update_point = Block(), False
        for j in most:
            e = self.event(batch, pair, j, live)
            self._walk(e, block, told, j)
            if live and e.learned:
                self.count[sc.STEPS] += 1
                update_point = sc.is_update_point(int(self.count[sc.STEPS]))
            if update_point:
                break
        for e, user, item in block.seen:
            self._advance(e, user, item)
        for kind, row, key, total, squares in block.sums:
            rate = rate_of(self.config, kind, key)
            self.rows[kind].step(row, key, total, squares, rate)
        if self.config.average > 0:
            self._average(block.touched)
        if update_point:
            terms = GlobalTerms(self.outcome, self.head, self.place, self.withheld, self.count)
            sc.refresh(terms, float(self.config.sum_half_life))
        return j + 1

    # -- the walk: each user's interactions in order, all else as when the block began

    def _walk(self, e: Event, block: Block, told: Told, j: int) -> None:
        """Predict an interaction, move its user, and keep what it says of items and values."""
        if closes(self, e):
            self.user["exposures"][e.user] += 1
        if e.role == InteractionType.CLOSED:
            block.seen.append((e, None, None))
            return
        values = block.values.setdefault(e.user, copy.deepcopy(self.feature))
        user = self.composed("user", e.user, values)
        items = [self.composed("item", i) for i in e.items]
        s = score(self, e, user, items[0])
        told.prediction[j], told.control[j] = expected(self, e, s)
        if e.role == InteractionType.PREDICT:
            return
        block.seen.append((e, user, items[0]))
        if e.live and e.counts:
            self.count[sc.USERS] += self.user["events"][e.user] == 0
            self.user["events"][e.user] += 1
        if e.live and self.exposing(e):
            add_exposure(self, e, user, items)
        if e.treated:
            told.served[j] = listed(self, e, s, user, items[0])
        if e.live and e.treated:
            add_outcome(self, e, s)
            o = e.outcome
            told.terms[j, 1] = user.bias[o]
            if self.count[sc.STEPS] % SAMPLE == 0:
                rest = items[0].bias[o], s.match, s.popularity, s.trait
                told.terms[j] = (1.0, user.bias[o], *rest)
        if e.live and e.role == InteractionType.CONTROL and self.paths.control:
            add_control(self, e, s)
            self.user["controls"][e.user] += 1
        by_user, by_items = loss.gradients(self, e, s, user, items)
        self._teach_user(e, by_user)
        for f, x in user.links:
            self._teach(values, f, e, "feature", by_user, x)
        self._keep(e, block, "user", user, by_user)
        self._keep_items(e, block, items, by_items)
        if e.live and e.counts:
            recent = self.user["recent"][e.user]
            recent += (items[0].session - recent) / self.config.session_items

    def _teach_user(self, e: Event, by: loss.Gradient) -> None:
        """Every part of the user's row that the interaction is about takes its step at once."""
        self._teach(self.user, e.user, e, "user", by, 1.0)

    def _teach(
        self, rows: Rows, row: int, e: Event, kind: str, by: loss.Gradient, x: float
    ) -> None:
        """The parts that the interaction is about step by its gradients, times x, of the user."""
        o, Y = e.outcome, self.Y
        keys: list[Key] = []
        if e.treated:
            keys += ["vector", o, 2 * Y + o]
        if e.role == InteractionType.CONTROL and self.paths.control:
            keys.append(Y + o)
        if self.exposing(e):
            keys.append("exposure")
        if self.in_session(e):
            keys.append("session")
        for key in keys:
            g = x * (by.bias[key : key + 1] if isinstance(key, int) else getattr(by, key))
            squares = float(np.mean(g**2)) if g.size else 0.0
            rows.step(row, key, g, squares, rate_of(self.config, kind, key))

    def _keep(self, e: Event, block: Block, kind: str, row: Composed, by: loss.Gradient) -> None:
        """Keep a row's gradients for its attribute values; a treated row's values count it."""
        for f, x in row.links:
            for name in ("vector", "exposure", "session"):
                block.sums.add("feature", f, name, x * getattr(by, name))
            for c in np.flatnonzero(by.bias).tolist():
                block.sums.add("feature", f, c, x * by.bias[c : c + 1])
            if e.treated:
                block.touched["feature", f] += kind == "user"
                self.feature["events"][f] += e.live

    def _keep_items(self, e: Event, block: Block, items: list[Composed], by: loss.Gradient) -> None:
        """Keep the gradients of the interaction's item and of the uniform ones."""
        for p, (i, item) in enumerate(zip(e.items, items, strict=True)):
            own = loss.Gradient(*(part[p] for part in by))
            valued = own.bias[e.outcome] != 0
            if not valued:  # an error of nothing moves no vector
                own = own._replace(vector=np.zeros_like(own.vector))
            for name in ("vector", "exposure", "session"):
                block.sums.add("item", i, name, getattr(own, name))
            for c in np.flatnonzero(own.bias).tolist():
                if not self.Y <= c < 2 * self.Y:  # the control's is its own, in `_control`
                    block.sums.add("item", i, c, own.bias[c : c + 1])
            self._keep(e if p == 0 else _other(e), block, "item", item, own)
            for row in [("item", i), *(("feature", f) for f, _ in item.links)]:
                block.touched[row] += bool(valued)

    # -- what each item of the block has of its own, in the order of the interactions

    def _advance(self, e: Event, user: Composed | None, item: Composed | None) -> None:
        """Counts, popularity, what is usual, and the control row; the treated row stands still."""
        i, rows = e.item, self.item
        if closes(self, e):
            rows["exposures"][i] += 1
        if user is None or item is None:
            return
        q, apart = unusual(self, e)
        if e.live and e.counts:
            rows["decayed_count"][i] = popularity(self, i, e.now_s) + 1.0
            rows["decayed_count_s"][i] = max(int(rows["decayed_count_s"][i]), e.now_s)
            self.count[sc.ITEMS] += rows["events"][i] == 0
            rows["events"][i] += 1
        if e.live and e.treated:
            add_usual(self, e, q, apart)
        if e.role == InteractionType.CONTROL and self.paths.control:
            self._control(e, user, item)

    def _control(self, e: Event, user: Composed, item: Composed) -> None:
        """The control row steps by its own error; the first time it begins as the treated one."""
        i, rows, Y, c = e.item, self.item, self.Y, self.Y + e.outcome
        if rows["control_sum"][i] == 0:
            rows["control"][i] = item.vector - item.linked_vector
            rows["control_sum"][i] = self.config.start_factor
            rows["bias"][i, Y : 2 * Y] = item.bias[:Y] - item.linked_bias[Y : 2 * Y]
        rows["controls"][i] += e.live
        shrinkage = self.config.control_shrinkage / (
            1.0 + self.config.control_shrinkage * rows["controls"][i]
        )
        by_row, by_bias = loss.control(
            self, e, user, item, rows["control"][i], rows["bias"][i, c], shrinkage
        )
        for key, g in (("control", by_row), (c, by_bias)):
            rows.step(i, key, g, float(np.mean(g**2)), rate_of(self.config, "item", key))

    # -- averages

    def _average(self, touched: Counter[tuple[str, int]]) -> None:
        """The served means of rows move towards them once, the first ones as plain means do."""
        for (kind, row), times in touched.items():
            rows = self.rows[kind]
            if times:
                keep = self.config.average**times
                rate = max(1.0 - keep, 1.0 / (rows["events"][row] + 1.0))
                rows["mean"][row] += rate * (rows["vector"][row] - rows["mean"][row])
                bias = rows["bias"][row, : self.Y]
                rows["mean_bias"][row] += rate * (bias - rows["mean_bias"][row])


def _other(e: Event) -> Event:
    """Return the interaction as a uniform item's values know it: nobody's outcome."""
    return Event(**{**vars(e), "role": int(InteractionType.CONSUMED)})
