"""The learner: the model's interface to the engine, independent of the driver."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stream.batch import Batch, ratings
from stream.errors import Inconsistent
from stream.interaction_type import InteractionType
from stream.memory import reserve
from stream.model.choice import choose
from stream.model.config import ModelConfig
from stream.model.draw import Drawn, SamplingState, Touched, draw
from stream.model.drivers import ModelTables, driver
from stream.model.experience_replay import ExperienceReplay
from stream.model.features import EntityKind, is_slope, links_of
from stream.model.kernels import FEATURE, ITEM, USER
from stream.model.layout import HEADS, LINE, STRIDE, Layout, layout
from stream.model.links import NUMBERS, FeatureVocabulary, LinkTable, gather_numbers
from stream.model.living import Living
from stream.model.scalars import (
    BASE,
    CARRIED,
    CONTROLS,
    EXPOSED,
    GATE,
    ITEMS,
    LEVEL,
    Q_MEAN,
    SCALE,
    SHARE,
    SHIFT,
    SLOPE,
    STEPS,
    T_INFO,
    THETA,
    USERS,
    Scalars,
)
from stream.model.step.arguments import rates
from stream.model.step.names import (
    TERMS,
    Given,
    GlobalTerms,
    InteractionColumns,
    Layouts,
    OpenPaths,
    OutcomeLinks,
    Predictions,
)
from stream.model.synthetic import Imagined
from stream.model.tables import RowTable

log = logging.getLogger(__name__)

VERSION = 3  # of the saved state
MEAN_OF = 1_024  # users sampled for the mean user
WIDENS = 1_000.0  # if a number's spread grows by more than this factor, its slope is reset
SLOPE_MOVES = 0.02  # change of a slope in one step after which all items are written again


@dataclass(frozen=True, slots=True)
class Update:
    """What one step changed: sorted distinct rows, and predictions made before each was learned."""

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    prediction: NDArray[np.float32]  # (B,) of the outcome, as it was shown
    control: NDArray[np.float32]  # (B,) of the outcome if withheld; nan where unknown
    terms: NDArray[np.float32]  # (B, 6) TERMS of sampled scores; of others the user's only
    served: NDArray[np.float32]  # (B,) the served score; nan without an outcome if shown


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as they are served; attributes are included, so a score is a sum and a dot product.

    users     bias [a Y | a0 Y]                           vector [g D | s E + S]
    items     bias [c Y | c0 Y | m H | q | has_control]   vector [h D | h0 D | t E + S]
    """

    bias: NDArray[np.float32]  # (n, user 2Y, item 2Y + H + 2)
    vector: NDArray[np.float32]  # (n, user D + E + S, item 2D + E + S)
    events: NDArray[np.uint32]  # (n,)
    exposures: NDArray[np.uint32]  # (n,) closed windows
    controls: NDArray[np.uint32]  # (n,) closed windows without showing


def _rows(
    bias: NDArray[np.float32], vector: NDArray[np.float32], packed: NDArray[np.float32], at: Layout
) -> Rows:
    """Return Rows with the counts from the packed rows."""
    bits = packed.view(np.uint32)
    counts = (bits[:, part].copy() for part in (at.events, at.exposures, at.controls))
    return Rows(bias, vector, *counts)


class Learner:
    """The parameters, the optimizer state and their updates; used by one thread.

    With the sequential driver on one machine, the same seed and the same events give the same bits,
    however the events are divided into batches.
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        """Choose the driver and reserve the memory; no row exists yet."""
        c = self.config = config
        self.seed = seed
        self.choice = choose(config)
        self.device = torch.device(self.choice.device)
        torch.set_num_threads(1)  # leave other cores to fetching and Redis
        sizes = (
            c.factors, c.exposure_factors, c.session_factors, len(c.outcomes), c.average > 0,
            STRIDE if self.choice.driver == "blocks on a GPU" else LINE,
        )  # fmt: skip
        self.user = RowTable(c.max_users, layout("user", *sizes), self.device)
        self.item = RowTable(c.max_items, layout("item", *sizes), self.device)
        self.feature = RowTable(c.max_features, layout("feature", *sizes), self.device)
        self.links = {
            "user": LinkTable(c.max_users, c.max_links),
            "item": LinkTable(c.max_items, c.max_links),
        }
        self.features = FeatureVocabulary(c.max_features)
        self._values: set[int] = set()  # rows of attribute values that exist
        self.history = reserve(c.max_users, 1 + c.history, np.int32)
        self.scalars = Scalars(c.outcomes)
        self._mark_user = reserve(c.max_users, 1, np.uint8)[:, 0]
        self._mark_item = reserve(c.max_items, 1, np.uint8)[:, 0]
        self._logit = np.array([o.link == "logit" for o in c.outcomes])
        self._low = np.array([o.low for o in c.outcomes], np.float32)
        self._high = np.array([o.high for o in c.outcomes], np.float32)
        self._rates = rates(c)
        pairs = c.pairs if c.paths.exposure or c.paths.robust else 0
        self._at = Layouts(self.user.layout, self.item.layout, self.feature.layout, pairs)
        tables = ModelTables(
            self.user, self.item, self.feature, self.links["user"], self.links["item"]
        )
        self.driver = driver(self.choice, self._at, c, tables)
        # items changed as uniform items of an interaction and not yet published
        self._dirty = reserve(c.max_items, 1, np.uint8)[:, 0]
        self._living = Living(c.max_items)  # the items that uniform items are drawn from
        self._now_s = 0  # the latest event time learned
        start = np.array([c.start_bias, c.start_factor, c.start_exposure], np.float32)
        spread = (c.spread_factor, c.spread_factor, c.spread_feature)
        self._start = [
            np.append(start, np.array([s, c.spread_exposure], np.float32)) for s in spread
        ]
        self._past = ExperienceReplay(c.replay_rows)
        self._imagined = (
            Imagined(c.max_users, len(c.outcomes), c.half_life_s) if c.synthetic > 0 else None
        )

    def table(self, kind: EntityKind) -> RowTable:
        """Return the table of that kind."""
        return self.user if kind == "user" else self.item

    def step(self, batch: Batch) -> Update:
        """Learn the interactions in order; return what changed."""
        pair, users, items = self._draw(batch)
        slopes = self.scalars.outcome[:, SLOPE].copy()
        told = self._learn(batch, pair, True)
        if len(batch):
            self._now_s = max(self._now_s, int(batch.ts_ms.max()) // 1000)
            self._past.add(batch)
        moved = np.abs(self.scalars.outcome[:, SLOPE] - slopes)
        if (moved > SLOPE_MOVES).any():  # kappa is part of every item's served bias
            self._dirty[: self.item.used] = 1
        return Update(users, items, *told)

    def replay(self, count: int) -> Update:
        """Learn `count` remembered interactions once more, without counting them again.

        The selection depends on the seed and on the number of calls, so two runs that replay while
        their queue is empty do not have the same bits.
        """
        batch = self._past.draw(count, self.seed)
        pair, users, items = self._draw(batch)
        return Update(users, items, *self._learn(batch, pair, False))

    def imagine(self, batch: Batch, update: Update) -> Update:
        """Learn the counterfactual outcomes of a batch that was just learned (synthetic.py).

        They are not counted, evaluated or remembered for replay, and move no global term. With
        `synthetic` 0 there are none. They depend on the model after the step, so with them the bits
        depend on how a stream is divided into batches.
        """
        if self._imagined is None:
            made = batch.slice(0, 0)
        else:
            made = self._imagined.make(
                batch, update.prediction, self._logit, self.links["item"], self._living
            )
        pair, users, items = self._draw(made)
        return Update(users, items, *self._learn(made, pair, False))

    def _learn(
        self, batch: Batch, pair: NDArray[np.int32], live: bool
    ) -> tuple[NDArray[np.float32], ...]:
        """Let the driver learn the batch; return predictions, controls, terms and served scores."""
        prediction = np.full(len(batch), np.nan, np.float32)
        control = np.full(len(batch), np.nan, np.float32)
        terms = np.zeros((len(batch), len(TERMS)), np.float32)
        served = np.full(len(batch), np.nan, np.float32)
        ts_s = batch.ts_ms // 1000
        s = self.scalars
        learns = (batch.role != InteractionType.PREDICT) & (batch.role != InteractionType.CLOSED)
        step = np.cumsum(learns) - learns + s.count[STEPS]  # number learned before each
        columns = InteractionColumns(
            batch.user, batch.item, batch.outcome, batch.label, batch.role, batch.propensity,
            batch.position, ts_s, batch.counts, pair, step,
        )  # fmt: skip
        every = GlobalTerms(s.outcome, s.head, s.place, s.withheld, s.count)
        on = OpenPaths(**asdict(self.config.paths), live=live)
        outcomes = OutcomeLinks(self._logit, self._low, self._high)
        given = Given(columns, self.driver.arrays(), every, outcomes, self._rates, on)
        out = Predictions(prediction, control, terms, served)
        self.driver.learn(given, out, float(self.config.sum_half_life), len(self.features) > 0)
        return prediction, control, terms, served

    def dirty(self) -> NDArray[np.int32]:
        """Return the items that `take_dirty` would return."""
        return np.flatnonzero(self._dirty[: self.item.used]).astype(np.int32)

    def take_dirty(self, most: int) -> NDArray[np.int32]:
        """Return up to `most` items that changed only as uniform items; mark them as published."""
        rows = np.flatnonzero(self._dirty[: self.item.used])[:most].astype(np.int32)
        self._dirty[rows] = 0
        return rows

    def set_attributes(
        self, kind: EntityKind, row: int, attributes: Mapping[str, Any] | None
    ) -> None:
        """Link the row to the values of its attributes, which replace those it had.

        New values are admitted up to `max_features`; those not admitted are counted in
        `features.refused`.
        """
        self._admit(kind, np.array([row], np.int32))
        if kind == "item" and self.removed(np.array([row], np.int32))[0]:
            self._living.revive(row)
            self._ensure(self.item, np.array([row], np.int32), ITEM)
        links: list[tuple[int, float]] = []
        for name, value in links_of(kind, attributes or {}, self.config.linear):
            full = len(links) == self.config.max_links  # then do not create a row for the value
            at = None if full else self.features.admit(name)
            if at is None:
                self.features.refused += 1
                continue
            if at not in self._values:
                self._begin(at, name)
            if is_slope(name):
                told = self.features.observe(at, value)
                if told is not None:
                    self._rescale(at, *told)
            links.append((at, value))
        self.links[kind].set(row, links)

    def _begin(self, at: int, name: str) -> None:
        """Create the attribute value's row; a slope starts at 0, lest outliers dominate."""
        self._values.add(at)
        self.feature.touch(at + 1)
        self._ensure(self.feature, np.array([at], np.int32), FEATURE)
        if is_slope(name):
            f = self.feature.layout
            means = [(f.mean, f.D)] if f.mean >= 0 else []
            for first, size in ((f.vector, f.D), (f.exposure, f.E), (f.session, f.S), *means):
                self.feature.packed[at, first : first + size] = 0

    def numbers(self, items: NDArray[np.int32]) -> NDArray[np.float32] | None:
        """Return the items' current numeric attributes (B, NUMBERS), nan where an item has none.

        Their names are `features.numbers`. Returns None until any item has had a number.
        """
        if not self.features.numbers:
            return None
        x = np.empty((len(items), NUMBERS), np.float32)
        links = self.links["item"]
        gather_numbers(items, links.rows, links.values, self.features.slot, x)
        return x

    def mean_user(self) -> NDArray[np.float32]:
        """Return the mean factors (D,) of a sample of about 1,024 users, evenly spaced over the
        rows.
        """
        used = self.user.used
        rows = np.arange(0, used, max(1, -(-used // MEAN_OF)), dtype=np.int32)
        rows = rows[self.exist("user", rows)]
        if not len(rows):
            return np.zeros(self.config.factors, np.float32)
        vectors = self.served_rows("user", rows).vector[:, : self.config.factors]
        return np.asarray(vectors.mean(0), np.float32)

    def _rescale(self, feature: int, center: float, scale: float) -> None:
        """Change a number's center and scale; rescale its slope so that its effect stays the same.

        If the spread grew by more than WIDENS, the slope would let outliers dominate, so it is
        reset to 0.
        """
        at = self.feature.layout
        row = self.feature.packed[feature]
        ratio = scale * float(row[at.inverse])
        ratio = ratio if ratio <= WIDENS else 0.0
        means = [(at.mean, at.D), (at.mean_bias, at.Y)] if at.mean >= 0 else []
        parts = ((at.vector, at.D), (at.exposure, at.E), (at.session, at.S), (at.bias, at.C))
        for first, size in (*parts, *means):
            row[first : first + size] *= ratio
        row[at.center], row[at.inverse] = center, 1.0 / scale

    def served_rows(self, kind: EntityKind, rows: NDArray[np.int32]) -> Rows:
        """Return rows as they are served; a row never touched is zeros, and is not created."""
        table, at = self.table(kind), self.table(kind).layout
        n, known = len(rows), rows < table.used
        vector, exposure = np.zeros((n, at.D), np.float32), np.zeros((n, at.E + at.S), np.float32)
        bias = np.zeros((n, at.C), np.float32)
        packed = np.zeros((n, at.width), np.float32)
        if known.any():
            side, latest = int(kind == "item"), np.float32(self.config.session_share)
            packed[known], served = self.driver.serve(side, rows[known], latest)
            vector[known], bias[known] = served[:, : at.D], served[:, at.bias :]
            exposure[known] = served[:, at.D : at.bias]
        biases, vectors = [bias[:, : 2 * at.Y]], [vector]
        if kind == "item":
            self._level(bias, packed)
            biases += [
                bias[:, 3 * at.Y :],
                self._popularity(packed)[:, None],
                (packed[:, at.control_sum] > 0)[:, None].astype(np.float32),
            ]
            first = at.mean if self.config.average > 0 else at.vector
            # h0: the attributes' part of h is common to both arms, only the item's own differs
            control = packed[:, at.control : at.control + at.D]
            vectors.append(vector + control - packed[:, first : first + at.D])
        return _rows(np.concatenate(biases, 1), np.concatenate([*vectors, exposure], 1), packed, at)

    def feature_rows(self, rows: NDArray[np.int32]) -> Rows:
        """Return attribute values as they are served.

        bias (n, 2Y + H + 4) is [b Y | b0 Y | m H | low | high | center | scale], vector is (n, D).
        """
        at = self.feature.layout
        packed = self.feature.read(rows)
        means = self.config.average > 0
        own = packed[:, at.mean_bias if means else at.bias :][:, : at.Y]
        vector = packed[:, at.mean if means else at.vector :][:, : at.D]
        control = packed[:, at.bias + at.Y : at.bias + 2 * at.Y]
        exposure = packed[:, at.bias + 3 * at.Y : at.bias + at.C]
        bounds = np.array([self.features.range(f) for f in rows.tolist()]).reshape(-1, 2)
        numeric = (bounds != 0).any(1) | (packed[:, at.center] != 0)
        inverse = packed[:, at.inverse]  # 0: known only by name, as in some old states
        scale = np.where(numeric & (inverse > 0), 1.0 / np.where(inverse > 0, inverse, 1.0), 0.0)
        measure = np.stack([*bounds.T, np.where(numeric, packed[:, at.center], 0.0), scale], 1)
        bias = np.concatenate([own, control, exposure, measure], 1)
        return _rows(bias.astype(np.float32), vector.copy(), packed, at)

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Return (number of biases, length of the vector) of the served rows, by kind."""
        at = self.item.layout
        heads = at.C - 3 * at.Y
        return {
            "user": (2 * at.Y, at.D + at.E + at.S),
            "item": (2 * at.Y + heads + 2, 2 * at.D + at.E + at.S),
            "feature": (2 * at.Y + heads + 4, at.D),
        }

    def _level(self, bias: NDArray[np.float32], packed: NDArray[np.float32]) -> None:
        """Shift the items' biases from the item's running mean popularity to the overall mean.

        The learner's c_i belongs to r_i, the item's running mean of q (or the present q before its
        first outcome). The served c_i belongs to the mean popularity of all outcomes, so that kappa
        (q - mean) is the whole popularity path.
        """
        o = self.scalars.outcome
        if not self.config.paths.popularity:
            return
        at = self.item.layout
        seen = packed.view(np.uint32)[:, at.outcomes : at.outcomes + at.Y] > 0
        now = self._popularity(packed)[:, None]
        usual = np.where(seen, packed[:, at.popularity_mean : at.popularity_mean + at.Y], now)
        exists = packed[:, at.vector_sum, None] > 0
        bias[:, : at.Y] -= np.where(exists, o[:, SLOPE] * (usual - o[:, Q_MEAN]), 0.0)

    def _popularity(self, packed: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return q = log(1 + decayed count) (n,) as of the latest event time."""
        at = self.item.layout
        age = self._now_s - packed.view(np.uint32)[:, at.decayed_count_s].astype(np.float64)
        heat = packed[:, at.decayed_count] * 0.5 ** (np.maximum(age, 0.0) / self.config.half_life_s)
        return np.log1p(heat).astype(np.float32)

    def exist(self, kind: EntityKind, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which rows were learned or described, and not removed since (n,)."""
        table = self.table(kind)
        found = rows < table.used
        at = torch.from_numpy(rows[found]).long().to(table.packed.device)
        learned = (table.packed[at] != 0).any(1).cpu().numpy()
        found[found] = learned | (self.links[kind].rows[rows[found]] != 0).any(1)
        return found & ~self.removed(rows) if kind == "item" else found

    def removed(self, items: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which items were removed and have had no event of their own since (n,)."""
        return self._living.gone(items)

    def base(self) -> NDArray[np.float32]:
        """Return the bases (3, Y): if shown, if withheld, as observed."""
        return self.scalars.outcome[:, BASE : BASE + 3].T.astype(np.float32)

    def globals(self) -> NDArray[np.float32]:
        """Return the bases as they are served (2Y,): if shown, then if withheld."""
        return self.base()[:2].ravel()

    def remove(self, kind: EntityKind, row: int) -> None:
        """Erase the row: parameters, counts, attributes, history and everything remembered of it.

        Only an event of its own creates it again. Until then an item is not drawn as a uniform
        item.
        """
        if kind == "item":
            self._living.remove(row)
            self._dirty[row] = 0
        self._past.discard(kind, row)
        if self._imagined:
            self._imagined.discard(kind, row)
        table = self.table(kind)
        if row >= table.used:
            return
        if int(table.bits[row, table.layout.events]):
            self.scalars.count[USERS if kind == "user" else ITEMS] -= 1
        table.packed[row] = 0
        self.links[kind].set(row, [])
        if kind == "user":
            self.history[row] = 0

    def describe(self) -> dict[str, Any]:
        """Return the global terms as they are published with the model."""
        s, c = self.scalars, self.config
        head = s.head[HEADS:]  # the heads with the session, as they are served
        open_ = s.outcome[:, GATE] * c.paths.confounder
        told = 1 + max(np.flatnonzero(s.place[:, T_INFO]), default=0)
        return {
            "exposure_factors": c.exposure_factors + c.session_factors,
            "session_factors": c.session_factors,
            "rows": {kind: list(shape) for kind, shape in self.shapes().items()},
            "max_links": c.max_links,
            "rates": {
                "user_bias": c.lr_user_bias,
                "item_bias": c.lr_item_bias,
                "user_factor": c.lr_user_factor,
                "item_factor": c.lr_item_factor,
                "start_bias": c.start_bias,
                "start_factor": c.start_factor,
            },
            "kappa": (s.outcome[:, SLOPE] * c.paths.popularity).tolist(),
            "popularity_mean": s.outcome[:, Q_MEAN].tolist(),
            "alpha": (s.outcome[:, SLOPE + 1] * open_).tolist(),
            "alpha0": ((s.outcome[:, SLOPE + 1] + s.withheld[:, CARRIED]) * open_).tolist(),
            "level0": (s.withheld[:, LEVEL] * open_).tolist(),
            "theta": s.place[:told, THETA].tolist(),
            "exposure": {
                "scale": (head[:, SCALE] * (head[:, EXPOSED] > 0)).tolist(),
                "shift": (
                    head[:, SHIFT] + np.log(np.maximum(head[:, SHARE] * c.pairs, 1e-30))
                ).tolist(),
                "clip": c.clip,
            },
            "controls": int(s.count[CONTROLS]),
            "globals": self.globals().tolist(),
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs, with used rows only."""
        state: dict[str, NDArray[Any]] = {
            "shape": self._shape(),
            "now_s": np.array([self._now_s]),
            "user.history": np.array(self.history[: self.user.used]),
        }
        state |= {f"feature.{k}": v for k, v in self.features.state().items()}
        state |= self.scalars.state() | self._past.state()
        for kind, links in self.links.items():
            used = self.table(kind).used  # type: ignore[arg-type]
            state |= {f"{kind}.{k}": v for k, v in links.state(used).items()}
        for name, table in self._tables():
            state[f"{name}.rows"] = table.state()
        state |= self._living.state()
        return state | (self._imagined.state(self.user.used) if self._imagined else {})

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Replace everything by a saved state, so that learning continues as if never stopped."""
        if not np.array_equal(state["shape"], self._shape()):
            raise Inconsistent(
                "the saved model has another shape or seed than the configuration: "
                f"{state['shape'].tolist()} against {self._shape().tolist()} "
                "(version, factors, exposure factors, session factors, outcomes, links, history, "
                "seed, averages)",
                "restore the settings it was saved with, or start with an empty snapshot folder",
            )
        self._check_room(state)
        self.history[: self.user.used] = 0
        self.history[: len(state["user.history"])] = state["user.history"]
        if self._imagined:
            self._imagined.load(state, self.user.used)
        for kind, links in self.links.items():
            named = {k: state[f"{kind}.{k}"] for k in ("links", "values")}
            links.load(named, self.table(kind).used)  # type: ignore[arg-type]
        for name, table in self._tables():
            table.load(state[f"{name}.rows"])
        made = state["feature.rows"][:, self.feature.layout.vector_sum] != 0
        self._values = set(np.flatnonzero(made).tolist())
        self._now_s = int(state["now_s"][0])
        self.features.load({k: state[f"feature.{k}"] for k in ("names", "lengths", "moments")})
        self.scalars.load(dict(state))
        self._past.load(state)
        self._living.load(state)

    def warm_up(self) -> None:
        """Compile every kernel on a small model, so that the first event need not wait for it."""
        small = replace(self.config, max_users=8, max_items=8, max_features=64, replay_rows=8)
        other = Learner(small, self.seed)
        other.set_attributes("user", 0, {"a": "b"})
        one = np.zeros(1, np.int32)
        other.step(
            ratings(
                one, one, one.astype(np.int8), one.astype(np.float32), one, one.astype(np.uint64)
            )
        )
        other.replay(1)
        other.served_rows("user", one)

    def _tables(self) -> tuple[tuple[str, RowTable], ...]:
        return (("user", self.user), ("item", self.item), ("feature", self.feature))

    def _shape(self) -> NDArray[np.int64]:
        c = self.config
        return np.array(
            [VERSION, c.factors, c.exposure_factors, c.session_factors, len(c.outcomes),
             c.max_links, c.history, self.seed, c.average > 0], np.int64,
        )  # fmt: skip

    def _check_room(self, state: Mapping[str, NDArray[Any]]) -> None:
        for name, table in self._tables():
            if len(state[f"{name}.rows"]) > table.rows:
                raise self._full(name, table.rows)

    def _full(self, name: str, rows: int) -> Inconsistent:
        """Return the error for a table that is too small."""
        return Inconsistent(
            f"the model has room for {rows} {name}s, but more are needed",
            f"raise COUNTERFLOW_MODEL__MAX_{name.upper()}S; memory is committed only when used",
        )

    def _admit(self, kind: EntityKind, rows: NDArray[np.int32]) -> None:
        """Make the rows usable; raise Inconsistent if the table is too small."""
        if not len(rows):
            return
        table, top = self.table(kind), int(rows.max())
        if top >= table.rows:
            raise self._full(kind, table.rows)
        table.touch(top + 1)

    def _ensure(self, table: RowTable, rows: NDArray[np.int32], salt: int) -> None:
        """Create those of the rows that do not exist yet."""
        self.driver.ensure(table, rows, salt, np.uint64(self.seed), self._start[salt])

    def _draw(self, batch: Batch) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Return the uniform items (B, P) and the touched rows, and create those that are new."""
        n = len(batch)
        self._admit("user", batch.user)
        self._admit("item", np.maximum(batch.item, batch.known_items - 1))
        pair = np.empty((n, self._at.pairs), np.int32)
        users, items = np.empty(n, np.int32), np.empty(n, np.int32)
        living = self._living
        sum_half_life = SamplingState(
            self.history,
            living.rows,
            living.list_index,
            living.size,
            self._mark_user,
            self._mark_item,
        )
        drawn = Drawn(
            batch.user, batch.item, batch.known_items, batch.key, batch.role, batch.counts
        )
        nu, ni = draw(drawn, sum_half_life, Touched(pair, users, items))
        users, items = np.sort(users[:nu]), np.sort(items[:ni])
        self._ensure(self.user, users, USER)
        self._ensure(self.item, items, ITEM)
        paired = pair[pair >= 0]
        self._ensure(self.item, paired, ITEM)
        self._dirty[paired] = 1
        self._dirty[items] = 0
        return pair, users, items
