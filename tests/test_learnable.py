"""What the decoder accepts is learned and served, whatever it holds; and the stream goes on."""

import orjson
import pytest

from stream.model.config import ModelConfig
from stream.model.features import attribute_of, label, links_of, number_of, renamed
from stream.model.learner import Learner
from tests.test_service import serving
from tests.test_trainer import T0, Place, expected, ratings

SMALL = ModelConfig(
    factors=4, exposure_factors=4, session_factors=2, max_users=64, max_items=64, max_features=256
)


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
