"""A null value on users or items removes its key: every one acts, what it removed stays away."""

import pytest

from consumers import build
from stream.engine import Engine
from stream.framing import frame
from stream.records import RecordBatch
from tests.test_engine import CONFIG, ROOMY, T0, batches, event
from tests.test_trainer import Place, expected, rating, ratings


@pytest.fixture
def place(broker, prefix, redis_url, tmp_path):
    return Place(broker, prefix, redis_url, tmp_path / "snapshots")


def served(place):
    """The users and items whose rows stand in Redis."""
    return {(row["kind"], row["id"]) for row in build.vectors(place.settings).export()}


def removals(kind, ids):
    return [(kind, id_.encode(), None) for id_ in ids]


def gone(kind, id_, at=0):
    """The record that removes the id, as a batch of its own."""
    data = frame(0, 0, id_.encode(), None)
    return [RecordBatch(f"t.{kind}.v1", kind, 0, at, at, at + 1, T0, T0, True, 1, data)]


TEN = [str(n) for n in range(10)]
GONE = {(kind, id_) for kind in ("user", "item") for id_ in TEN}


def test_every_removal_of_a_poll_acts(place):
    place.send(ratings(400))
    place.learn_all()
    assert served(place) == set(expected(ratings(400)))
    place.send([*removals("user", TEN), *removals("item", TEN)])
    trainer = place.learn_all()
    assert trainer.duplicates == 0
    assert served(place) == set(expected(ratings(400))) - GONE


def test_a_removal_that_is_repeated_acts_again(place):
    for n in range(3):
        place.send([rating(n, "7", "3")])
        place.learn_all()
        assert served(place) == {("user", "7"), ("item", "3")}
        place.send([*removals("user", ["7", "7"]), *removals("item", ["3"])])
        assert place.learn_all().duplicates == 0
        assert served(place) == set()


def test_a_removal_of_what_is_not_known_makes_nothing():
    engine = Engine(CONFIG, **ROOMY)
    polled = [*batches([event("rating", 1, user_id="7", item_id="3", value=4.0)])]
    learned = engine.learn([*polled, *gone("user", "8"), *gone("item", "8")])
    assert (len(engine.users), len(engine.items)) == (1, 1)
    assert learned.duplicates == 0 and len(learned.attributes) == 2
    learned = engine.learn(
        [*gone("item", "9"), *batches([event("click", 2, user_id="9", item_id="9")])]
    )
    assert engine.learner.rows("item", learned.items).events.tolist() == [1]
