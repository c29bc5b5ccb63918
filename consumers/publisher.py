"""What has been published of the engine, and how it stays true: each change in one round trip.

A change is what one poll touched: rows, titles, seen items, removals. All of it goes under one
(epoch, sequence), so that an old trainer's late write loses to it, part by part. What is written
again, or moved by others' events, leaves tombstones where they stand: an id is brought back by the
poll that has an event of its own, and not by a trainer that starts from before its removal.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from model_store import codec
from model_store.codec import Kind
from model_store.seen import Seen, group, latest
from model_store.vectors import Named, RedisVectors
from stream.engine import Engine, Learned
from stream.errors import Unservable, servable
from stream.model.learner import Rows as ServedRows
from stream.vocabulary import Vocabulary

Rows = NDArray[np.int32]

REFRESH_ROWS = 4_096  # rows of one write that nobody waits for: ~10 ms of Redis' time
Served = Literal["user", "item"]
SERVED: tuple[Served, ...] = ("user", "item")


class Publisher:
    """Reads the engine, writes the cache; `hold` runs an action until Redis has taken it."""

    def __init__(
        self,
        engine: Engine,
        vectors: RedisVectors,
        seen: Seen | None,
        model: dict[str, Any],
        hold: Callable[[Callable[[], Any]], Any],
        ttl_s: int,
    ) -> None:
        self.epoch = 0
        self.sequence = 0
        self._engine = engine
        self._vectors = vectors
        self._seen = seen
        self._model = model
        self._hold = hold
        self._ttl_s = ttl_s
        self._packed: list[bytes] = []  # by item row, as the seen lists hold it
        self._refresh_at: dict[Served, int] = dict.fromkeys(SERVED, 0)
        self._value = 0  # the attribute value that is written next

    def everything(self, epoch: int) -> None:
        """Redis holds the whole model under this epoch after the call, seen items included."""
        self.epoch = epoch
        self.describe()
        for kind in SERVED:
            size = len(self._vocabulary(kind))
            for begin in range(0, size, REFRESH_ROWS):
                self._again(kind, np.arange(begin, min(begin + REFRESH_ROWS, size), dtype=np.int32))
        self._all_values()
        self._hold(self._vectors.set_live)

    def refresh(self, elapsed_s: float) -> None:
        """The share of the rows that keeps each one younger than a quarter of its TTL is new."""
        self.describe()
        for kind in SERVED:
            size = len(self._vocabulary(kind))
            if size:
                share = min(size, REFRESH_ROWS, 1 + int(size * elapsed_s / (self._ttl_s / 4)))
                begin = self._refresh_at[kind]
                self._refresh_at[kind] = (begin + share) % size
                self._again(kind, np.unique((begin + np.arange(share)) % size).astype(np.int32))
        self._value = self._values(self._value)
        self.moved(np.empty(0, np.int32), self._engine.learner.take_dirty(REFRESH_ROWS))

    def settle(self) -> None:
        """Redis holds all that was learned after the call: nothing waits for its turn."""
        self._all_values()
        while len(items := self._engine.learner.take_dirty(REFRESH_ROWS)):
            self.moved(np.empty(0, np.int32), items)
        self.describe()

    def moved(self, users: Rows, items: Rows) -> None:
        """These rows are in Redis as learned; nothing else about them has changed."""
        stamp = self._stamp()
        self._write(stamp, {"user": self._rows("user", users), "item": self._rows("item", items)})

    def change(self, learned: Learned) -> Callable[[], object]:
        """Return what writes the poll's change to Redis, and takes out what it removed.

        It holds all that it writes, so the engine may go on learning; it may be called again.
        """
        stamp = self._stamp()
        rows: dict[Kind, Named] = {
            "user": self._rows("user", learned.users),
            "item": self._rows("item", learned.items),
        }
        removed: dict[str, dict[bytes, None]] = {kind: {} for kind in SERVED}
        told: dict[bytes, bytes] = {}
        for event in learned.attributes:
            if event.attributes is None:
                removed[event.kind][event.id.encode()] = None
            if event.kind == "item":
                told[event.id.encode()] = b""  # erased, unless the catalog has an entry
        for kind, (ids, payloads) in rows.items():
            if removed[kind]:
                back = set(ids)  # since the removal, in the same poll
                gone = [id_ for id_ in removed[kind] if id_ not in back]
                rows[kind] = [*ids, *gone], [*payloads, *[stamp] * len(gone)]
        found = [row for row in map(self._engine.items.find, told) if row is not None]
        told |= self._titles(np.array(found, np.int32))
        left = list(removed["user"])
        if not (_some(rows) or told or left or learned.learned):
            return lambda: None
        globals_, marks = self._globals(), self._marking(learned, left, stamp)

        def write() -> object:
            with servable("what users have seen"):
                then = marks()
            return self._vectors.write(
                stamp, rows, globals_=globals_, meta=told, unseen=left, then=then
            )

        return write

    def describe(self) -> None:
        """The servers can read what the model is after the call."""
        model = self._said()
        self._hold(lambda: self._vectors.publish_model(model))

    def check(self) -> None:
        """All that waits to be published has a form in which it can be, else Unservable."""
        with servable("the model's description"):
            orjson.dumps(self._said(), option=orjson.OPT_SERIALIZE_NUMPY)
        learner = self._engine.learner
        values = learner.feature_rows(np.arange(len(learner.features), dtype=np.int32))
        if not (np.isfinite(values.bias).all() and np.isfinite(values.vector).all()):
            raise Unservable("an attribute value's row is not finite", "look into the log")
        self._rows("item", learner.dirty())

    def went_back(self) -> None:
        """The engine is as it was before: ids may have come to other rows since."""
        self._packed = []

    def _said(self) -> dict[str, Any]:
        with servable("the model's description"):
            return self._model | self._engine.model() | {"epoch": self.epoch}

    def _again(self, kind: Served, rows: Rows) -> None:
        """These rows, and what hangs on them, stand as if they had just changed."""
        stamp = self._stamp()
        named = self._rows(kind, rows)
        if kind == "item":
            self._write(stamp, {kind: named}, meta=self._titles(rows))
        else:
            self._write(stamp, {kind: named}, then=self._restored(rows, stamp))

    def _write(self, stamp: bytes, rows: Mapping[Kind, Named], **more: Any) -> None:
        if _some(rows) or any(more.values()):
            globals_ = self._globals()
            self._hold(
                lambda: self._vectors.write(stamp, rows, globals_=globals_, keep=True, **more)
            )

    def _globals(self) -> bytes:
        return self._engine.learner.globals().astype("<f4").tobytes()

    def _stamp(self) -> bytes:
        self.sequence += 1
        return codec.stamp(self.epoch, self.sequence)

    def _rows(self, kind: Served, rows: Rows) -> Named:
        """The ids and packed rows of those that exist: a removed one must not return as zeros."""
        learner = self._engine.learner
        rows = rows[learner.exist(kind, rows)]
        return self._vocabulary(kind).ids(rows), self._packed_rows(kind, learner.rows(kind, rows))

    def _packed_rows(self, kind: Kind, columns: ServedRows) -> list[bytes]:
        """The rows as Redis holds them, under the newest stamp."""
        return codec.pack(
            kind,
            self.epoch, self.sequence, columns.events, columns.exposures, columns.controls,
            columns.bias, columns.vector,
        )  # fmt: skip

    def _all_values(self) -> None:
        """Every attribute value is as learned in Redis after the call."""
        place = self._values(0)
        while place:
            place = self._values(place)

    def _values(self, begin: int) -> int:
        """Attribute values from this one on are as learned in Redis; returns the next to write."""
        learner = self._engine.learner
        names = list(islice(learner.features.row, begin, begin + REFRESH_ROWS))
        if not names:
            return 0
        stamp = self._stamp()
        rows = np.arange(begin, begin + len(names), dtype=np.int32)
        packed = self._packed_rows("feature", learner.feature_rows(rows))
        ids = [name.encode(errors="surrogatepass") for name in names]
        self._write(stamp, {"feature": (ids, packed)})
        return begin + len(names)

    def _titles(self, items: Rows) -> dict[bytes, bytes]:
        """JSON of those of the items that have any."""
        rows, entries = self._engine.catalog.of(items)
        return dict(zip(self._engine.items.ids(rows), entries, strict=True))

    def _marking(
        self, learned: Learned, left: list[bytes], stamp: bytes
    ) -> Callable[[], list[bytes]]:
        """Return what makes the commands by which what was learned leaves its users' lists."""
        seen = self._seen
        if seen is None or not learned.learned:
            return list
        again = [row for row in map(self._engine.users.find, left) if row is not None]
        stays = ~np.isin(learned.user, again) if again else slice(None)
        user, item = learned.user[stays], learned.item[stays]
        returned = self._restored(np.array(again, np.int32), stamp)
        items, users = self._items(), self._engine.users  # both only ever grow

        def marks() -> list[bytes]:
            rows, packed = group(user, item, items)
            named = dict(zip(users.ids(rows), packed, strict=True))
            return [*seen.commands("add", named, stamp), *returned]

        return marks

    def _restored(self, users: Rows, stamp: bytes) -> list[bytes]:
        """Commands by which the users' lists hold all that the learner remembers of them."""
        if self._seen is None or not len(users):
            return []
        history = np.array(self._engine.learner.history[users], np.int32)
        history[:, 1:][self._engine.learner.removed(history[:, 1:])] = -1
        packed = latest(history, self._items(), self._seen.bytes)
        ids = self._engine.users.ids(users)
        held = {user: items for user, items in zip(ids, packed, strict=True) if items}
        return self._seen.commands("restore", held, stamp)

    def _items(self) -> list[bytes]:
        """All item ids, packed, by row."""
        new = np.arange(len(self._packed), len(self._engine.items), dtype=np.int32)
        self._packed += [codec.pack_ids([id_]) for id_ in self._engine.items.ids(new)]
        return self._packed

    def _vocabulary(self, kind: Served) -> Vocabulary:
        return self._engine.users if kind == "user" else self._engine.items


def _some(rows: Mapping[Kind, Named]) -> bool:
    return any(ids for ids, _ in rows.values())
