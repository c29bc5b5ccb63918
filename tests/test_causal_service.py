"""Laws of the causal answers over HTTP, on a real Redis that holds planted rows of layout 4."""

import contextlib
import math
import os
from dataclasses import replace

import msgspec
import numpy as np
import orjson
import pytest
import redis

from consumers import playground
from consumers.service import answers, effects, ranking
from consumers.service.examples import EXAMPLES
from model_store.codec import pack, stamp
from model_store.vectors import RedisVectors
from stream.inference import intervals
from stream.inference.effect import showing
from stream.inference.outcome import AS_IT_IS, IF_SHOWN, Scenario, consumption, shown, withheld
from tests.planted import ITEMS, MODEL, Planted, half
from tests.test_service import World as Plain
from tests.test_service import serving, until

COUNT = 50


def publish(url, prefix, planted):
    """The planted rows stand in Redis as a trainer would write them."""
    client = redis.Redis.from_url(url)
    vectors = RedisVectors(client, prefix=prefix, ttl_s=60)
    vectors.publish_model(planted.model)
    vectors.set_live()
    bias, vector = planted.rows()

    def rows(kind, ids, bias, vector):
        counts = np.full(len(ids), COUNT)
        return [i.encode() for i in ids], pack(kind, 1, 1, counts, counts, counts, bias, vector)

    meta = {
        item.encode(): orjson.dumps({"title": item.upper(), "attributes": attributes})
        for item, attributes in planted.attributes.items()
    }
    vectors.write(
        stamp(1, 1),
        {
            "item": rows("item", planted.ids, bias, vector),
            "user": rows("user", ["7"], planted.user_bias[None], planted.user_vector[None]),
            "feature": rows("feature", planted.names, planted.feature_bias, planted.feature_vector),
        },
        meta=meta,
        globals_=np.array(planted.model["globals"], "<f4").tobytes(),
    )
    client.close()


def pairs_of(planted, outcome, attributes=None):
    """Return the pairs as they are served: vectors in half precision."""
    pairs = planted.pairs(outcome, attributes)
    return replace(pairs, items=replace(pairs.items, vector=half(pairs.items.vector)))


@pytest.fixture(scope="module")
def redis_url():
    """Yield the URL of one server for all tests here; they keep apart by prefix."""
    given = os.environ.get("COUNTERFLOW_TEST_REDIS")
    with contextlib.nullcontext(given) if given else playground.redis_server() as url:
        yield url


@pytest.fixture(scope="module")
def planted():
    """Return a world in which item b has no control outcome of its own."""
    planted = Planted()
    planted.own_bias[1, -1] = 0.0
    return planted


@pytest.fixture(scope="module")
def http(redis_url, planted):
    """Return a client of one service over the planted world, which no test changes."""
    publish(redis_url, "planted", planted)
    with serving(redis_url, "planted") as http:
        yield http


@pytest.fixture
def serve(redis_url, prefix):
    """Return a function that starts the service on a world of the test's own."""
    with contextlib.ExitStack() as stack:

        def started(planted, suffix=""):
            publish(redis_url, prefix + suffix, planted)
            return stack.enter_context(serving(redis_url, prefix + suffix))

        yield started


def ask(http, path, **body):
    """Return the answer to user 7."""
    response = http.post(f"/v1/{path}", json={"user_id": "7", **body})
    assert response.status_code == 200, response.text
    return response.json()


def effect(http, item, outcome, **do):
    """Return the effect of an intervention for user 7, as its type."""
    body = ask(http, "effect", item_id=item, outcome=outcome, do=do)
    return msgspec.convert(body, answers.Effect)


def ranked_of(http, items, **body):
    """Return the scores of these items."""
    found = ask(http, "rank", item_ids=items, **body)["items"]
    return {item["item_id"]: item["score"] for item in found}


def ranked(http, **body):
    """Return scores by item, all items ranked."""
    found = ask(http, "rank", item_ids=list(ITEMS), **body)["items"]
    values = [item["score"] for item in found]
    assert values == sorted(values, reverse=True)
    return {item["item_id"]: item for item in found}


both = pytest.mark.parametrize("outcome", ["rating", "click"])


# lists


@both
def test_every_objective_ranks_by_its_formula(http, planted, outcome):
    pairs = pairs_of(planted, outcome)
    for objective, wanted in (
        ("outcome", shown(pairs, IF_SHOWN).mean),
        ("effect", showing(pairs).value),
        ("consumption", consumption(pairs)),
    ):
        found = ranked(http, outcome=outcome, objective=objective)
        scores = [found[item]["score"] for item in planted.ids]
        assert scores == pytest.approx(wanted, abs=2e-5), objective
        best = ask(http, "recommend", outcome=outcome, objective=objective, k=2)["items"]
        assert [i["item_id"] for i in best] == list(found)[:2]


@both
@pytest.mark.parametrize(
    ("do", "world"),
    [
        ({"position": 3}, Scenario(position=3, clipped=True)),
        ({"popularity": 15.0}, Scenario(popularity=15.0, clipped=True)),
        ({"position": 2, "popularity": 15.0}, Scenario(position=2, popularity=15.0, clipped=True)),
        ({"shown": True}, IF_SHOWN),
        ({"attributes": {"price": 9.9}}, IF_SHOWN),
        ({"attributes": {"price": 20, "genre": ["Horror"]}, "position": 2},
         Scenario(position=2, clipped=True)),
    ],
    ids=str,
)  # fmt: skip
def test_a_counterfactual_ranking_is_that_of_the_world_that_is_set(
    http, planted, outcome, do, world
):
    pairs = pairs_of(planted, outcome, do.get("attributes"))
    found = ranked(http, outcome=outcome, do=do)
    scores = [found[item]["score"] for item in planted.ids]
    assert scores == pytest.approx(shown(pairs, world).mean, abs=5e-4)
    everything = ask(http, "recommend", outcome=outcome, do=do)["items"]
    assert [i["item_id"] for i in everything] == list(found)


def test_withheld_everything_ranks_by_the_control_arm(http, planted):
    found = ranked(http, outcome="click", do={"shown": False})
    wanted = withheld(pairs_of(planted, "click")).mean
    assert [found[i]["score"] for i in planted.ids] == pytest.approx(wanted, abs=2e-5)
    assert found["a"]["support"] == {"ok": True, "reason": None}
    assert found["b"]["support"] == {"ok": False, "reason": ranking.USUAL}


def test_items_that_all_reach_the_end_of_the_scale_are_told_apart(serve):
    best = Planted(items={"x": {}, "y": {}, "z": {}})
    best.own_bias[:, :2] = [[3.0, 1.0], [4.0, 1.0], [2.5, 1.0]]
    best.own_vector[:] = 0.0
    best.own_bias[:, 2] = [9.0, 7.0, 8.0]
    http = serve(best)
    for asked, order in (
        ({}, "yxz"),
        ({"do": {"shown": False}}, "xzy"),
        ({"objective": "consumption", "do": {"shown": True}}, "yxz"),
    ):
        top = 1.0 if "objective" in asked else 5.0
        for path in ("recommend", "rank"):
            more = {"item_ids": list("xyz")} if path == "rank" else {}
            found = ask(http, path, **asked, **more)["items"]
            assert [item["item_id"] for item in found] == list(order)
            assert {item["score"] for item in found} == {top}


def test_an_intervention_holds_for_what_the_filters_leave(http, planted):
    do = {"attributes": {"price": 9.9}}
    found = ask(http, "recommend", filters={"genre": "Comedy"}, do=do)["items"]
    every = ranked(http, do=do)
    assert {i["item_id"]: i["score"] for i in found} == {
        item: pytest.approx(every[item]["score"], abs=1e-5) for item in ("a", "c", "e")
    }


def test_lists_say_which_interval_they_give_and_where_the_average_stands_in(http, planted):
    rating = ranked(http)["a"]
    assert rating["interval_kind"] == "predictive"
    assert rating["support"] is None
    click = ranked(http, outcome="click")["a"]
    pairs = pairs_of(planted, "click")
    low, high = intervals.expected(pairs, shown(pairs, IF_SHOWN), IF_SHOWN)
    assert click["interval_kind"] == "model-based"
    assert click["interval"] == pytest.approx([low[0], high[0]], abs=1e-5)
    by_effect = ranked(http, outcome="click", objective="effect")
    assert by_effect["a"]["support"] == {"ok": True, "reason": None}
    assert by_effect["a"]["interval_kind"] == "model-based"
    assert by_effect["b"]["support"]["ok"] is False
    assert by_effect["b"]["score"] == pytest.approx(0.07)
    assert by_effect["b"]["interval"] == [0.05, 0.09]
    assert by_effect["b"]["interval_kind"] == "average"


# effect


@both
def test_the_effect_of_showing_is_shown_minus_withheld(http, planted, outcome):
    pairs = pairs_of(planted, outcome)
    said = effect(http, "a", outcome, shown=True)
    assert said.factual == pytest.approx(shown(pairs).mean[0], abs=1e-6)
    assert said.counterfactual == pytest.approx(withheld(pairs).mean[0], abs=1e-6)
    assert said.effect == pytest.approx(said.factual - said.counterfactual)
    assert said.interval[0] < said.effect < said.interval[1]
    assert (said.interval_kind, said.support.ok) == ("model-based", True)
    assert said.user == answers.Known(known=True, events=COUNT)
    opposite = effect(http, "a", outcome, shown=False)
    assert opposite.effect == pytest.approx(-said.effect)


def test_an_item_without_control_has_the_average_effect_and_no_support(http):
    said = effect(http, "b", "click", shown=True)
    assert said.effect == pytest.approx(0.07)
    assert (said.interval, said.interval_kind) == ([0.05, 0.09], "average")
    assert (said.support.ok, "average" in said.support.reason) == (False, True)


@both
def test_the_effect_of_an_attribute_is_direct_and_consumption_moves_through_exposure_too(
    http, planted, outcome
):
    do = {"attributes": {"genre": ["Horror"], "price": 20.0}}
    before, after = pairs_of(planted, outcome), pairs_of(planted, outcome, do["attributes"])
    said = effect(http, "a", outcome, **do)
    wanted = shown(after).mean[0] - shown(before).mean[0]
    assert said.effect == said.direct == said.total == pytest.approx(wanted, abs=5e-4)
    assert said.interval[0] < said.effect < said.interval[1]
    moved = consumption(after)[0] - consumption(before)[0]
    assert said.consumption.total == pytest.approx(moved, abs=5e-4)
    assert said.consumption.direct != pytest.approx(moved, abs=1e-3)
    assert any("no path from attributes" in each for each in said.assumptions)


def test_a_price_is_told_by_the_slope_found_within_items(serve):
    within = {"names": ["price"], "beta": [-0.02], "covariance": [[1e-6]], "open": True}
    http = serve(Planted(model={**MODEL, "slopes": {"rating": within}}))
    said = effect(http, "a", "rating", attributes={"price": 20.0})
    assert said.interval_kind == "within-item"
    assert effects.ASSUMED["within"] in said.assumptions
    assert effects.ASSUMED["interval"] not in said.assumptions
    low, high = said.interval
    assert high - low == pytest.approx(2 * 1.96 * 1e-3 * (20.0 - 9.9), rel=1e-3)
    assert low < said.effect < high
    more = effect(http, "a", "rating", attributes={"price": 20.0, "genre": ["Horror"]})
    assert more.interval_kind == "model-based"
    assert effect(http, "a", "click", attributes={"price": 20.0}).interval_kind == "model-based"
    ranked_at = ranked_of(http, ["a"], outcome="rating", do={"attributes": {"price": 20.0}})["a"]
    as_it_is = ranked_of(http, ["a"], outcome="rating")["a"]
    assert ranked_at - as_it_is == pytest.approx(said.effect, abs=5e-4)


def test_interventions_combine(http, planted):
    said = effect(http, "a", "click", position=3, popularity=15.0)
    pairs = pairs_of(planted, "click")
    after = shown(pairs, Scenario(position=3, popularity=15.0)).mean[0]
    assert said.factual == pytest.approx(shown(pairs, AS_IT_IS).mean[0], abs=1e-6)
    assert said.counterfactual == pytest.approx(after, abs=1e-6)
    said = effect(http, "a", "click", shown=True, position=3, attributes={"price": 20.0})
    other = pairs_of(planted, "click", {"price": 20.0})
    wanted = shown(other, Scenario(position=3)).mean[0] - withheld(other).mean[0]
    assert said.effect == pytest.approx(wanted, abs=5e-4)


def test_a_place_does_not_change_a_rating_and_nothing_more_is_claimed(http):
    said = effect(http, "a", "rating", position=3)
    assert (said.effect, said.interval, said.interval_kind) == (0.0, None, None)
    assert said.support == answers.Support(
        ok=False,
        reason="no path from position to the rating has been learned: it is closed, so the effect"
        " is reported as 0 and has no interval",
    )
    assert effects.ASSUMED["closed"] in said.assumptions
    assert effect(http, "a", "click", position=3).support.ok
    assert effect(http, "a", "rating", position=1).interval == [0.0, 0.0]


def test_popularity_without_a_learned_slope_is_a_closed_path(serve):
    http = serve(Planted(model={**MODEL, "kappa": [0.0, 0.2]}))
    said = effect(http, "a", "rating", popularity=15.0, position=3)
    assert (said.effect, said.interval, said.support.ok) == (0.0, None, False)
    assert "position and popularity" in said.support.reason
    assert effect(http, "a", "click", popularity=15.0).support.ok
    # what else is set has its own interval, and what is closed is an assumption
    said = effect(http, "a", "rating", popularity=15.0, attributes={"price": 20.0})
    assert said.support.ok
    assert said.interval[0] < said.effect < said.interval[1]
    assert effects.ASSUMED["closed"] in said.assumptions


def test_answers_name_the_regression_on_paths_only_where_it_is_published(serve):
    names = ["intercept", "user", "item", "match", "popularity", "confounder"]
    fit = {"names": names, "beta": [0.2] * 6, "covariance": np.diag([1e-4] * 6).tolist(), "n": 900}
    http = serve(Planted(model={**MODEL, "paths": {"click": fit, "rating": {**fit, "n": 1}}}))
    plain = serve(Planted(), "plain")
    for do in ({"shown": True}, {"popularity": 15.0}, {"attributes": {"price": 20.0}}):
        said, without = (effect(each, "a", "click", **do) for each in (http, plain))
        assert said.effect == pytest.approx(without.effect)
        assert effects.ASSUMED["interval"] in said.assumptions
        assert effects.ASSUMED["paths"] in said.assumptions
        assert effects.ASSUMED["paths"] not in without.assumptions
        if without.interval is not None:
            assert np.diff(said.interval) > np.diff(without.interval)


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ({"attributes": {"price": 30}}, "do.attributes.price: price is between 4 and 25"),
        ({"attributes": {"genre": ["Musical"]}}, "do.attributes.genre: genre Musical has never"),
        ({"attributes": {"colour": "red"}}, "do.attributes.colour: colour red has never"),
        ({"position": 9}, "do.position: no position beyond 3"),
        ({"popularity": 1e9}, "do.popularity: popularity is between"),
    ],
    ids=str,
)
def test_outside_what_was_observed_it_refuses_with_the_reason(http, do, reason):
    said = effect(http, "a", "click", **do)
    assert (said.support.ok, said.effect, said.counterfactual, said.interval) == (
        False, None, None, None,
    )  # fmt: skip
    assert said.support.reason.startswith(reason)
    response = http.post("/v1/recommend", json={"user_id": "7", "outcome": "click", "do": do})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "no_support")
    assert problem["field"] == reason.partition(":")[0]
    assert problem["remedy"]


def test_an_observed_outcome_keeps_what_was_left_to_chance(http):
    do = {"attributes": {"price": 20.0}}
    said = ask(http, "effect", item_id="a", outcome="rating", do=do, observed=2)
    residual = 2 - said["factual"]
    assert said["individual"] == {
        "observed": 2.0,
        "residual": pytest.approx(residual),
        "counterfactual": pytest.approx(max(1.0, said["counterfactual"] + residual)),
    }
    clicked = ask(http, "effect", item_id="a", outcome="click", do={"position": 3}, observed=1)
    assert clicked["individual"]["counterfactual"] == pytest.approx(0.4)


def test_an_unknown_user_is_the_average_one(http, planted):
    body = {"user_id": "new", "item_id": "a", "outcome": "click", "do": {"shown": True}}
    said = http.post("/v1/effect", json=body).json()
    model, bias = planted.model, planted.rows()[0][0]
    eta = model["globals"][1] + bias[1] + model["kappa"][1] * (bias[6] - 2.0)
    assert said["user"] == {"known": False, "events": 0}
    assert said["factual"] == pytest.approx(1 / (1 + math.exp(-eta)), abs=1e-5)
    assert any("average user" in each for each in said["assumptions"])


def test_an_answer_reads_redis_once(redis_url, http):
    client = redis.Redis.from_url(redis_url)
    do = {"attributes": {"price": 9.9, "genre": ["Horror"]}, "position": 2}

    def reads():
        stats = client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("get", "mget"))

    def asked(path, **body):
        before, gets = reads(), client.info("commandstats")["cmdstat_get"]["calls"]
        ask(http, path, outcome="click", **body)
        looks = client.info("commandstats")["cmdstat_get"]["calls"] - gets  # at the model
        return reads() - before - looks

    for _ in range(3):
        assert asked("effect", item_id="a", do=do) == 1
        assert asked("explain", item_id="a") == 1
        assert asked("rank", item_ids=["a", "c"], do=do) == 1
        assert asked("recommend", do=do) == 1
    client.close()


# explain


@both
@pytest.mark.parametrize("do", [None, {"position": 3, "popularity": 15.0}])
def test_the_terms_of_an_explanation_add_up_to_the_score_of_the_list(http, outcome, do):
    for item in ITEMS:
        why = msgspec.convert(
            ask(http, "explain", item_id=item, outcome=outcome, do=do), answers.Why
        )
        total = math.fsum(term.value for term in why.terms)
        assert total == pytest.approx(why.sum, abs=1e-9)
        score = 1 / (1 + math.exp(-total)) if why.link == "logit" else min(max(total, 1.0), 5.0)
        assert why.score == pytest.approx(score, abs=1e-5)
        listed = ask(http, "rank", item_ids=[item], outcome=outcome, do=do)["items"][0]["score"]
        assert why.score == pytest.approx(listed, abs=1e-5)
        names = {term.name for term in why.terms}
        assert names == {
            "base", "user", "item", "match", "popularity", "confounder", "position",
            *(f"attribute:{name}" for name in ITEMS[item]),
        }  # fmt: skip


def test_an_attributes_term_is_its_planted_part(http, planted):
    why = ask(http, "explain", item_id="a", outcome="rating")
    terms = {term["name"]: term["value"] for term in why["terms"]}
    at = planted.names.index("item\x1fnew\x1f=True")
    links = 2 + 3 + 1  # genres; ~1e+01, ~9.9 and the slope; new
    one = planted.feature_bias[at, 0] + planted.feature_vector[at] @ planted.user_vector[:4]
    assert terms["attribute:new"] == pytest.approx(float(one) / math.sqrt(links), abs=1e-5)
    assert terms["item"] == pytest.approx(float(planted.own_bias[0, 0]), abs=1e-5)


# refusals


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "field"),
    [
        ("effect", {"item_id": "zz", "do": {"shown": True}}, 404, "unknown_item", "item_id"),
        ("explain", {"item_id": "zz"}, 404, "unknown_item", "item_id"),
        ("effect", {"item_id": "a", "do": {}}, 422, "invalid", "do"),
        ("effect", {"item_id": "a"}, 422, "invalid", "do"),
        ("effect", {"item_id": "a", "do": {"position": 0}}, 422, "invalid", "do.position"),
        ("effect", {"item_id": "a", "do": {"price": 1}}, 422, "invalid", "do.price"),
        ("effect", {"item_id": "a", "do": {"attributes": {"x": None}}}, 422, "invalid",
         "do.attributes[...]"),
        ("effect", {"item_id": "a", "do": {"shown": True}, "observed": 9}, 422, "invalid",
         "observed"),
        ("explain", {"item_id": "a", "do": {"shown": True}}, 422, "invalid", "do"),
        ("recommend", {"objective": "effect", "do": {"shown": False}}, 422, "invalid", "do.shown"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_asked_is_a_problem_that_names_its_field(
    http, path, body, status, code, field
):
    response = http.post(f"/v1/{path}", json={"user_id": "7", **body})
    problem = msgspec.convert(response.json(), answers.ProblemBody)
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem.code, problem.field) == (status, code, field)


def test_without_any_control_outcome_effects_are_refused_and_the_rest_is_answered(serve):
    http = serve(Planted(model={**MODEL, "controls": 0, "effects": {}}))
    for path, body, field in (
        ("recommend", {"objective": "effect"}, "objective"),
        ("effect", {"item_id": "a", "do": {"shown": True}}, "do.shown"),
        ("recommend", {"do": {"shown": False}}, "do.shown"),
    ):
        response = http.post(f"/v1/{path}", json={"user_id": "7", **body})
        problem = response.json()
        assert (response.status_code, problem["code"]) == (422, "no_control")
        assert (problem["field"], bool(problem["remedy"])) == (field, True)
    assert effect(http, "a", "click", position=2).effect < 0


def test_a_model_without_causal_paths_serves_its_outcome_and_explains_it(redis_url, prefix):
    world = Plain(redis_url, prefix)
    world.publish()
    world.client.close()
    with serving(redis_url, prefix) as http:
        why = ask(http, "explain", item_id="a")
        assert why["score"] == ask(http, "rank", item_ids=["a"])["items"][0]["score"] == 4.5
        assert {term["name"]: term["value"] for term in why["terms"] if term["value"]} == {
            "base": 3.0, "item": 0.5, "match": 1.0,
        }  # fmt: skip
        for path, body, field in (
            ("effect", {"item_id": "a", "do": {"position": 2}}, "do"),
            ("rank", {"item_ids": ["a"], "do": {"attributes": {"year": 1980}}}, "do"),
            ("recommend", {"objective": "consumption"}, "objective"),
        ):
            response = http.post(f"/v1/{path}", json={"user_id": "7", **body})
            assert (response.status_code, response.json()["code"]) == (422, "not_available")
            assert response.json()["field"] == field
        assert ask(http, "recommend", do={})["items"]


def test_items_without_attributes_can_be_given_some(serve):
    http = serve(Planted(items={"x": {}, "y": {}, "z": {"price": 5.0}}))
    assert ask(http, "rank", item_ids=["x", "y"], do={"attributes": {}})["items"]
    given = ranked_of(http, ["x", "y"], do={"attributes": {"price": 5.0}})
    bare = ranked_of(http, ["x", "y"])
    assert given["x"] - bare["x"] == pytest.approx(given["y"] - bare["y"], abs=1e-3)
    assert given["x"] != bare["x"]


def test_a_model_without_exposure_has_no_consumption(serve):
    http = serve(Planted(model={**MODEL, "exposure": None}))
    response = http.post("/v1/recommend", json={"user_id": "7", "objective": "consumption"})
    assert (response.status_code, response.json()["code"]) == (422, "not_available")
    assert effect(http, "a", "click", attributes={"price": 20}).consumption is None


def test_a_model_that_changes_is_heard_without_loading_its_rows_again(redis_url, prefix, serve):
    http = serve(Planted())
    before = effect(http, "a", "click", position=2).effect
    client = redis.Redis.from_url(redis_url)
    RedisVectors(client, prefix=prefix).publish_model({**MODEL, "theta": [1.0, 0.1]})
    until(lambda: effect(http, "a", "click", position=2).effect < before, "the new examination")
    client.close()


# drift, description


def test_drift_is_what_the_trainer_published(http, serve):
    assert http.get("/v1/drift").json() == {"signals": MODEL["drift"]}
    quiet = serve(Planted(model={key: MODEL[key] for key in MODEL if key != "drift"}))
    assert quiet.get("/v1/drift").json() == {"signals": {}}


def test_the_description_holds_an_example_of_each_request_that_is_well_formed(http):
    document = http.get("/openapi.json").json()
    for path, examples in EXAMPLES.items():
        operation = document["paths"][path]["post"]
        given = operation["requestBody"]["content"]["application/json"]["examples"]
        assert {name: example["value"] for name, example in given.items()} == examples
        for value in examples.values():
            problem = http.post(path, json=value).json()
            assert problem.get("code") not in ("invalid", "not_json", "bad_events"), value
    for path in ("/v1/effect", "/v1/explain", "/v1/drift"):
        assert path in document["paths"]
