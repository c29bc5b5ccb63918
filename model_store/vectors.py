"""Writing the vector cache in Redis, so that an outdated trainer cannot overwrite newer values.

Every value begins with its writer's stamp, (epoch, sequence), and scripts compare stamps before
they write. So a trainer that was believed dead cannot replace a newer value, nor bring back an
erased one: erasing leaves a tombstone, which is a stamp alone. A writer whose claim was overtaken
by another writes nothing more and gets an error. Every key has a TTL, so what no trainer rewrites
expires. docs/redis.md lists the keys.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import orjson
import redis

from model_store import scripts
from model_store.codec import KINDS, RowKind, body, pack_ids, unpack
from model_store.keys import GENERATION, Space, escaped, keys, named
from model_store.seen import SeenItems
from model_store.wire import bulk, command, connect, mapped, send
from stream.errors import Inconsistent, servable

__all__ = ["CHUNK", "GENERATION", "Named", "RedisVectors", "connect", "escaped", "keys", "mapped"]

# Rows per script call, which blocks Redis for 2 ms. Lua passes at most 8,000 arguments, so this
# must stay below 3,900.
CHUNK: Final = 1024
LOG_ENTRIES: Final = 4096  # one per write; a follower further behind loads all items again
ID_MAX: Final = 256  # bytes, as in the wire format

Named = tuple[Sequence[bytes], Sequence[bytes]]  # ids, each once, and their values

_SCRIPTS: Final = (scripts.WRITE, scripts.SEEN, scripts.LOG, scripts.HOLD)
_WRITE_SHA: Final = scripts.sha(scripts.WRITE)
_LOG_SHA: Final = scripts.sha(scripts.LOG)
_HOLD_SHA: Final = scripts.sha(scripts.HOLD)
ONE_A_PREFIX: Final = (
    "run one trainer per redis.prefix: stop the other one and start again, or give this one a"
    " prefix and a snapshots.dir of its own"
)
_STAMPED: Final[tuple[Space, ...]] = (*KINDS, "meta")
_EXPORTED: Final[tuple[RowKind, ...]] = ("user", "item")
_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


class RedisVectors:
    """Writes rows, titles, global terms, the change log and the live pointer.

    Parameters
    ----------
    client : redis.Redis
        A client that returns bytes (`connect`).
    prefix : str
        First part of every key.
    ttl_s : int
        Lifetime of the values in seconds.
    log_entries : int
        Approximate length to which the change log is trimmed.
    chunk : int
        Rows per script call, 1 to 2,048.
    rank, world : int
        This trainer's number among those that share the stream; stored in its claim.
    """

    def __init__(
        self,
        client: redis.Redis,
        prefix: str = "cf",
        ttl_s: int = 86_400,
        log_entries: int = LOG_ENTRIES,
        chunk: int = CHUNK,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if client.get_encoder().decode_responses:
            raise Inconsistent(
                "the Redis client decodes responses, but rows are bytes",
                "create the client with decode_responses=False",
            )
        if not 1 <= chunk <= 2048:
            raise Inconsistent(
                f"chunk = {chunk} rows per script call is out of range", "choose 1 to 2,048"
            )
        self._client: Any = client  # the package's types mix sync and async results
        self._prefix = prefix
        self._ttl_s = ttl_s
        self._ttl = b"%d" % ttl_s
        self._log_entries = log_entries
        self._chunk = chunk
        self.epoch = 0
        self.lost = False  # live pointer or claim were missing at a write: Redis has lost data
        self._who = f"{secrets.token_hex(8)} {rank}/{world}"
        self._claim = b""  # our claim as stored in Redis; empty before the first
        self._log, self._globals = named(prefix, "log"), named(prefix, "globals")
        self._model = named(prefix, "model")
        self._live, self._epoch_key = f"{prefix}:live".encode(), f"{prefix}:epoch".encode()
        self._writer = f"{prefix}:writer".encode()
        self._seen = SeenItems(client, prefix, ttl_s)
        self._heads: dict[Space, list[bytes]] = {
            space: [
                b"\r\n$%d\r\n%s" % (len(head) + size, head)
                for head in keys(prefix, space, [b""])
                for size in range(ID_MAX + 1)
            ]
            for space in _STAMPED
        }

    def claim_epoch(self, at_least: int) -> int:
        """Become the writer and return the new epoch; the previous writer fails at its next write.

        The epoch is above `at_least` and above every epoch of a row that can still be in Redis: the
        keys of epoch and claim expire only after two TTLs without a write.

        Raises
        ------
        Inconsistent
            If another rank of the same world writes under this prefix.
        """
        with mapped():
            told = self._client.eval(
                scripts.CLAIM, 2, self._epoch_key, self._writer,
                at_least, 2 * self._ttl_s, self._who,
            )  # fmt: skip
        if isinstance(told, bytes):
            raise Inconsistent(
                f"the trainer of rank {_rank(told)} writes under the Redis prefix {self._prefix}",
                "give each rank a redis.prefix and a snapshots.dir of its own; if that trainer is"
                f" gone for good: redis-cli DEL {self._writer.decode()}",
            )
        self.epoch = int(told)
        self._claim = f"{self.epoch} {self._who}".encode()
        return self.epoch

    def publish_model(self, model: Mapping[str, Any]) -> None:
        """Publish the model's description unless one of a higher `epoch` is stored."""
        with servable("the model's description"):
            said = orjson.dumps(dict(model), option=orjson.OPT_SERIALIZE_NUMPY)
        with mapped():
            told = self._client.eval(
                scripts.DESCRIBE, 2, self._model, self._writer,
                self._ttl_s, said, self._claim,
            )  # fmt: skip
        if told < 0:
            raise self._overtaken(told)

    def set_live(self) -> None:
        """Point the live pointer to this generation."""
        with mapped():
            self._client.set(self._live, GENERATION, ex=self._ttl_s)
        self.lost = False

    def write(
        self,
        stamp: bytes,
        rows: Mapping[RowKind, Named] = _NOTHING,
        *,
        meta: Mapping[bytes, bytes] = _NOTHING,
        globals_: bytes = b"",
        unseen: Sequence[bytes] = (),
        then: Sequence[bytes] = (),
        keep: bool = False,
    ) -> int:
        """Write all of a change in one round trip, except where newer values are stored.

        After Unavailable some of it may be written: repeat the same write.

        Parameters
        ----------
        stamp : bytes
            Stamp of all values.
        rows : mapping
            Kind -> (ids, packed rows of this stamp, or the stamp alone to erase).
        meta : mapping
            Item id -> JSON of title and attributes, empty to erase.
        globals_ : bytes
            The global terms, float32, shape (O,); empty to leave them.
        unseen : sequence of bytes
            Users whose seen lists are deleted.
        then : sequence of bytes
            Further commands, from `Seen.commands`.
        keep : bool
            Leave tombstones as they are.

        Returns
        -------
        int
            The number of rows written.

        Raises
        ------
        Inconsistent
            If another writer has overtaken this one's claim.
        """
        longer = b"%d" % (2 * self._ttl_s)
        commands = [command(b"EVALSHA", _HOLD_SHA, b"1", self._writer, self._claim, longer)]
        with servable("a change"):
            for kind, (some, payloads) in rows.items():
                commands += self._guarded(kind, some, payloads, keep)
            counted = len(commands)
            titles = [stamp + value for value in meta.values()]
            commands += self._guarded("meta", list(meta), titles, keep)
        if globals_:
            globals_ = stamp + globals_
            told = (b"2", self._globals, self._writer, self._ttl, self._claim, globals_)
            commands.append(command(b"EVALSHA", _WRITE_SHA, *told))
        guarded = len(commands)
        commands += self._seen.commands("drop", dict.fromkeys(unseen, b""), stamp)
        commands += then
        items = rows["item"][0] if "item" in rows else ()
        if items or meta or globals_:
            ids = (b"i", pack_ids(items), b"m", pack_ids(list(meta)))
            commands.append(self._entry(*ids, b"g", globals_))
        commands += self._touch()
        held, *replies, live, _epoch = send(self._client, commands, _SCRIPTS)
        if (refused := min([held, *replies[: guarded - 1]])) < 0:
            raise self._overtaken(refused)
        self.lost = self.lost or not live or not held
        return sum(int(reply) for reply in replies[: counted - 1])

    def _overtaken(self, answer: int) -> Inconsistent:
        """Return the error for a refused write; raise the stored epoch for the next claim."""
        said = f"another trainer has taken over the Redis prefix {self._prefix}"
        with mapped():
            if answer < -1:
                newer = -2 - answer
                self._client.eval(scripts.ABOVE, 1, self._epoch_key, newer, 2 * self._ttl_s)
                return Inconsistent(
                    f"{said}: a stored value is newer (epoch {newer}) than the one to be written"
                    f" (epoch {self.epoch})",
                    ONE_A_PREFIX,
                )
            claim = self._client.get(self._writer) or b"0 - 0/1"
        epoch = int(claim.split()[0])
        return Inconsistent(
            f"{said}: rank {_rank(claim)}, epoch {epoch}; ours was {self.epoch}", ONE_A_PREFIX
        )

    def export(self) -> Iterator[dict[str, Any]]:
        """Yield each user and item row once, as `vectors export` prints it."""
        for kind in _EXPORTED:
            head = keys(self._prefix, kind, [b""])[0]
            found: set[bytes] = set()
            cursor = -1
            while cursor != 0:
                with mapped():
                    cursor, names = self._client.scan(
                        max(cursor, 0), match=escaped(head) + b"*", count=1000
                    )
                    fresh = [key for key in dict.fromkeys(names) if key not in found]
                    rows = self._client.mget(fresh) if fresh else []
                found.update(fresh)  # SCAN may name a key twice
                for key, payload in zip(fresh, rows, strict=True):
                    if body(payload) is not None:
                        yield _exported(key[len(head) :], payload)

    def _guarded(
        self, space: Space, ids: Sequence[bytes], values: Sequence[bytes], keep: bool
    ) -> Iterator[bytes]:
        """Yield one script call per chunk, encoded here because redis-py's encoding is slow."""
        if len(ids) != len(values):
            raise Inconsistent(f"{len(ids)} ids for {len(values)} values of {space}")
        heads, ttl = self._heads[space], bulk(self._ttl)
        for start in range(0, len(ids), self._chunk):
            some, rows = ids[start : start + self._chunk], values[start : start + self._chunk]
            count = len(some)
            if len(set(map(len, rows))) == 1:
                mark = b"\r\n$%d\r\n" % len(rows[0])
                arguments = mark + mark.join(rows)
            else:
                arguments = b"".join([bulk(row) for row in rows])
            head = b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%s" % (2 * count + 6 + keep, _WRITE_SHA)
            names = b"".join([heads[len(i)] + i for i in some])
            told = bulk(b"%d" % (count + 1)), names, bulk(self._writer), ttl, bulk(self._claim)
            end = bulk(b"keep") + b"\r\n" if keep else b"\r\n"
            yield b"".join([head, *told, arguments, end])

    def _entry(self, *fields: bytes) -> bytes:
        """Return the command that appends to the change log and trims it."""
        limit = b"%d" % self._log_entries
        told = (b"2", self._log, self._writer, self._claim, limit)
        return command(b"EVALSHA", _LOG_SHA, *told, *fields)

    def _touch(self) -> list[bytes]:
        """Return the commands that refresh the TTLs of values without a stamp."""
        longer = b"%d" % (2 * self._ttl_s)
        return [
            *(command(b"EXPIRE", key, self._ttl) for key in (self._log, self._model, self._live)),
            command(b"EXPIRE", self._epoch_key, longer),
        ]


def _rank(claim: bytes) -> str:
    """Return "0 of 1" for a claim that ends in "0/1"."""
    return claim.rpartition(b" ")[2].decode(errors="replace").replace("/", " of ")


def _exported(key: bytes, payload: bytes) -> dict[str, Any]:
    """Return a row as a JSON-serialisable dictionary."""
    row = unpack(payload)
    return {
        "kind": row.kind,
        "id": key.decode(errors="replace"),
        "events": row.events,
        "exposures": row.exposures,
        "controls": row.controls,
        "epoch": row.epoch,
        "sequence": row.sequence,
        "bias": row.bias.tolist(),
        "vector": row.vector.tolist(),
    }
