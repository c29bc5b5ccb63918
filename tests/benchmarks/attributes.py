"""Items and users that say something of themselves: decoded alone, and learned."""

import time
from collections.abc import Iterator
from itertools import chain

import numpy as np
import orjson

from stream.engine import Engine
from stream.events import decode
from stream.framing import frame
from stream.model.config import ModelConfig
from stream.records import RecordBatch

COUNT = 100_000
TURNS = 10_000  # of each kind
ITEMS, USERS = 50_000, 100_000
POLL = 2_000  # records a batch
T = 1_790_000_000_000
GENRES = ("Action", "Comedy", "Drama", "Sci-Fi", "Thriller", "Romance", "Horror", "War")


def items(count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield films: two genres, a year, a title."""
    r = np.random.default_rng(seed)
    genre, year = r.integers(len(GENRES), size=(count, 2)), r.integers(1930, 2000, count)
    for n, ((a, b), y) in enumerate(zip(genre.tolist(), year.tolist(), strict=True)):
        yield orjson.dumps(
            {
                "v": 1, "type": "item", "event_id": f"m-{n}", "ts_ms": T, "item_id": str(n % ITEMS),
                "title": f"Film number {n} ({y})",
                "attributes": {"genre": [GENRES[a], GENRES[b]], "year": y},
            }
        )  # fmt: skip


def users(count: int, seed: int = 1) -> Iterator[bytes]:
    """Yield people: an age, an occupation, a gender."""
    r = np.random.default_rng(seed)
    age, work = r.integers(7, 80, count), r.integers(21, size=count)
    for n, (a, w) in enumerate(zip(age.tolist(), work.tolist(), strict=True)):
        yield orjson.dumps(
            {
                "v": 1, "type": "user", "event_id": f"u-{n}", "ts_ms": T, "user_id": str(n % USERS),
                "attributes": {"age": a, "occupation": f"work-{w}", "gender": "FM"[n % 2]},
            }
        )  # fmt: skip


def ratings(count: int, seed: int = 2) -> Iterator[bytes]:
    """Yield random ratings."""
    r = np.random.default_rng(seed)
    user, item = r.integers(USERS, size=count), r.integers(ITEMS, size=count)
    value = r.integers(1, 6, count)
    for n, (u, i, y) in enumerate(zip(user.tolist(), item.tolist(), value.tolist(), strict=True)):
        yield orjson.dumps(
            {
                "v": 1, "type": "rating", "event_id": f"r-{n}", "ts_ms": T,
                "user_id": str(u), "item_id": str(i), "value": y,
            }
        )  # fmt: skip


def batches(kind: str, values: list[bytes], size: int = POLL) -> list[RecordBatch]:
    """Return the values as record batches of one partition."""
    made = []
    for at in range(0, len(values), size):
        part = values[at : at + size]
        data = b"".join(frame(n, 0, b"k", value) for n, value in enumerate(part))
        stop = at + len(part)
        made.append(RecordBatch("t", kind, 0, at, at, stop, T, T, True, len(part), data))
    return made


def seconds(polls: list[list[RecordBatch]], engine: Engine | None) -> float:
    """Return how long the polls take to decode, and to learn where there is an engine."""
    start = time.perf_counter()
    for poll in polls:
        if engine:
            engine.learn(poll)
        else:
            decode(poll)
    return time.perf_counter() - start


def run() -> None:
    """Print events a second of each kind, and of items and ratings taking turns."""
    decode([])
    config = ModelConfig(max_users=USERS, max_items=ITEMS)
    made = {
        "item": batches("item", list(items(COUNT))),
        "user": batches("user", list(users(COUNT))),
    }
    for kind, all_ in made.items():
        polls = [[batch] for batch in all_]
        engine = Engine(config)
        engine.warm_up()
        alone, learned = seconds(polls, None), seconds(polls, engine)
        print(f"{kind}s: decoded {COUNT / alone / 1e3:.0f} k/s, learned {COUNT / learned / 1e3:.0f}"
              f" k/s; {COUNT:,} events, {POLL:,} a poll", flush=True)  # fmt: skip
    turns = list(
        chain.from_iterable(
            zip(
                batches("item", list(items(TURNS)), 1),
                batches("rating", list(ratings(TURNS)), 1),
                strict=True,
            )
        )
    )
    polls = [turns[at : at + POLL] for at in range(0, len(turns), POLL)]
    engine = Engine(config)
    engine.warm_up()
    learned = seconds(polls, engine)
    print(f"items and ratings 1:1: learned {len(turns) / learned / 1e3:.1f} k/s; {len(turns):,}"
          f" events, {POLL:,} a poll", flush=True)  # fmt: skip
