"""A lasting trait of the user acts also when the item is shown: it stays in what is served.

The trait decides what is seen, and so the exposure's factors know it; do(shown) sets what is seen
and leaves the user as it is.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest

from consumers.evaluate import served
from stream.inference import intervals
from stream.inference.do import Do, contrast
from stream.inference.effect import showing
from stream.inference.explain import explain
from stream.inference.outcome import IF_SHOWN, shown
from stream.model import scalars as sc
from stream.model.learner import Learner
from stream.worlds import Adversarial, Confounded, PopularityLoop
from stream.worlds.base import BLOCK, Floats, interactions, logistic, times
from tests.test_causal import CONFIG, ids, learned, pairs_of


def error(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2)))


def within(a, b):
    """Return the mean correlation over items, user by user."""
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]))


def everyone(engine, kind, world):
    vocabulary = engine.users if kind == "user" else engine.items
    rows = [vocabulary.find(id_.encode()) for id_ in ids(world, kind)]
    return np.array(rows, np.int32)


def if_shown(engine, world, outcome):
    """Return what a list by outcome is ranked by (users, items)."""
    users, items = (everyone(engine, kind, world) for kind in ("user", "item"))
    return served.scores(engine, users, items, outcome, served.if_shown)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_outcome_if_shown_keeps_what_the_user_likes(seed):
    """With the term cut the error was .35 to .38, and the correlation within users .75 to .78."""
    world = Confounded(seed=seed)
    found = if_shown(learned(world.events(100_000)), world, "rating")
    assert error(found, world.mean) < 0.25
    assert within(found, world.mean) > 0.95


def test_predictive_intervals_know_that_a_pair_is_seldom_rated():
    """By the residuals alone, which are of pairs that are rated, they held .83 of these."""
    world = Confounded(seed=1)
    engine = learned(world.events(20_000))
    draws = np.random.default_rng(1)
    held = []
    for k, pairs in enumerate(pairs_of(engine, ids(world, "user"), ids(world, "item"), "rating")):
        noise = draws.uniform(-world.noise, world.noise, len(pairs))
        low, high = intervals.predictive(pairs, shown(pairs, IF_SHOWN), IF_SHOWN)
        one = world.mean[k] + noise
        held.append((low <= one) & (one <= high))
    assert np.mean(held) > 0.88


@dataclass(frozen=True)
class Chosen(Confounded):
    """Windows alone, on what suits the user's trait; one in ten is withheld by chance.

    P(click) = sigmoid(base + lift_i + trait) if shown, sigmoid(base + carried * trait) if withheld.
    """

    pull: float = 1.2
    carried: float = 1.0

    @cached_property
    def trait(self) -> Floats:
        return self.pull * self.latent[:, None] * self.response

    @cached_property
    def treated(self) -> Floats:
        lift = self.draws(-1, 2).uniform(0.0, 1.0, self.items)
        return logistic(self.base + lift + self.trait)

    @cached_property
    def control(self) -> Floats:
        return logistic(self.base + self.carried * self.trait)

    def _decided(self, rng, number, user):
        chosen = (rng.random((BLOCK, 1)) > self.selection.cumsum(1)[user]).sum(1)
        item = np.minimum(chosen, self.items - 1)
        is_shown = rng.random(BLOCK) < 0.9
        chance = np.where(is_shown, self.treated[user, item], self.control[user, item])
        return interactions(
            user, item, times(number), slate=number * BLOCK + np.arange(BLOCK), position=1,
            show_probability=0.9, shown=is_shown, click=rng.random(BLOCK) < chance,
        )  # fmt: skip


@pytest.fixture(scope="module", params=[1.0, 0.0], ids=["both arms", "the shown arm alone"])
def chosen(request):
    """Yield the world, and each user's pairs as a server has them."""
    world = Chosen(seed=1, carried=request.param)
    engine = learned(world.events(100_000))
    return world, list(pairs_of(engine, ids(world, "user"), ids(world, "item"), "click"))


def test_the_term_stays_in_the_arms_that_carry_it(chosen):
    """In neither arm or in both the error of the effect is .12 or .19, in the shown alone .2."""
    world, users = chosen
    alpha, alpha0 = users[0].model.confounder_slope[1], users[0].model.confounder_slope0[1]
    assert alpha > 0.8
    assert alpha0 == pytest.approx(world.carried * alpha, abs=0.35)
    found = np.array([showing(pairs).value for pairs in users])
    effect = world.treated - world.control
    assert error(found, effect) < 0.11
    assert abs(found.mean() - effect.mean()) < 0.04
    assert error(found.mean(0), effect.mean(0)) < 0.06
    assert within(np.array([shown(p, IF_SHOWN).mean for p in users]), world.treated) > 0.9


def test_intervals_hold_the_planted_outcomes_and_effects_with_the_term_in(chosen):
    world, users = chosen
    outcome, effect = [], []
    for k, pairs in enumerate(users):
        low, high = intervals.expected(pairs, shown(pairs, IF_SHOWN), IF_SHOWN)
        outcome.append((low <= world.treated[k]) & (world.treated[k] <= high))
        low, high = contrast(pairs, Do(shown=True)).interval
        planted = world.treated[k] - world.control[k]
        effect.append((low <= planted) & (planted <= high))
    assert np.mean(outcome) >= 0.93
    assert np.mean(effect) >= 0.93


def test_an_explanation_has_the_term_in_the_score_and_nothing_of_it_cut(chosen):
    _, users = chosen
    why = explain(users[0].take([0]), IF_SHOWN, {})
    terms = {term.name: term for term in why.terms}
    assert terms["confounder"].value == pytest.approx(
        float(users[0].model.confounder_slope[1] * users[0].lasting[0])
    )
    assert terms["confounder"].value != 0.0 and terms["confounder"].clipped == 0.0
    assert why.sum == pytest.approx(float(shown(users[0], IF_SHOWN).eta[0]))


# the layout of rows for which other tests have compiled blocks too
SHAPED = replace(CONFIG, exposure_factors=4, session_factors=4, average=0.9)
STEPS = [SHAPED, replace(SHAPED, step="blocks", device="cpu", threads=2)]


@pytest.mark.parametrize("config", STEPS, ids=["sequential", "blocks"])
def test_without_a_confounder_nothing_is_added(config):
    for world in (Adversarial(seed=1), PopularityLoop(seed=1)):
        engine = learned(world.events(4_000), config)
        said = engine.learner.describe()
        assert [said[name] for name in ("alpha", "alpha0", "level0")] == [[0.0, 0.0]] * 3


def test_both_steps_find_the_same_share_of_the_control_arm():
    found = []
    for config in STEPS:
        engine = learned(Chosen(seed=2).events(6_000), config)
        found.append(engine.learner.scalars.withheld)
    assert found[0][1, sc.C_BB] > 20
    np.testing.assert_allclose(found[0], found[1], rtol=0.1, atol=0.05)


def test_a_state_of_before_the_control_arm_was_asked_still_loads():
    engine = learned(Chosen(seed=2).events(3_000))
    state = engine.learner.state()
    assert state["scalars.withheld"].any()
    del state["scalars.withheld"]
    old = Learner(CONFIG, seed=1)
    old.scalars.withheld += 1.0
    old.load(state)
    assert not old.scalars.withheld.any()
