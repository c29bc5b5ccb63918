"""The vector cache in Redis: what the trainer writes, and what nobody may overwrite with less.

A row carries (epoch, sequence) in its first twelve bytes; a script compares them before each SET,
so a trainer that was thought dead cannot put an old row over a newer one. Every key has a TTL:
what no trainer rewrites lapses. docs/redis.md lists the keys.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
import orjson
import redis
from redis import exceptions as errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from model_store.codec import KINDS, LAYOUT, Kind, order, pack_ids, unpack
from stream.errors import Inconsistent, Unavailable

Named = TypeVar("Named", bound=str)  # Kind, or str where the caller's mapping says no more

GENERATION: Final = str(LAYOUT)
LETTER: Final[dict[Kind, bytes]] = {"user": b"u", "item": b"i"}
CHUNK: Final = 1024  # rows a script call: 2 ms in which Redis serves nobody else; below 3,900
# because Lua passes at most 8,000 arguments
LOG_ENTRIES: Final = 4096  # of a write each; a follower further behind loads all items again
ID_MAX: Final = 256  # bytes, as the wire format has it

# Numbers, not strings, are compared: Lua orders strings by the server's locale. Three words of 32
# bits each, because a Lua number holds 53 bits. An equal pair is the same writer repeating itself.
# MSETEX (Valkey 9.1, Redis 8.4) makes 455 k rows/s, a SET a row elsewhere 340 k.
WRITE: Final = """
local read = struct.unpack
local ttl = ARGV[1]
local held = redis.call('MGET', unpack(KEYS))
local set, last = {'MSETEX', 0}, 2
for i, key in ipairs(KEYS) do
  local row, old = ARGV[i + 1], held[i]
  local newer = not old or #old < 12
  if not newer then
    local e, h, l = read('>I4I4I4', row)
    local oe, oh, ol = read('>I4I4I4', old)
    newer = e > oe or (e == oe and (h > oh or (h == oh and l >= ol)))
  end
  if newer then
    set[last + 1], set[last + 2] = key, row
    last = last + 2
  end
end
local written = (last - 2) / 2
if written == 0 then return 0 end
set[2], set[last + 1], set[last + 2] = written, 'EX', ttl
local reply = redis.pcall(unpack(set))
if type(reply) == 'table' and reply.err then
  for at = 3, last, 2 do
    redis.call('SET', set[at], set[at + 1], 'EX', ttl)
  end
end
return written
"""
WRITE_SHA: Final = hashlib.sha1(WRITE.encode(), usedforsecurity=False).hexdigest().encode()

CLAIM: Final = """
local epoch = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])) + 1
redis.call('SET', KEYS[1], string.format('%.0f', epoch), 'EX', ARGV[2])
return epoch
"""

_AWAY: Final = (
    errors.ConnectionError,
    errors.TimeoutError,
    errors.ReadOnlyError,
    errors.OutOfMemoryError,
    errors.ClusterDownError,
    errors.TryAgainError,
)
_DENIED: Final = (
    errors.AuthenticationError,
    errors.AuthenticationWrongNumberOfArgsError,
    errors.AuthorizationError,
    errors.NoPermissionError,
)
BAD_URL: Final = "the URL of Redis cannot be read"
URL_REMEDY: Final = "write redis://[user:password@]host:port/db, rediss:// (TLS) or unix:///path"
_PASSING: Final = ("LOADING", "BUSY", "MISCONF", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "OOM")


@contextmanager
def mapped() -> Iterator[None]:
    """Errors of the client leave as Unavailable (try again) or Inconsistent (with the remedy)."""
    try:
        yield
    except _DENIED as exc:
        raise Inconsistent(f"Redis refuses us: {exc}", "check the user and password") from exc
    except (*_AWAY, OSError) as exc:
        raise Unavailable(f"Redis is away: {exc}", 0.5, "check that it runs") from exc
    except errors.RedisError as exc:
        if str(exc).startswith(_PASSING):
            raise Unavailable(f"Redis cannot take it now: {exc}", 0.5) from exc
        raise Inconsistent(
            f"Redis refuses a command: {exc}", "check its version and what else uses the keys"
        ) from exc


def connect(url: str, timeout_s: float = 5.0) -> redis.Redis:
    """A client as `RedisVectors` and `Reader` need it; it connects when it is first used.

    One retry without a pause covers a connection that died while idle; longer absence is the
    caller's to wait for (the default would hold a trainer for seconds unseen).
    """
    try:
        return redis.Redis.from_url(
            url,
            decode_responses=False,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),
        )
    except ValueError as exc:
        raise Inconsistent(BAD_URL, URL_REMEDY) from exc


def keys(prefix: str, kind: Kind, ids: Sequence[bytes]) -> list[bytes]:
    """The keys of these rows: `cf:3:u:7`."""
    head = b"%s:%s:%s:" % (prefix.encode(), GENERATION.encode(), LETTER[kind])
    return [head + i for i in ids]


class RedisVectors:
    """The trainer's side: rows, globals, the change log and the live pointer, all with a TTL."""

    def __init__(
        self,
        client: redis.Redis,
        prefix: str = "cf",
        ttl_s: int = 86_400,
        log_entries: int = LOG_ENTRIES,
        chunk: int = CHUNK,
    ) -> None:
        if client.get_encoder().decode_responses:
            raise Inconsistent("rows are bytes", "make the client with decode_responses=False")
        if not 1 <= chunk <= 2048:
            raise Inconsistent(f"a chunk of {chunk} rows", "1 to 2,048 fit into a script call")
        self._client: Any = client  # the package's command types cover sync and async at once
        self._prefix = prefix
        self._ttl_s = ttl_s
        self._log_entries = log_entries
        self._chunk = chunk
        self.epoch = 0
        self.lost = False  # the live pointer was gone at a write: Redis forgot all of it
        base = f"{prefix}:{GENERATION}".encode()
        self._log, self._globals, self._model = base + b":log", base + b":globals", base + b":model"
        self._meta, self._seen = base + b":meta:", base + b":s:"  # s: see seen.py
        self._live, self._epoch_key = f"{prefix}:live".encode(), f"{prefix}:epoch".encode()
        self._heads: dict[Kind, list[bytes]] = {
            kind: [
                b"\r\n$%d\r\n%s" % (len(head) + size, head)
                for head in keys(prefix, kind, [b""])
                for size in range(ID_MAX + 1)
            ]
            for kind in KINDS
        }

    def claim_epoch(self, at_least: int) -> int:
        """The epoch is above `at_least` and above every one claimed here while its rows can live.

        The key lapses after two TTLs without a write, when no row written under it can be left.
        """
        with mapped():
            epoch = int(
                self._client.eval(CLAIM, 1, self._epoch_key, at_least, 2 * self._ttl_s),
            )
        self.epoch = epoch
        return epoch

    def publish_model(self, model: Mapping[str, Any]) -> None:
        """The servers can read what the model is: outcomes, links, factors, when it learned."""
        with mapped():
            self._client.set(self._model, orjson.dumps(dict(model)), ex=self._ttl_s)

    def set_live(self) -> None:
        """The live pointer names this generation."""
        with mapped():
            self._client.set(self._live, GENERATION, ex=self._ttl_s)
        self.lost = False

    def write(
        self,
        ids: Mapping[Named, Sequence[bytes]],
        payloads: Mapping[Named, Sequence[bytes]],
        globals_: bytes = b"",
    ) -> int:
        """Each row stands unless a newer one did; returns how many were written.

        Both are keyed by KINDS; the ids of a kind are unique. One round trip: the rows, then the
        globals (float32, (O,)), then the log entry that tells followers, in this order. On
        Unavailable some may stand: write the same rows again.
        """
        if ids.keys() != payloads.keys() or not ids.keys() <= set(KINDS):
            raise Inconsistent(f"ids of {list(ids)} for rows of {list(payloads)}")
        commands, items = [], cast("Mapping[str, Sequence[bytes]]", ids).get("item", ())
        for name in ids:
            commands += self._row_commands(cast(Kind, name), ids[name], payloads[name])
        scripts = len(commands)
        if globals_:
            commands.append(_command(b"SET", self._globals, globals_, b"EX", b"%d" % self._ttl_s))
        if globals_ or items:
            commands.append(self._entry(b"i", pack_ids(items), b"g", globals_))
        commands += self._touch()
        replies = self._send(commands)
        *_, live, _epoch = replies
        self.lost = self.lost or not live
        return sum(int(reply) for reply in replies[:scripts])

    def put_meta(self, meta: Mapping[bytes, bytes]) -> None:
        """Titles and attributes (JSON bytes) of these items stand, and followers are told."""
        if not meta:
            return
        ttl = b"%d" % self._ttl_s
        commands = [
            _command(b"SET", self._meta + i, value, b"EX", ttl) for i, value in meta.items()
        ]
        self._send([*commands, self._entry(b"m", pack_ids(list(meta))), *self._touch()])

    def erase(self, kind: Kind, ids: Sequence[bytes]) -> int:
        """What stood under these ids is gone, and followers know; returns how many rows stood."""
        if not ids:
            return 0
        commands = [_command(b"DEL", key) for key in keys(self._prefix, kind, ids)]
        if kind == "item":
            commands += [_command(b"DEL", self._meta + i) for i in ids]
            commands.append(self._entry(b"i", pack_ids(ids), b"m", pack_ids(ids)))
        else:
            commands += [_command(b"DEL", self._seen + i) for i in ids]
        return sum(int(reply) for reply in self._send(commands)[: len(ids)])

    def stale(
        self, kind: Kind, ids: Sequence[bytes], epoch: int | None = None
    ) -> npt.NDArray[np.bool_]:
        """True (n,) where the row is missing or older than the epoch: write these at start."""
        epoch = self.epoch if epoch is None else epoch
        mask = np.ones(len(ids), np.bool_)
        for start in range(0, len(ids), self._chunk):
            with mapped():
                held = self._client.mget(keys(self._prefix, kind, ids[start : start + self._chunk]))
            for at, row in enumerate(held, start):
                mask[at] = row is None or len(row) < 12 or order(row)[0] < epoch
        return mask

    def export(self) -> Iterator[dict[str, Any]]:
        """Each cached row once, as `vectors export` prints it."""
        for kind in KINDS:
            head = keys(self._prefix, kind, [b""])[0]
            seen: set[bytes] = set()
            cursor = -1
            while cursor != 0:
                with mapped():
                    cursor, found = self._client.scan(
                        max(cursor, 0), match=escaped(head) + b"*", count=1000
                    )
                    fresh = [key for key in dict.fromkeys(found) if key not in seen]
                    rows = self._client.mget(fresh) if fresh else []
                seen.update(fresh)  # SCAN may name a key twice
                for key, payload in zip(fresh, rows, strict=True):
                    if payload is not None:
                        yield _exported(key[len(head) :], payload)

    def _row_commands(
        self, kind: Kind, ids: Sequence[bytes], payloads: Sequence[bytes]
    ) -> list[bytes]:
        """One script call a chunk, as bytes of the protocol: packing each argument is slow."""
        if len(ids) != len(payloads):
            raise Inconsistent(f"{len(ids)} {kind} ids for {len(payloads)} rows")
        heads, commands, ttl = self._heads[kind], [], _bulk(b"%d" % self._ttl_s)
        for start in range(0, len(ids), self._chunk):
            some, rows = ids[start : start + self._chunk], payloads[start : start + self._chunk]
            count = len(some)
            if len(set(map(len, rows))) == 1:
                mark = b"\r\n$%d\r\n" % len(rows[0])
                body = mark + mark.join(rows)
            else:
                body = b"".join([_bulk(row) for row in rows])
            head = b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%s" % (2 * count + 4, WRITE_SHA)
            named = b"".join([heads[len(i)] + i for i in some])
            commands.append(b"".join([head, _bulk(b"%d" % count), named, ttl, body, b"\r\n"]))
        return commands

    def _entry(self, *fields: bytes) -> bytes:
        """The command that appends to the trimmed change log."""
        limit = b"%d" % self._log_entries
        return _command(b"XADD", self._log, b"MAXLEN", b"~", limit, b"*", *fields)

    def _touch(self) -> list[bytes]:
        """Commands that put off the lapse of everything that is not a row."""
        ttl, longer = b"%d" % self._ttl_s, b"%d" % (2 * self._ttl_s)
        return [
            *(_command(b"EXPIRE", key, ttl) for key in (self._log, self._model, self._live)),
            _command(b"EXPIRE", self._epoch_key, longer),
        ]

    def _send(self, commands: list[bytes]) -> list[Any]:
        """The replies to all commands, after one round trip; all again once if the script is gone.

        Repeating is sound: an equal row is written again, and a log entry may stand twice.
        """
        replies = self._exchange(commands)
        if any(isinstance(reply, errors.NoScriptError) for reply in replies):
            with mapped():
                self._client.script_load(WRITE)
            replies = self._exchange(commands)
        for reply in replies:
            if isinstance(reply, errors.RedisError):
                with mapped():
                    raise reply
        return replies

    def _exchange(self, commands: list[bytes]) -> list[Any]:
        """The replies, refusals among them as exceptions; the connection is clean or closed."""
        pool = self._client.connection_pool
        with mapped():
            connection = pool.get_connection()
            done = False
            try:
                connection.send_packed_command([b"".join(commands)])
                replies = []
                for _ in commands:
                    try:
                        replies.append(connection.read_response())
                    except errors.ResponseError as refusal:
                        replies.append(refusal)
                done = True
            finally:
                if not done:
                    connection.disconnect()
                pool.release(connection)
        return replies


def escaped(text: bytes) -> bytes:
    """The bytes as a glob pattern that matches only themselves."""
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]^\\-" else bytes([c]) for c in text)


def _bulk(value: bytes) -> bytes:
    return b"\r\n$%d\r\n%s" % (len(value), value)


def _command(*args: bytes) -> bytes:
    return b"*%d%s\r\n" % (len(args), b"".join([_bulk(arg) for arg in args]))


def _exported(key: bytes, payload: bytes) -> dict[str, Any]:
    row = unpack(payload)
    return {
        "kind": row.kind,
        "id": key.decode(errors="replace"),
        "events": row.events,
        "exposures": row.exposures,
        "epoch": row.epoch,
        "sequence": row.sequence,
        "bias": row.bias.tolist(),
        "vector": row.vector.tolist(),
    }
