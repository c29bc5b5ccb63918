"""Ids are hashed under a key: chosen ones do not collide, and nothing learned depends on it."""

import numpy as np
import orjson
import pytest

from stream import testing
from stream.engine import _SLATE, Engine
from stream.framing import frame
from stream.hashing import hash_many, hash_pair
from stream.records import RecordBatch
from stream.vocabulary import _SEED
from tests.test_engine import CONFIG, ROOMY, T0, world
from tests.test_trainer import Place, rating, ratings

KEY, OTHER = bytes(range(16)), bytes(range(100, 116))
M64 = 2**64 - 1
KEYED = ("hash.key", "users.hashes", "items.hashes", "duplicates.ring")


def mix(x):
    """The unkeyed hash's finaliser, over columns of uint64."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = (x ^ (x >> np.uint64(33))) * np.uint64(factor)
    return x ^ (x >> np.uint64(33))


def colliding(count, seed):
    """Return ids of 16 letters, digits and signs that all have one hash without a key."""
    prime = np.uint64(0x9E3779B97F4A7C15)
    start = mix(np.array([int(seed) ^ (16 * int(prime) & M64)], np.uint64))[0]
    rng, found = np.random.default_rng(1), []
    aim = np.uint64(0x5555_5555_5555_5555)
    while len(found) < count:
        first = rng.integers(97, 123, (1_000_000, 8), np.uint8)
        second = (mix((start ^ first.view("<u8")[:, 0]) * prime) ^ aim)[:, None].view(np.uint8)
        plain = (second >= 0x20) & (second < 0x7F) & (second != 0x22) & (second != 0x5C)
        both = np.concatenate([first, second], 1)[plain.all(1)]
        found = list(dict.fromkeys([*found, *(row.tobytes() for row in both)]))
    return found[:count]


def hashes(ids, seed, key):
    length = np.array(list(map(len, ids)), np.int32)
    at = (np.cumsum(length) - length).astype(np.int64)
    key = np.frombuffer(key, "<u8").astype(np.uint64)
    return hash_many(np.frombuffer(b"".join(ids) + b"\0" * 8, np.uint8), at, length, seed, key)


def plain(data, key, wide=False):
    """SipHash-1-3 as its paper writes it; `wide`: both halves of 128 bits, as in its reference."""
    k0, k1 = (int.from_bytes(key[at : at + 8], "little") for at in (0, 8))
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D]
    v += [k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    v[1] ^= 0xEE * wide

    def turned(x, by):
        return (x << by | x >> (64 - by)) & M64

    def rounds(count):
        for _ in range(count):
            v[0], v[2] = (v[0] + v[1]) & M64, (v[2] + v[3]) & M64
            v[1], v[3] = turned(v[1], 13) ^ v[0], turned(v[3], 16) ^ v[2]
            v[0] = turned(v[0], 32)
            v[2], v[0] = (v[2] + v[1]) & M64, (v[0] + v[3]) & M64
            v[1], v[3] = turned(v[1], 17) ^ v[2], turned(v[3], 21) ^ v[0]
            v[2] = turned(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) % 256])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        rounds(1)
        v[0] ^= word
    v[2] ^= 0xEE if wide else 0xFF
    rounds(3)
    first = v[0] ^ v[1] ^ v[2] ^ v[3]
    if not wide:
        return first
    v[1] ^= 0xDD
    rounds(3)
    return first, v[0] ^ v[1] ^ v[2] ^ v[3]


def test_it_is_siphash_1_3():
    assert plain(b"", KEY).to_bytes(8, "little").hex() == "dcc40f055801acab"  # Rust's own vector
    rng = np.random.default_rng(0)
    ids = [rng.bytes(n) for n in (*range(1, 40), 255, 256) for _ in range(3)]
    assert hashes(ids, np.uint64(0), KEY).tolist() == [plain(i, KEY) for i in ids]
    key, none = np.frombuffer(KEY, "<u8").astype(np.uint64), (np.uint64(0), np.uint64(0))
    for id_ in ids:
        pair = hash_pair(np.frombuffer(id_, np.uint8), 0, len(id_), none, key)
        assert tuple(map(int, pair)) == plain(id_, KEY, wide=True)


@pytest.mark.parametrize("seed", [_SEED, _SLATE])
def test_chosen_ids_collide_without_a_key_and_under_none(seed):
    ids = colliding(8_000, seed)
    assert len(set(ids)) == 8_000
    assert len(np.unique(hashes(ids, seed, bytes(16)))) == 1
    for key in (KEY, OTHER, bytes(15) + b"\1"):
        found = hashes(ids, seed, key)
        assert len(np.unique(found)) == 8_000
        # in a table of twice the size a place is wanted by few
        assert np.bincount((found & np.uint64(16_383)).astype(int)).max() < 10


def test_two_blocks_whose_differences_cancel_under_one_key_do_not_under_another():
    ids = [bytes([*b"abcdefg", 97 ^ (n & 0x0F), *b"hijklmn", 97 ^ (n >> 4)]) for n in range(256)]
    ids += [bytes(b ^ 0x80 if at in (7, 15) else b for at, b in enumerate(i)) for i in ids]
    for key in (KEY, OTHER):
        assert len(np.unique(hashes(ids, _SEED, key))) == len(ids)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_learned_does_not_depend_on_the_key(seed):
    engines = [Engine(CONFIG, 3, **ROOMY, hash_key=key) for key in (KEY, OTHER, bytes(16))]
    for engine in engines:
        polls = world(seed)
        engine.learn(polls[:150])
        again = Engine(CONFIG, 3, **ROOMY, hash_key=bytes(range(50, 66)))
        again.load(engine.state())  # under the saved key
        assert not testing.differing(engine, again)
        again.learn(polls[150:])
        engine.learn(polls[150:])
        assert not testing.differing(engine, again)
    for other in engines[1:]:
        names = testing.differing(engines[0], other)
        assert {n for n in names if not n.endswith(".slate")} == set(KEYED)


def test_a_state_without_a_key_goes_on_with_the_hash_it_was_written_with():
    polls = world(1)
    never, earlier = (Engine(CONFIG, 3, **ROOMY) for _ in range(2))
    for engine in (never, earlier):
        engine.learn(polls[:150])
    state = earlier.state()
    del state["hash.key"]
    now = Engine(CONFIG, 3, **ROOMY, hash_key=KEY)
    now.load(state)
    for engine in (never, now):
        engine.learn(polls[150:])
    assert not testing.differing(never, now)


def test_a_trainer_takes_a_key_at_random_and_keeps_it(broker, prefix, redis_url, tmp_path):
    places = [
        Place(broker, f"{prefix}{n}", redis_url, tmp_path / f"snapshots{n}") for n in range(2)
    ]
    keys = []
    for place in places:
        ids = colliding(500, _SEED)
        place.send([rating(n, i.decode(), "3") for n, i in enumerate(ids)])
        keys.append(place.learn_all().engine.users.key.tobytes())
        place.send(ratings(20, start=1_000))
        again = place.learn_all().engine
        assert again.users.key.tobytes() == keys[-1]
        assert len(np.unique(again.users.state()["hashes"])) == len(again.users) > 500
    assert keys[0] != keys[1] and bytes(16) not in keys


def test_chosen_event_ids_and_slates_are_kept_apart():
    engine = Engine(CONFIG, 3, **ROOMY, hash_key=KEY)
    records = []
    for n, (event, slate) in enumerate(
        zip(colliding(400, np.uint64(0xBB67AE8584CAA73B ^ 3)), colliding(400, _SLATE), strict=True)
    ):
        body = {"event_id": event.decode(), "ts_ms": T0 + n, "user_id": "7", "item_id": "3"}
        value = orjson.dumps({**body, "impression_id": slate.decode()})
        data = frame(0, 0, b"7", value)
        records.append(RecordBatch("i", "impression", 0, n, n, n + 1, T0, T0, True, 1, data))
    assert engine.learn(records).events["impression"] == 400
    state = engine.state()
    slates = np.concatenate([state["join.open.slate"], state["join.closed.slate"]])
    assert len(np.unique(slates)) == len(np.unique(state["duplicates.ring"][:, 0])) == 400
