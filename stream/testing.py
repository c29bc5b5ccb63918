"""Laws of the engine as functions, shipped so that an extension can be held to them.

Each raises AssertionError naming what differs. `make` returns a new engine; polls are lists of
record batches.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from stream.engine import Engine
from stream.records import RecordBatch

Make = Callable[[], Engine]


def differing(a: Engine, b: Engine) -> list[str]:
    """Return the names of the state's parts that are not the same bits."""
    left, right = a.state(), b.state()
    names = sorted(left.keys() | right.keys())
    return [
        name
        for name in names
        if name not in left
        or name not in right
        or left[name].dtype != right[name].dtype
        or left[name].tobytes() != right[name].tobytes()
    ]


def cuts_do_not_matter(
    whole: Make, cut: Make, batches: Sequence[RecordBatch], cuts: Iterable[int]
) -> None:
    """The same batches in polls cut at `cuts` leave the same bits."""
    one, many = whole(), cut()
    one.learn(batches)
    inside = sorted(c for c in cuts if 0 < c < len(batches))
    for begin, end in pairwise([0, *inside, len(batches)]):
        many.learn(batches[begin:end])
    assert not (names := differing(one, many)), names


def restarts_do_not_matter(make: Make, polls: Iterable[Sequence[RecordBatch]]) -> None:
    """Stop, restore, continue after every poll equals never stopped, bit for bit."""
    never, stopped = make(), make()
    for poll in polls:
        never.learn(poll)
        stopped.learn(poll)
        restored = make()
        restored.load(stopped.state())
        stopped = restored
    assert not (names := differing(never, stopped)), names


def reading_never_creates(engine: Engine, unknown: bytes = b"nobody") -> None:
    """Asking for an unknown id, and for rows that exist, changes no bit of the state."""
    before = {name: array.tobytes() for name, array in engine.state().items()}
    assert engine.users.find(unknown) is None
    assert engine.items.find(unknown) is None
    engine.learner.rows("user", np.arange(len(engine.users), dtype=np.int32))
    engine.learner.rows("item", np.arange(len(engine.items), dtype=np.int32))
    engine.learner.global_bias()
    after = {name: array.tobytes() for name, array in engine.state().items()}
    assert before == after, [name for name in before if before[name] != after.get(name)]
