"""What the decoder accepts is learned and served, whatever it holds; and the stream goes on."""

from collections import Counter
from dataclasses import replace

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import settings as settings_
from hypothesis import strategies as st

from consumers import build, settings
from stream import testing
from stream.engine import Engine
from stream.events import decode
from stream.framing import frame
from stream.inference.attributes import attribute_links, weights
from stream.inference.rows import ServedFeatures
from stream.model.config import ModelConfig
from stream.model.features import attribute_of, label, links_of, number_of, renamed, slope_name
from stream.model.learner import Learner
from stream.records import RecordBatch
from tests.test_engine import CONFIG, ROOMY, world
from tests.test_model import BOTH, draw_batch
from tests.test_service import serving
from tests.test_trainer import T0, Place, expected, rating, ratings

SMALL = ModelConfig(
    factors=4, exposure_factors=4, session_factors=2, max_users=64, max_items=64, max_features=256,
    step="sequential",
)  # fmt: skip


@pytest.fixture
def place(broker, prefix, redis_url, tmp_path):
    return Place(broker, prefix, redis_url, tmp_path / "snapshots")


def described(id_, attributes, n=0, kind="item", **more):
    """Return a record that says this of a user or an item."""
    body = {"event_id": f"{kind}-{id_}-{n}", "ts_ms": T0 + n, f"{kind}_id": id_}
    return kind, id_.encode(), orjson.dumps({**body, "attributes": attributes, **more})


# -- names of attribute values

FORGED = {
    "a slope": ({"a": "x\x1f#"}, {"a": 1.0}),
    "another attribute": ({"a": "x\x1f=y"}, {"a\x1f=x": "y"}),
    "an attribute's own escapes": ({"a": "x\x1bf#"}, {"a": "x\x1f#"}),
    "a hash": ({"a": "x" * 93 + "\x1bh" + "0" * 32}, {"a": "x" * 300}),
}


@pytest.mark.parametrize("forged", FORGED)
def test_no_text_poses_as_another_attribute_or_as_a_number(forged):
    text, other = FORGED[forged]
    names, others = (dict(links_of("item", said)) for said in (text, other))
    assert not names.keys() & others.keys()
    for name in names:
        assert name.count("\x1f") == 2 and number_of("item", name) is None
        assert attribute_of(name) == label(next(iter(text)))


@pytest.mark.parametrize(
    "text", ["x" * 300, "é" * 300, "\x1f" * 300, "\x1b" * 60_000, "\U0001f600" * 99]
)
def test_long_texts_and_names_have_names_that_fit_and_differ(text):
    names = [
        name
        for attributes in ({"plot": text}, {"plot": f"{text}."}, {text: "x"}, {f"{text}.": "x"},
                           {text: text}, {text: 1.5})
        for name, _ in links_of("item", attributes)
    ]  # fmt: skip
    assert len(set(names)) == len(names) == 8
    assert max(len(name.encode()) for name in names) <= 256
    assert names == list(map(renamed, names))


def test_a_state_with_longer_names_takes_the_new_ones():
    learner = Learner(SMALL, 1)
    long, forged = f"item\x1fplot\x1f={'x' * 300}", "item\x1fprice\x1f=x\x1f#"
    learner.features.row.update({long: 0, forged: 1})
    again = Learner(SMALL, 1)
    again.load(learner.state())
    now = [name for name, _ in links_of("item", {"plot": "x" * 300, "price": "x\x1f#"})]
    assert list(again.features.row) == now and again.features.numbers == []


def test_text_of_any_length_is_learned_served_and_asked_for(place):
    plot, name = "A long story. " * 400, "field" * 80
    items = [
        described(str(n), {"plot": plot, name: "x" * 300, "a": "x\x1f#", "year": 1990 + n}, n)
        for n in range(5)
    ]
    place.send([*items, described("0", {"about": plot}, kind="user"), *ratings(60)])
    place.learn_all()
    again = place.learn_all()
    assert place.counts() == expected(ratings(60)) and again.bad_events == 0
    with serving(place.environ["COUNTERFLOW_REDIS__URL"], place.prefix) as http:
        for attributes in ({"plot": plot}, {name: "x" * 300}, {"a": "x\x1f#"}):
            answer = http.post(
                "/v1/effect",
                json={"user_id": "0", "item_id": "1", "outcome": "rating",
                      "do": {"attributes": attributes}},
            )  # fmt: skip
            assert answer.status_code == 200 and answer.json()["support"]["ok"], answer.text
        said = http.post("/v1/explain", json={"user_id": "0", "item_id": "1", "outcome": "rating"})
        assert said.status_code == 200, said.text


# -- numbers

FLOAT32 = 3.4028234663852886e38
ODD = [
    FLOAT32,
    -FLOAT32,
    1e38,
    1e-42,
    5e-324,
    -0.0,
    0,
    2**63,
    -(2**63),
    2**64 - 1,
    1e-30,
    True,
    "1",
]


@pytest.mark.parametrize("number", [1e39, -1e39, 3.5e38, 1e308])
def test_a_number_beyond_32_bits_is_out_of_range_in_kafka_and_over_http(place, number):
    bad = described("3", {"a": [], "b": number})
    place.send([bad, *ratings(10)])
    trainer = place.learn_all()
    assert trainer.bad_events == 1 and trainer.learned == 10
    (letter,) = place.dead_letters()
    assert dict(letter.headers)["dlq.reason"] == b"out_of_range"
    assert letter.value == bad[2]
    with serving(place.environ["COUNTERFLOW_REDIS__URL"], place.prefix) as http:
        answer = http.post("/v1/events", json={"type": "item", **orjson.loads(bad[2])})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["reason"] == "out_of_range"


def test_a_rating_beyond_32_bits_is_out_of_range_for_both_readings_whatever_the_scale():
    scale = (-1e300, 1e300)
    for value, accepted in ((1e39, False), (-1e39, False), (FLOAT32, True), (4.5, True)):
        body = rating(1, "7", "3", value)[2]
        data = frame(0, 0, b"7", body)
        batch = RecordBatch("r", "rating", 0, 0, 0, 1, T0, T0, True, 1, data)
        decoded = decode([batch], rating_scale=scale)
        assert len(decoded) == accepted and len(decoded.bad) == (not accepted)
        assert [record.reason for record in decoded.bad] == ["out_of_range"] * (not accepted)


@BOTH
def test_any_accepted_numbers_leave_finite_rows(config):
    rng = np.random.default_rng(3)
    learner = Learner(replace(config, max_features=256, max_links=SMALL.max_links), 1)
    for turn in range(40):
        for row in range(30):
            kind = "user" if row % 3 == 0 else "item"
            odd = {f"n{k}": ODD[int(rng.integers(len(ODD)))] for k in range(4)}
            near = {"tiny": float(rng.integers(3)) * 1e-42, "price": float(rng.normal(10, 2))}
            if turn % 7 == 3 and row == 5:
                near["price"] = float(rng.choice([FLOAT32, -FLOAT32]))
            learner.set_attributes(kind, row, odd | near)
        learner.step(draw_batch(60, users=30, items=30, seed=turn))
        every = np.arange(30, dtype=np.int32)
        values = np.arange(len(learner.features), dtype=np.int32)
        for rows in (
            learner.served_rows("user", every),
            learner.served_rows("item", every),
            learner.feature_rows(values),
        ):
            assert np.isfinite(rows.bias).all() and np.isfinite(rows.vector).all()
        assert np.isfinite(learner.scalars.outcome).all()


def test_a_number_far_out_acts_as_one_sixteen_deviations_out_in_learner_and_service():
    learner = Learner(SMALL, 1)
    for row, price in enumerate([8.0, 10.0, 12.0, 10.0]):
        learner.set_attributes("item", row, {"price": price})
    learner.step(draw_batch(200, items=4))
    scale = float(np.sqrt(2.0))
    far = []
    for price in (10 + 16 * scale, 1e6, FLOAT32):
        learner.links["item"].set(0, [(learner.features.row[slope_name("item", "price")], price)])
        far.append(learner.served_rows("item", np.zeros(1, np.int32)))
    for rows in far[1:]:
        np.testing.assert_allclose(rows.bias, far[0].bias, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rows.vector, far[0].vector, rtol=1e-4, atol=1e-5)
    values = learner.feature_rows(np.arange(len(learner.features), dtype=np.int32))
    features = ServedFeatures(values.bias, values.vector, values.events, values.events >= 0)
    at = learner.features.row[slope_name("item", "price")]
    links = attribute_links(np.zeros(1, np.intp), np.array([at]), np.array([1e30]), 1, features)
    assert weights(links, features).tolist() == [16.0]


# -- full tables and no window


class Roomy(Place):
    """A place with settings of its own."""

    def choose(self, **chosen):
        self.settings = settings.load({}, self.environ | chosen)
        return self


def counted(trainer, name, **labels):
    """Return the trainer's own count of this."""
    return trainer.metrics.registry.get_sample_value(f"counterflow_{name}", labels) or 0.0


def test_full_tables_refuse_new_ids_and_known_ones_learn_on_across_restarts(
    broker, prefix, redis_url, tmp_path, caplog
):
    place = Roomy(broker, prefix, redis_url, tmp_path / "snapshots").choose(
        COUNTERFLOW_MODEL__MAX_USERS="25", COUNTERFLOW_MODEL__MAX_ITEMS="30"
    )
    first = [rating(n, str(n % 20), str(n % 30)) for n in range(60)]  # 20 users, all 30 items
    place.send(first)
    place.learn_all()
    total, good = Counter(), list(first)
    for turn in range(3):
        begin = 1_000 * (turn + 1)
        new = [rating(begin + n, str(n % 20), f"new-{n}-{turn}") for n in range(50)]
        new += [described(f"new-{n}-{turn}", {"a": "b"}, begin) for n in range(20)]
        new += [rating(begin + 100 + n, f"guest-{turn}-{n}", "3") for n in range(10)]
        known = [rating(begin + 500 + n, str(n % 20), str(n % 30)) for n in range(40)]
        place.send([*new, *known])
        good += known
        trainer = place.learn_all()
        total["item"] += counted(trainer, "refused_ids_total", kind="item")
        total["user"] += counted(trainer, "refused_ids_total", kind="user")
        assert trainer.bad_events == 0
    assert total == {"item": 210, "user": 25}
    assert len(trainer.engine.users) == 25 and len(trainer.engine.items) == 30
    learned = {k: n for k, n in place.counts().items() if "guest" not in k[1]}
    guests = sum(n for (kind, id_), n in place.counts().items() if "guest" in id_)
    assert guests == 5
    for (kind, id_), n in expected(good).items():
        assert learned[kind, id_] == n + (guests if (kind, id_) == ("item", "3") else 0)
    assert "model.max_items" in caplog.text
    assert not any(
        b"new-" in key for key in build.redis_client(place.settings).scan_iter(f"{prefix}:*")
    )


def test_without_a_window_repetitions_count(broker, prefix, redis_url, tmp_path):
    place = Roomy(broker, prefix, redis_url, tmp_path / "snapshots").choose(
        COUNTERFLOW_TRAINER__DUPLICATES_WINDOW="0"
    )
    for times in (1, 2):
        place.send(ratings(20))
        assert place.learn_all().duplicates == 0
        assert place.counts() == {k: times * n for k, n in expected(ratings(20)).items()}


@settings_(deadline=None, max_examples=20)
@given(st.integers(0, 1_000), st.lists(st.integers(0, 300), max_size=6), st.integers(1, 25))
def test_what_full_tables_refuse_does_not_depend_on_cuts_or_restarts(seed, cuts, room):
    def make():
        return Engine(replace(CONFIG, max_users=room, max_items=room), 3, **ROOMY)

    testing.cuts_do_not_matter(make, make, world(seed), cuts)
    polls = world(seed)
    testing.restarts_do_not_matter(make, [polls[n : n + 40] for n in range(0, len(polls), 40)])
