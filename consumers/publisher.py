"""Publishing the engine's state to Redis, each change in one round trip.

A change is what one poll touched: rows, titles, seen items and removals. All of it carries one
stamp (epoch, sequence), so that a late write of an old trainer loses to it, part by part.

Removed ids leave tombstones. Only a poll with an event of the id's own replaces a tombstone; rows
that are rewritten, or that moved through events of others, do not. So a trainer that restarts from
a snapshot before the removal does not bring the id back.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from model_store import codec
from model_store.codec import RowKind
from model_store.seen import SeenItems, group, latest
from model_store.vectors import Named, RedisVectors
from stream.engine import Engine, Learned
from stream.errors import Unservable, servable
from stream.model.learner import Rows as ServedRows
from stream.vocabulary import Vocabulary

Rows = NDArray[np.int32]

REFRESH_ROWS = 4_096  # rows of one background write: about 10 ms of Redis' time
Served = Literal["user", "item"]
SERVED: tuple[Served, ...] = ("user", "item")


class Publisher:
    """Reads the engine and writes its rows to the cache.

    Parameters
    ----------
    model : dict
        Additional fields of the published model description.
    hold : callable
        Runs a write and retries it until Redis accepts it.
    ttl_s : int
        Lifetime of the rows, in seconds.
    """

    def __init__(
        self,
        engine: Engine,
        vectors: RedisVectors,
        seen: SeenItems | None,
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
        self._packed: list[bytes] = []  # item ids by row, packed as in the seen lists
        self._refresh_at: dict[Served, int] = dict.fromkeys(SERVED, 0)
        self._value = 0  # the next attribute value to write

    def everything(self, epoch: int) -> None:
        """Write the whole model, including titles and seen items, under this epoch."""
        self.epoch = epoch
        self.describe()
        for kind in SERVED:
            size = len(self._vocabulary(kind))
            for begin in range(0, size, REFRESH_ROWS):
                self._again(kind, np.arange(begin, min(begin + REFRESH_ROWS, size), dtype=np.int32))
        self._all_values()
        self._hold(self._vectors.set_live)

    def refresh(self, elapsed_s: float) -> None:
        """Rewrite a share of the rows, so that none gets older than a quarter of its TTL.

        Also writes attribute values and items that changed without an event of their own, at most
        `REFRESH_ROWS` of each.
        """
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

    def drain(self) -> None:
        """Write every row that has changed and is not written yet."""
        self._all_values()
        while len(items := self._engine.learner.take_dirty(REFRESH_ROWS)):
            self.moved(np.empty(0, np.int32), items)
        self.describe()

    def moved(self, users: Rows, items: Rows) -> None:
        """Write these rows as learned; titles and seen items have not changed."""
        stamp = self._stamp()
        self._write(stamp, {"user": self._rows("user", users), "item": self._rows("item", items)})

    def change(self, learned: Learned) -> Callable[[], object]:
        """Return a function that writes a poll's changes and removals to Redis.

        The function holds copies of all it writes, so the engine may go on learning; it may be
        called repeatedly.
        """
        stamp = self._stamp()
        rows: dict[RowKind, Named] = {
            "user": self._rows("user", learned.users),
            "item": self._rows("item", learned.items),
        }
        removed: dict[str, dict[bytes, None]] = {kind: {} for kind in SERVED}
        told: dict[bytes, bytes] = {}
        for event in learned.attributes:
            if event.attributes is None:
                removed[event.kind][event.id.encode()] = None
            if event.kind == "item":
                told[event.id.encode()] = b""  # erases the title unless the catalog has an entry
        for kind, (ids, payloads) in rows.items():
            if removed[kind]:
                back = set(ids)  # learned again after the removal, in the same poll
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
        """Publish the model's description, which the service answers `/v1/model` from."""
        model = self._said()
        self._hold(lambda: self._vectors.publish_model(model))

    def check(self) -> None:
        """Raise Unservable if anything that is yet to be published cannot be."""
        with servable("the model's description"):
            orjson.dumps(self._said(), option=orjson.OPT_SERIALIZE_NUMPY)
        learner = self._engine.learner
        values = learner.feature_rows(np.arange(len(learner.features), dtype=np.int32))
        if not (np.isfinite(values.bias).all() and np.isfinite(values.vector).all()):
            raise Unservable(
                "an attribute value's row is not finite", "see the log for the record behind it"
            )
        self._rows("item", learner.dirty())

    def went_back(self) -> None:
        """Forget the packed item ids: after a restore, rows may belong to other ids."""
        self._packed = []

    def _said(self) -> dict[str, Any]:
        """Return the model's description."""
        with servable("the model's description"):
            return self._model | self._engine.model() | {"epoch": self.epoch}

    def _again(self, kind: Served, rows: Rows) -> None:
        """Rewrite these rows with their titles or seen items."""
        stamp = self._stamp()
        named = self._rows(kind, rows)
        if kind == "item":
            self._write(stamp, {kind: named}, meta=self._titles(rows))
        else:
            self._write(stamp, {kind: named}, then=self._restored(rows, stamp))

    def _write(self, stamp: bytes, rows: Mapping[RowKind, Named], **more: Any) -> None:
        """Write rows of known ids; tombstones are kept."""
        if _some(rows) or any(more.values()):
            globals_ = self._globals()
            self._hold(
                lambda: self._vectors.write(stamp, rows, globals_=globals_, keep=True, **more)
            )

    def _globals(self) -> bytes:
        return self._engine.learner.globals().astype("<f4").tobytes()

    def _stamp(self) -> bytes:
        """Return the next stamp."""
        self.sequence += 1
        return codec.stamp(self.epoch, self.sequence)

    def _rows(self, kind: Served, rows: Rows) -> Named:
        """Return ids and packed rows; removed ids are left out, as they would return as zeros."""
        learner = self._engine.learner
        rows = rows[learner.exist(kind, rows)]
        return self._vocabulary(kind).ids(rows), self._packed_rows(
            kind, learner.served_rows(kind, rows)
        )

    def _packed_rows(self, kind: RowKind, columns: ServedRows) -> list[bytes]:
        """Return the rows in Redis' layout under the newest stamp."""
        return codec.pack(
            kind,
            self.epoch, self.sequence, columns.events, columns.exposures, columns.controls,
            columns.bias, columns.vector,
        )  # fmt: skip

    def _all_values(self) -> None:
        """Write every attribute value."""
        cursor = self._values(0)
        while cursor:
            cursor = self._values(cursor)

    def _values(self, begin: int) -> int:
        """Write the attribute values from `begin` on; return where to continue, 0 at the end."""
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
        """Return the catalog's JSON entries of those items that have one, by id."""
        rows, entries = self._engine.catalog.of(items)
        return dict(zip(self._engine.items.ids(rows), entries, strict=True))

    def _marking(
        self, learned: Learned, left: list[bytes], stamp: bytes
    ) -> Callable[[], list[bytes]]:
        """Return a function that makes the commands which add learned items to the seen lists.

        Lists of removed users are restored from the learner's history instead.
        """
        seen = self._seen
        if seen is None or not learned.learned:
            return list
        again = [row for row in map(self._engine.users.find, left) if row is not None]
        stays = ~np.isin(learned.user, again) if again else slice(None)
        user, item = learned.user[stays], learned.item[stays]
        returned = self._restored(np.array(again, np.int32), stamp)
        items, users = self._items(), self._engine.users  # both are append-only

        def marks() -> list[bytes]:
            rows, packed = group(user, item, items)
            named = dict(zip(users.ids(rows), packed, strict=True))
            return [*seen.commands("add", named, stamp), *returned]

        return marks

    def _restored(self, users: Rows, stamp: bytes) -> list[bytes]:
        """Return the commands that restore the users' seen lists from the learner's history."""
        if self._seen is None or not len(users):
            return []
        history = np.array(self._engine.learner.history[users], np.int32)
        history[:, 1:][self._engine.learner.removed(history[:, 1:])] = -1
        packed = latest(history, self._items(), self._seen.bytes)
        ids = self._engine.users.ids(users)
        held = {user: items for user, items in zip(ids, packed, strict=True) if items}
        return self._seen.commands("restore", held, stamp)

    def _items(self) -> list[bytes]:
        """Return all packed item ids, by row."""
        new = np.arange(len(self._packed), len(self._engine.items), dtype=np.int32)
        self._packed += [codec.pack_ids([id_]) for id_ in self._engine.items.ids(new)]
        return self._packed

    def _vocabulary(self, kind: Served) -> Vocabulary:
        return self._engine.users if kind == "user" else self._engine.items


def _some(rows: Mapping[RowKind, Named]) -> bool:
    """Return whether there is any row to write."""
    return any(ids for ids, _ in rows.values())
