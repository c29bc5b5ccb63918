"""Two errors are published: of the factual head, and of the score that lists rank by."""

import json
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import generate_latest

from consumers import build, summary
from consumers.evaluate import served
from consumers.evaluate.feed import Recorder
from stream.engine import Engine
from stream.evaluation import Progressive
from stream.interaction_type import InteractionType
from stream.model.learner import Learner
from stream.worlds import PopularityLoop, record_batches
from tests.test_causal import CONFIG
from tests.test_model import (
    BLOCKS,
    SMALL,
    T0,
    draw_batch,
    one_event,
    open_every_path,
    with_attributes,
)
from tests.test_trainer import place, ratings  # noqa: F401

BOTH = {"mae", "rmse", "mae_served", "rmse_served"}


@pytest.mark.parametrize(
    "config", [SMALL, replace(SMALL, average=0.9), BLOCKS], ids=["sequential", "averages", "blocks"]
)
def test_what_is_served_before_an_outcome_is_what_a_list_would_have_said(config):
    """By the service's own formulas, from the rows as they stood: at the first place, and fair."""
    engine = Engine(config)
    learner = engine.learner = with_attributes(Learner(engine.config, 0))
    learner.step(draw_batch(400, 3))
    open_every_path(learner)
    now = learner._now_s * 1000
    assert now > T0
    rng = np.random.default_rng(4)
    for n in range(40):
        user, item, outcome = int(rng.integers(7)), int(rng.integers(23)), n % 2
        role = InteractionType.EXPOSED if outcome else InteractionType.FACTUAL
        of = engine.config.outcomes[outcome]
        rows = (np.array([k], np.int32) for k in (user, item))
        wanted = served.scores(engine, *rows, of.name, served.if_shown)[0, 0]
        event = one_event(user, item, outcome, 1.0, role, key=n, position=4, ts_ms=now)
        told = learner.step(event)
        assert told.served[0] == pytest.approx(np.clip(wanted, of.low, of.high), abs=3e-5), n
        assert told.served[0] != pytest.approx(told.prediction[0], abs=1e-4)
    nothing = learner.step(one_event(1, 2, 1, 0.0, InteractionType.PREDICT, ts_ms=now))
    assert np.isnan(nothing.served[0])


def test_the_errors_are_those_of_either_score_however_the_stream_is_cut():
    rng = np.random.default_rng(1)
    outcome, label = rng.integers(0, 2, 500).astype(np.int8), rng.integers(1, 6, 500).astype("f4")
    predicted, given = (rng.uniform(1, 5, 500).astype("f4") for _ in range(2))
    label[outcome == 1], predicted[outcome == 1] = 1.0, 0.5
    whole, cut = (Progressive(["rating", "click"], [False, True]) for _ in range(2))
    whole.update(outcome, label, predicted, given)
    for at in range(0, 500, 7):
        part = slice(at, at + 7)
        cut.update(outcome[part], label[part], predicted[part], given[part])
    mine = outcome == 0
    off, off_served = ((label - x)[mine].astype(float) for x in (predicted, given))
    wanted = {
        "count": int(mine.sum()),
        "mae": abs(off).mean(), "rmse": np.sqrt((off**2).mean()),
        "mae_served": abs(off_served).mean(), "rmse_served": np.sqrt((off_served**2).mean()),
    }  # fmt: skip
    assert whole.figures("rating") == pytest.approx(wanted)
    assert whole.figures("rating") == cut.figures("rating")
    assert whole.figures("click").keys() == {"count", "log_loss"}
    assert whole.spread("rating") == pytest.approx(wanted["rmse_served"])
    assert whole.spread("click") is None


def test_a_state_of_before_goes_on_and_its_spread_is_the_factual_heads_at_first():
    one = np.zeros(10, np.int8), np.full(10, 3.0, np.float32)
    old = Progressive(["rating"], [False])
    old.update(*one, np.full(10, 4.0, np.float32), np.full(10, 3.5, np.float32))
    state = old.state()
    del state["served"]
    new = Progressive(["rating"], [False])
    new.load(state)
    assert new.figures("rating").keys() == {"count", "mae", "rmse"}
    new.update(*one, np.full(10, 4.0, np.float32), np.full(10, 3.5, np.float32))
    said = new.figures("rating")
    assert (said["count"], said["mae"], said["mae_served"]) == (20, 1.0, 0.5)
    assert new.spread("rating") == 0.5  # of half of them
    new.load(state)
    assert new.spread("rating") == 1.0


def test_what_popularity_adds_is_in_one_error_and_not_in_the_other():
    """Clicks that popularity moves: what is expected follows it, and what is served does not."""
    engine = Engine(CONFIG, seed=1)
    engine.learner = recorder = Recorder(CONFIG, 1)
    engine.learn(list(record_batches(PopularityLoop(seed=1).events(30_000))))
    assert engine.model()["kappa"][1] > 0.1
    told = recorder.told()
    clicks = told["outcome"] == 1
    gap = (told["prediction"] - told["served"])[clicks]
    assert gap[-5_000:].std() > 0.02


def test_both_are_named_in_the_summary_the_model_and_the_metrics(place):  # noqa: F811
    place.send(ratings(300))
    trainer = place.learn_all()
    said = summary.of(trainer)
    assert all(0.5 < said[name] < 2.5 for name in BOTH)
    assert said["mae"] != said["mae_served"]
    figures = trainer.engine.progressive.figures("rating")
    assert {name: said[name] for name in BOTH} == {name: figures[name] for name in BOTH}
    model = json.loads(build.redis_client(place.settings).get(f"{place.prefix}:4:model"))
    assert model["metrics"]["rating"] == pytest.approx(figures)
    assert model["residual_sd"]["rating"] == pytest.approx(figures["rmse_served"])
    trainer._gauges()
    page = generate_latest(trainer.metrics.registry).decode()
    for name in BOTH:
        line = f'counterflow_loss{{kind="{name}",outcome="rating"}} {figures[name]}'
        assert line in page
