"""Checks of the engine's and the learner's invariants, for testing an extension.

Each check raises AssertionError that names what differs. `make` returns a new engine; a poll is a
list of record batches.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.batch import Batch
from stream.engine import Engine
from stream.model.learner import Learner
from stream.records import RecordBatch
from stream.schemas import ATTRIBUTE_KINDS

Make = Callable[[], Engine]


def differing(a: Engine, b: Engine) -> list[str]:
    """Return the names of the arrays whose bits differ between the two engines' states."""
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
    """Check that dividing the batches into polls at `cuts` leaves the same bits as one poll."""
    one, many = whole(), cut()
    one.learn(batches)
    inside = sorted(c for c in cuts if 0 < c < len(batches))
    for begin, end in pairwise([0, *inside, len(batches)]):
        to_come = {(b.topic, b.partition) for b in batches[end:] if b.kind not in ATTRIBUTE_KINDS}
        many.learn(batches[begin:end], to_come)
    assert not (names := differing(one, many)), names


def restarts_do_not_matter(make: Make, polls: Iterable[Sequence[RecordBatch]]) -> None:
    """Check that saving and restoring after every poll leaves the same bits as never stopping."""
    never, stopped = make(), make()
    for poll in polls:
        never.learn(poll)
        stopped.learn(poll)
        restored = make()
        restored.load(stopped.state())
        stopped = restored
    assert not (names := differing(never, stopped)), names


def reading_never_creates(engine: Engine, unknown: bytes = b"nobody") -> None:
    """Check that queries for an unknown id, for existing rows and for the model change no bit."""
    before = {name: array.tobytes() for name, array in engine.state().items()}
    assert engine.users.find(unknown) is None
    assert engine.items.find(unknown) is None
    engine.learner.served_rows("user", np.arange(len(engine.users), dtype=np.int32))
    engine.learner.served_rows("item", np.arange(len(engine.items), dtype=np.int32))
    engine.learner.feature_rows(np.arange(len(engine.learner.features), dtype=np.int32))
    engine.model()
    after = {name: array.tobytes() for name, array in engine.state().items()}
    assert before == after, [name for name in before if before[name] != after.get(name)]


def steps_agree(one: Learner, two: Learner, batch: Batch, tolerance: float = 1e-5) -> None:
    """Check that two drivers' learners learn the same from a batch in which nothing repeats.

    Both learn the batch. Predictions may differ by the tolerance, parameters and accumulators by
    the tolerance plus that share of their size; counts, times and stored integers must be equal.
    The sequential driver and blocks agree only if no item (uniform ones included) and no attribute
    value occurs twice within a block, because a block sums the gradients of repetitions.
    """
    told = one.step(batch), two.step(batch)
    for name in ("users", "items"):
        assert np.array_equal(*(getattr(update, name) for update in told)), name
    for name in ("prediction", "control", "terms", "served"):
        _near(name, getattr(told[0], name), getattr(told[1], name), tolerance, 0.0)
    left, right = dict(_parts(one)), dict(_parts(two))
    assert left.keys() == right.keys()
    for name, part in left.items():
        _near(name, part, right[name], tolerance, tolerance)


def _parts(learner: Learner) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the learner's arrays, with packed rows split into fields; counts are stored as bits."""
    state = learner.state()
    for kind, table in (
        ("user", learner.user),
        ("item", learner.item),
        ("feature", learner.feature),
    ):
        packed, at = state.pop(f"{kind}.rows"), table.layout
        first = at._fields.index("vector")
        starts = {n: c for n, c in zip(at._fields, at, strict=True) if c >= 0}
        names = [n for n in at._fields[first:-1] if n in starts]
        for name, stop in pairwise(names):
            part = packed[:, starts[name] : starts[stop]]
            counts = name in ("events", "exposures", "controls", "decayed_count_s", "outcomes")
            yield f"{kind}.{name}", part.copy().view(np.uint32) if counts else part
    yield from state.items()


def _near(
    name: str, one: NDArray[Any], two: NDArray[Any], absolute: float, relative: float
) -> None:
    """Assert that two arrays are equal, or close if they are floating point."""
    assert one.shape == two.shape, name
    if one.dtype.kind != "f":
        assert np.array_equal(one, two), name
        return
    close = np.isclose(one, two, atol=absolute, rtol=relative, equal_nan=True)
    far = np.argwhere(~close)
    assert not len(far), (
        f"{name}{far[0].tolist()}: {one[tuple(far[0])]} against {two[tuple(far[0])]}, "
        f"and {len(far) - 1} more"
    )
