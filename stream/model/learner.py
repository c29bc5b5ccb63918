"""The learner: what the trainer calls, whichever way the step runs."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stream.batch import Batch
from stream.errors import Inconsistent
from stream.model import loop, waves
from stream.model.config import ModelConfig
from stream.model.tables import PARTS, Layout, Table, reserve

log = logging.getLogger(__name__)

Kind = Literal["user", "item"]
Attribute = float | int | bool | str | list[str]
DIGITS = (1, 2, 3)  # a number is learned at these significant digits: coarse ones generalise


@dataclass(frozen=True, slots=True)
class Update:
    """What one step changed: rows sorted and distinct, predictions as of before each event."""

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    prediction: NDArray[np.float32]  # (B,)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as they are served: attributes are folded in, so a score is a sum and a product."""

    bias: NDArray[np.float32]  # (n, Y)
    vector: NDArray[np.float32]  # (n, D)
    events: NDArray[np.uint32]  # (n,)


def feature_names(kind: Kind, attributes: Mapping[str, Any]) -> Iterator[str]:
    """Name the values that an entity's attributes stand for, each once."""
    found: dict[str, None] = {}
    for name, value in attributes.items():
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, bool) or isinstance(one, str):
                found[f"{kind}\x1f{name}\x1f={one}"] = None
            elif one is not None:
                for digits in DIGITS:
                    found[f"{kind}\x1f{name}\x1f~{float(one):.{digits}g}"] = None
    yield from found


def choose(config: ModelConfig) -> tuple[bool, torch.device]:
    """Return whether the step is the compiled loop, and the device of the tables."""
    cuda = config.device == "cuda" or (
        config.device == "auto" and config.step == "torch" and torch.cuda.is_available()
    )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise Inconsistent(
            "model.device is cuda, and torch sees no GPU",
            "set COUNTERFLOW_MODEL__DEVICE=auto, or install a CUDA build of torch",
        )
    return config.step != "torch" and not cuda, torch.device("cuda" if cuda else "cpu")


class Learner:
    """The parameters and the optimizer; one owner, one thread.

    The same seed and the same events give the same bits, however they are cut into batches (the
    compiled step, on one machine).
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        """Reserve the memory; no row exists yet."""
        self.config = config
        self.seed = seed
        self.compiled, self.device = choose(config)
        torch.set_num_threads(1)  # the trainer's other core belongs to fetching and Redis
        self.layout = Layout(config.factors, len(config.outcomes))
        self.user, self.item, self.feature = (
            Table(n, self.layout, self.device)
            for n in (config.max_users, config.max_items, config.max_features)
        )
        self.user_links = reserve(config.max_users, config.max_links, np.int32)
        self.item_links = reserve(config.max_items, config.max_links, np.int32)
        self.history = reserve(config.max_users, 1 + config.history, np.int32)
        self.features: dict[str, int] = {}
        self.features_refused = 0
        self.label_count = np.zeros(len(config.outcomes))
        self.label_total = np.zeros(len(config.outcomes))
        self._mark_user = reserve(config.max_users, 1, np.uint8)[:, 0]
        self._mark_item = reserve(config.max_items, 1, np.uint8)[:, 0]
        self._changed: dict[Kind, set[int]] = {"user": set(), "item": set()}
        self._logit = np.array([o.link == "logit" for o in config.outcomes])
        self._low = np.array([o.low for o in config.outcomes], np.float32)
        self._high = np.array([o.high for o in config.outcomes], np.float32)
        self._middle = np.array([o.middle for o in config.outcomes])
        self._start = np.array([config.start_bias, config.start_factor], np.float32)
        self._rates = np.array(
            [
                [config.lr_user_bias, config.lr_user_factor],
                [config.lr_item_bias, config.lr_item_factor],
                [config.lr_feature_bias, config.lr_feature_factor],
            ],
            np.float32,
        )

    def table(self, kind: Kind) -> Table:
        """Return the table of that kind."""
        return self.user if kind == "user" else self.item

    def links(self, kind: Kind) -> NDArray[Any]:
        """Return the attribute links of that kind (rows, L): feature row + 1, 0 where none."""
        return self.user_links if kind == "user" else self.item_links

    def step(self, batch: Batch) -> Update:
        """Learn the events in order; return what changed, attributes set since then included."""
        self._admit("user", batch.user)
        self._admit("item", np.maximum(batch.item, batch.known_items - 1))
        user, item, outcome, label, source, users, items = self._draw(batch)
        self._ensure(self.user, users, loop.USER)
        self._ensure(self.item, items, loop.ITEM)
        base = np.empty(len(user), np.float32)
        loop.baseline(
            outcome, label, self.label_count, self.label_total, self._middle, self._logit, base
        )
        prediction = np.zeros(len(batch), np.float32)
        if self.compiled:
            loop.learn(
                user, item, outcome, label, source, base,
                self.user.array, self.item.array, self.feature.array,
                self.user_links, self.item_links, self._logit, self._low, self._high,
                self._rates, self.layout.factors, self.layout.outcomes, prediction,
            )  # fmt: skip
        elif len(user):
            sequence, borders = waves.order(user)
            columns = (user, item, outcome.astype(np.int64), label, base, (source >= 0))
            device = self.device
            u, i, o, y, b, c = (torch.from_numpy(x[sequence]).to(device) for x in columns)
            links = (self._near(self.user_links, self.user), self._near(self.item_links, self.item))
            tables = (self.user, self.item, self.feature)
            told = waves.learn(
                self.config, tables, links, (u.long(), i.long(), o, y, b, c.int()), borders
            ).cpu()  # the one synchronisation that a step cannot avoid
            mine = source[sequence]
            prediction[mine[mine >= 0]] = told.numpy()[mine >= 0]
        return Update(self._with("user", users), self._with("item", items), prediction)

    def set_attributes(self, kind: Kind, row: int, attributes: Mapping[str, Any] | None) -> None:
        """Link the row to the values of its attributes, in place of those it had.

        Values not seen before are admitted up to `max_features`; those refused are counted in
        `features_refused`. The next step's Update names the row.
        """
        self._admit(kind, np.array([row], np.int32))
        rows: list[int] = []
        for name in feature_names(kind, attributes or {}):
            at = self.features.get(name)
            if at is None and len(self.features) < self.config.max_features:
                at = self.features[name] = len(self.features)
                self.feature.touch(at + 1)
                self._ensure(self.feature, np.array([at], np.int32), loop.FEATURE)
            if at is None or len(rows) == self.config.max_links:
                self.features_refused += 1
            else:
                rows.append(at + 1)
        links = self.links(kind)[row]
        links[:] = 0
        links[: len(rows)] = rows
        self._changed[kind].add(row)

    def rows(self, kind: Kind, rows: NDArray[np.int32]) -> Rows:
        """Return rows as they are served; a row never touched is zeros, and stays so."""
        table, n = self.table(kind), len(rows)
        known = rows < table.used
        if not known.all():
            bias = np.zeros((n, self.layout.outcomes), np.float32)
            vector = np.zeros((n, self.layout.factors), np.float32)
            events = np.zeros(n, np.uint32)
            found = self.rows(kind, rows[known])
            bias[known], vector[known], events[known] = found.bias, found.vector, found.events
            return Rows(bias, vector, events)
        if self.compiled:
            bias = np.empty((n, self.layout.outcomes), np.float32)
            vector = np.empty((n, self.layout.factors), np.float32)
            loop.compose(
                rows, table.array, self.feature.array, self.links(kind), self.layout.factors,
                self.layout.outcomes, bias, vector,
            )  # fmt: skip
            return Rows(bias, vector, table.array.view(np.uint32)[rows, self.layout.events])
        at = torch.from_numpy(rows).long().to(self.device)
        side = waves.compose(table, self.feature, self._near(self.links(kind), table), at)
        events = table.events[at].cpu().numpy().view(np.uint32)
        return Rows(side.bias.cpu().numpy(), side.vector.cpu().numpy(), events)

    def exist(self, kind: Kind, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which rows were learned or described, and not forgotten since (n,)."""
        table = self.table(kind)
        found = rows < table.used
        at = torch.from_numpy(rows[found]).long().to(table.packed.device)
        learned = (table.packed[at] != 0).any(1).cpu().numpy()
        found[found] = learned | (self.links(kind)[rows[found]] != 0).any(1)
        return found

    def global_bias(self) -> NDArray[np.float32]:
        """Return the global term of each outcome (Y,): the link of the labels' running mean."""
        mean = (self.label_total + self._middle) / (self.label_count + 1)
        safe = np.where(self._logit, mean, 0.5)
        out: NDArray[np.float32] = np.where(self._logit, np.log(safe / (1 - safe)), mean).astype(
            "f4"
        )
        return out

    def forget(self, kind: Kind, row: int) -> None:
        """Make the row as if it had never been: parameters, counts, attributes, history."""
        table = self.table(kind)
        if row >= table.used:
            return
        table.packed[row] = 0
        self.links(kind)[row] = 0
        if kind == "user":
            self.history[row] = 0
        self._changed[kind].discard(row)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of everything that `load` needs, rows in use only."""
        names = [name.encode(errors="surrogatepass") for name in self.features]
        state: dict[str, NDArray[Any]] = {
            "shape": self._shape(),
            "label.count": self.label_count.copy(),
            "label.total": self.label_total.copy(),
            "feature.names": np.frombuffer(b"".join(names), np.uint8).copy(),
            "feature.lengths": np.array([len(n) for n in names], np.int32),
            "user.links": np.array(self.user_links[: self.user.used]),
            "item.links": np.array(self.item_links[: self.item.used]),
            "user.history": np.array(self.history[: self.user.used]),
            "user.changed": np.array(sorted(self._changed["user"]), np.int32),
            "item.changed": np.array(sorted(self._changed["item"]), np.int32),
        }
        for name, table in self._tables():
            state |= {f"{name}.{part}": value for part, value in table.state().items()}
        return state

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take a saved state in place of this one; going on then equals never having stopped."""
        if not np.array_equal(state["shape"], self._shape()):
            raise Inconsistent(
                "the saved model has another shape or seed than the configuration: "
                f"{state['shape'].tolist()} against {self._shape().tolist()} "
                "(factors, outcomes, links, history, seed)",
                "go back to the settings it was saved with, or start from an empty folder",
            )
        self._check_room(state)
        self.user_links[: self.user.used] = 0
        self.item_links[: self.item.used] = 0
        self.history[: self.user.used] = 0
        for name, table in self._tables():
            table.load({part: state[f"{name}.{part}"] for part in PARTS})
        for held, name in (
            (self.user_links, "user.links"),
            (self.item_links, "item.links"),
            (self.history, "user.history"),
        ):
            held[: len(state[name])] = state[name]
        self.label_count[:] = state["label.count"]
        self.label_total[:] = state["label.total"]
        ends = np.cumsum(state["feature.lengths"])
        arena = state["feature.names"].tobytes()
        starts = ends - state["feature.lengths"]
        self.features = {
            arena[a:b].decode(errors="surrogatepass"): k
            for k, (a, b) in enumerate(zip(starts, ends, strict=True))
        }
        self._changed = {
            "user": set(state["user.changed"].tolist()),
            "item": set(state["item.changed"].tolist()),
        }

    def warm_up(self) -> None:
        """Compile every kernel now, on a model of its own, so that the first event need not."""
        small = replace(self.config, max_users=8, max_items=8, max_features=8)
        other = Learner(small, self.seed)
        other.set_attributes("user", 0, {"a": "b"})
        one = np.zeros(1, np.int32)
        other.step(
            Batch(one, one, one.astype(np.int8), one.astype(np.float32), one, one.astype(np.uint64))
        )
        other.rows("user", one)

    def _tables(self) -> tuple[tuple[str, Table], ...]:
        return (("user", self.user), ("item", self.item), ("feature", self.feature))

    def _shape(self) -> NDArray[np.int64]:
        c = self.config
        return np.array([c.factors, len(c.outcomes), c.max_links, c.history, self.seed], np.int64)

    def _check_room(self, state: Mapping[str, NDArray[Any]]) -> None:
        for name, table in self._tables():
            if len(state[f"{name}.vector"]) > table.rows:
                raise self._full(name, table.rows)

    def _full(self, name: str, rows: int) -> Inconsistent:
        return Inconsistent(
            f"the model has room for {rows} {name}s, and the stream has more",
            f"raise COUNTERFLOW_MODEL__MAX_{name.upper()}S; address space is cheap",
        )

    def _admit(self, kind: Kind, rows: NDArray[np.int32]) -> None:
        if not len(rows):
            return
        table, top = self.table(kind), int(rows.max())
        if top >= table.rows:
            raise self._full(kind, table.rows)
        table.touch(top + 1)

    def _ensure(self, table: Table, rows: NDArray[np.int32], salt: int) -> None:
        c, at = self.config, self.layout
        spread = np.float32(c.spread_feature if salt == loop.FEATURE else c.spread_factor)
        seed = np.uint64(self.seed)
        if self.device.type == "cpu":
            loop.ensure(table.array, rows, salt, seed, spread, self._start, at.factors, at.outcomes)
            return
        held = table.read(rows)
        new = rows[held[:, at.vector_sum] == 0]
        if len(new):
            drawn = np.zeros((int(new.max()) + 1, at.width), np.float32)
            loop.ensure(drawn, new, salt, seed, spread, self._start, at.factors, at.outcomes)
            where = torch.from_numpy(new).long().to(self.device)
            table.packed[where] = torch.from_numpy(drawn[new]).to(self.device)

    def _near(self, links: NDArray[Any], table: Table) -> torch.Tensor:
        return torch.from_numpy(links[: table.used]).to(self.device)

    def _draw(self, batch: Batch) -> tuple[NDArray[Any], ...]:
        clicks = int(np.count_nonzero(self._logit[batch.outcome]))
        room = len(batch) + clicks * self.config.negatives
        user, item, source = (np.empty(room, np.int32) for _ in range(3))
        outcome, label = np.empty(room, np.int8), np.empty(room, np.float32)
        users, items = np.empty(len(batch), np.int32), np.empty(room, np.int32)
        n, nu, ni = loop.draw(
            batch.user, batch.item, batch.outcome, batch.label, batch.known_items, batch.key,
            self.history, self._logit, self.config.negatives, self._mark_user, self._mark_item,
            user, item, outcome, label, source, users, items,
        )  # fmt: skip
        out = (user, item, outcome, label, source)
        return (*(x[:n] for x in out), np.sort(users[:nu]), np.sort(items[:ni]))

    def _with(self, kind: Kind, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        waiting = self._changed[kind]
        if not waiting:
            return rows
        more = np.fromiter(waiting, np.int32, len(waiting))
        waiting.clear()
        return np.union1d(rows, more).astype(np.int32)
