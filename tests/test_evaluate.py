"""Laws of the measurements: known answers, scikit-uplift's numbers, and mistakes said plainly."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from consumers import cli
from consumers.evaluate import (
    coat,
    factorization,
    lift,
    metrics,
    movielens,
    peers,
    policy,
    propensity,
    shopping,
    table,
    two_model,
    uplift,
)
from consumers.evaluate.feed import Feed, FeedEvent, Recorder, event
from stream.effects import AverageEffect
from stream.engine import Engine
from stream.errors import Inconsistent
from stream.model.config import ModelConfig

CONFIG = ModelConfig(factors=8, step="sequential")


def write(path, columns):
    """Write columns by name as a CSV file and return its path."""
    with path.open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
    return str(path)


# figures of merit ----------------------------------------------------------------------------


def test_auc_counts_pairs_and_ties_as_half():
    relevant, score = [True, False, True, False, False], [0.9, 0.9, 0.2, 0.1, 0.5]
    pairs = [(0.9, 0.9), (0.9, 0.1), (0.9, 0.5), (0.2, 0.9), (0.2, 0.1), (0.2, 0.5)]
    wins = sum((a > b) + (a == b) / 2 for a, b in pairs)
    assert metrics.auc(np.array(relevant), np.array(score)) == pytest.approx(wins / 6)
    assert np.isnan(metrics.auc(np.array([True]), np.array([1.0])))


def test_ndcg_is_by_user_and_one_for_a_user_without_relevant_pairs():
    user = np.array([1, 0, 1, 0, 2, 1])
    relevant = np.array([True, True, False, False, False, False])
    score = np.array([0.1, 0.9, 0.8, 0.3, 0.5, 0.2])
    third = 1 / np.log2(4)  # user 1's relevant pair stands third
    assert metrics.ndcg(user, relevant, score, 5) == pytest.approx((1 + third + 1) / 3)
    assert metrics.ndcg(user, relevant, score, 2) == pytest.approx((1 + 0 + 1) / 3)


def test_the_ideal_of_ndcg_holds_k_relevant_pairs_at_most():
    one = np.zeros(8, int)
    relevant = np.arange(8) < 7
    assert metrics.ndcg(one, relevant, -np.arange(8.0), 5) == pytest.approx(1)


def test_a_held_out_item_is_placed_among_the_candidates_behind_its_equals():
    score = np.array([5.0, 3.0, 3.0, 9.0, 1.0])
    among = np.array([True, True, True, False, True])
    assert [metrics.rank_of(score, item, among) for item in (0, 1, 2, 4)] == [0, 2, 2, 3]
    assert metrics.hit(np.array([0, 9, 10, 50])) == 0.5
    assert metrics.ndcg_one(np.array([0, 2, 10])) == pytest.approx((1 + 0.5 + 0) / 3)


def test_a_paired_difference_drops_what_seeds_share():
    seed = np.array([1.0, 5.0, 9.0])
    ours, theirs = [{"x": s + 1} for s in seed], [{"x": s + d} for s, d in zip(seed, (0, 1, -1))]
    found = metrics.paired(ours, theirs)["x"]
    assert found["difference"] == pytest.approx(1)
    assert found["se"] == pytest.approx(1 / np.sqrt(3))
    assert metrics.over_seeds(ours)["x_sd"] == pytest.approx(4)


# Numbers of scikit-uplift 0.5.1: qini_auc_score and uplift_auc_score of the same columns.
GOLDEN = [
    (0, 500, 3, 0.5, 0.06246508972171934, 0.05626205652949229),
    (1, 1000, 1, 0.5, 0.08898662213414571, 0.0794429360606496),
    (2, 200, 8, 0.9, 0.0883073852529243, 0.08397164023518058),
    (3, 2000, 2, 0.2, 0.04033136155861925, 0.039226827793073786),
]


@pytest.mark.parametrize(("seed", "n", "digits", "share", "qini", "auuc"), GOLDEN)
def test_qini_and_auuc_are_those_of_scikit_uplift(seed, n, digits, share, qini, auuc):
    r = np.random.default_rng(seed)
    x, t = r.random(n), (r.random(n) < share).astype(int)
    y = (r.random(n) < 0.2 + 0.3 * x * t).astype(int)
    effect = np.round(x + r.normal(0, 0.5, n), digits)  # few digits: many ties
    assert lift.qini(y, effect, t) == pytest.approx(qini, abs=1e-12)
    assert lift.auuc(y, effect, t) == pytest.approx(auuc, abs=1e-12)


def test_the_perfect_order_has_a_qini_of_one():
    r = np.random.default_rng(0)
    t, y = r.integers(0, 2, 300), r.integers(0, 2, 300)
    assert lift.qini(y, y * t - y * (1 - t), t) == pytest.approx(1)


# the peers -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Return a small world in Coat's format: taste is an attribute of user and item."""
    r = np.random.default_rng(0)
    users, items = 40, 30
    taste, kind = r.integers(0, 2, users), r.integers(0, 2, items)
    value = np.where(taste[:, None] == kind, 4, 2) + r.integers(0, 2, (users, items))
    chance = np.where(value >= 4, 0.5, 0.1)  # people rate what they like
    rated = r.random((users, items)) < chance
    random = r.random((users, items)) < 0.3
    (tmp_path / "user_item_features").mkdir()
    tables = {
        "train": value * rated, "test": value * random, "propensities": chance,
        "user_item_features/user_features": np.eye(2)[taste],
        "user_item_features/item_features": np.eye(2)[kind],
    }  # fmt: skip
    for name, array in tables.items():
        np.savetxt(tmp_path / f"{name}.ascii", array, fmt="%g")
    for name in ("user", "item"):
        at = tmp_path / "user_item_features" / f"{name}_features_map.txt"
        at.write_text("side:left\nside:right", encoding="utf-8")
    return tmp_path


def test_coat_is_read_whole(folder):
    read = coat.load(folder)
    assert (read.users, read.items) == (40, 30)
    assert len(read.train) == (np.loadtxt(folder / "train.ascii") > 0).sum()
    assert read.user_attributes[0] in ({"side": "left"}, {"side": "right"})
    again = read.train.shuffled(3)
    assert sorted(zip(again.user, again.item, again.value, strict=True)) == sorted(
        zip(read.train.user, read.train.item, read.train.value, strict=True)
    )
    assert not np.array_equal(again.user, read.train.user)


def test_a_missing_or_damaged_file_is_named(folder, tmp_path):
    with pytest.raises(Inconsistent, match=r"nowhere.*train\.ascii"):
        coat.load(tmp_path / "nowhere")
    (folder / "test.ascii").write_text("1 2\n3\n", encoding="utf-8")
    with pytest.raises(Inconsistent, match=r"test\.ascii"):
        coat.load(folder)
    np.savetxt(folder / "test.ascii", np.zeros((2, 2)))
    with pytest.raises(Inconsistent, match="features say"):
        coat.load(folder)


def test_every_method_learns_the_world(folder):
    figures = shopping.run(str(folder), 2, CONFIG)
    assert set(figures) == {
        "counterflow", "mf", "ips_mf", "snips_mf", "mf_attributes", "mf_attributes_replay",
        "mf_attributes_batch", "paired", "seeds",
    }  # fmt: skip
    for name in ("counterflow", *peers.PEERS):
        assert set(figures[name]) == {
            f"{f}{sd}" for f in ("mse", "mae", "auc", "ndcg5") for sd in ("", "_sd")
        }
        assert figures[name]["auc"] > 0.6, name
    assert figures["counterflow"]["auc"] > 0.8
    assert figures["mf_attributes"]["auc"] > 0.8
    gap = figures["counterflow"]["auc"] - figures["mf_attributes"]["auc"]
    assert figures["paired"]["auc"]["difference"] == pytest.approx(gap)


def test_weights_undo_self_selection(folder):
    read = coat.load(folder)
    ratings = read.train
    truth = np.loadtxt(folder / "test.ascii")
    seen = ratings.value.mean()
    mean = truth[truth > 0].mean()
    for name in ("ips_mf", "snips_mf"):
        peer = peers.PEERS[name]
        weight = peers.weights(peer, read, ratings, peer.propensity(read, ratings))
        found = np.average(ratings.value, weights=weight)
        assert abs(found - mean) < 0.2 * abs(seen - mean)
    assert weight.mean() == pytest.approx(1)  # SNIPS


def test_logistic_propensities_find_who_rates_what():
    r = np.random.default_rng(1)
    user, item = np.eye(3)[r.integers(0, 3, 200)], np.eye(4)[r.integers(0, 4, 200)]
    logit = -2 + user @ r.normal(0, 1, (3, 4)) @ item.T
    truth = 1 / (1 + np.exp(-logit))
    found = propensity.logistic(r.random(truth.shape) < truth, user, item)
    assert np.abs(found - truth).max() < 0.05


def test_one_pass_sees_each_rating_when_it_comes_and_replays_only_the_past():
    sequence = factorization.one_pass(50, 3, 0).reshape(50, 4)
    assert sequence[:, 0].tolist() == list(range(50))
    assert (sequence <= np.arange(50)[:, None]).all()


def test_search_takes_no_test_rating(folder):
    read = coat.load(folder)
    peer = replace(peers.PEERS["mf_attributes"], trials=5)
    blind = replace(read, test=read.test.take(slice(0, 0)))
    assert peers.tune(peer, read) == peers.tune(peer, blind)


# trials --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """Return a CSV trial whose segment `a` responds by +.4 and `b` not at all, and the truth."""
    r = np.random.default_rng(2)
    n = 8_000
    segment, age = r.choice(["a", "b"], n), r.integers(18, 70, n)
    t = (r.random(n) < 0.5).astype(int)
    effect = np.where(segment == "a", 0.4, 0.0)
    y = (r.random(n) < 0.1 + 0.004 * (age - 18) + effect * t).astype(int)
    columns = {"t": t, "y": y, "segment": segment, "age": age, "spent": y * 10 + r.normal(0, 1, n)}
    return write(tmp_path_factory.mktemp("trial") / "trial.csv", columns), effect.mean()


def covers(figures, truth):
    """Tell whether the interval holds the truth and is no wider than .1."""
    low, high = figures["interval"]
    return low <= truth <= high and high - low < 0.1 and low < figures["ate"] < high


def test_both_find_the_effect_and_who_responds(trial):
    path, truth = trial
    found = uplift.run(path, "t", "y", ["segment", "age"], config=CONFIG)
    for name in ("counterflow", "two_model"):
        assert covers(found[name], truth), name
        assert found[name]["qini"] > 0.1, name
        assert found[name]["auuc"] > 0.1, name
    assert found["counterflow"]["qini"] > 0.9 * found["two_model"]["qini"]


def test_an_outcome_that_is_a_number_keeps_its_scale(trial):
    path, truth = trial
    found = uplift.run(path, "t", "spent", ["segment", "age"], config=CONFIG)
    for name in ("counterflow", "two_model"):
        low, high = found[name]["interval"]
        assert low <= 10 * truth <= high, name
        assert found[name]["auuc"] is None


def test_the_baseline_alone_finds_the_effect(trial):
    path, truth = trial
    data = table.read(path)
    t, y = data.arms("t"), data.numbers("y")
    arms = uplift.crossed(data.design(["segment", "age"]), t, y, 4_000)
    found = uplift.figures(arms, t, y, np.full(len(t), np.nan), 4_000)
    assert covers(found, truth)
    shuffled = np.random.default_rng(0).permutation(t)  # a placebo
    nothing = uplift.figures(arms, shuffled, y, np.full(len(t), np.nan), 4_000)
    assert nothing["interval"][0] < 0 < nothing["interval"][1]


def test_the_average_effect_is_that_of_a_stream():
    r = np.random.default_rng(3)
    t, y = r.integers(0, 2, 500), r.random(500)
    arms, chance = r.random((500, 2)), np.full(500, 0.5)
    whole, halves = AverageEffect(), AverageEffect()
    whole.update(t == 1, y, chance, arms[:, 0], arms[:, 1])
    for at in (slice(0, 100), slice(100, None)):
        halves.update(t[at] == 1, y[at], chance[at], arms[at, 0], arms[at, 1])
    assert whole.figures() == halves.figures()


def test_logistic_regression_finds_the_coefficients():
    r = np.random.default_rng(4)
    x = np.column_stack([np.ones(50_000), r.normal(size=(50_000, 2))])
    truth = np.array([-1.0, 0.5, -0.25])
    y = (r.random(len(x)) < 1 / (1 + np.exp(-x @ truth))).astype(float)
    assert two_model.logistic(x, y) == pytest.approx(truth, abs=0.05)
    assert two_model.linear(x, x @ truth) == pytest.approx(truth, abs=1e-3)
    assert np.isfinite(two_model.logistic(x[:50], np.zeros(50))).all()  # nobody responds


@pytest.mark.parametrize(
    ("columns", "arguments", "said"),
    [
        ({"t": [0, 1], "y": [0, 1]}, ("t", "z", ["t"]), "no column 'z'"),
        ({"t": [0, 2], "y": [0, 1]}, ("t", "y", []), "line 3: 't' is '2', not 0 or 1"),
        ({"t": [0, 0], "y": [0, 1]}, ("t", "y", []), "no row is treated"),
        ({"t": [1, 1], "y": [0, 1]}, ("t", "y", []), "no row is control"),
        ({"t": [0, 1], "y": [0, "much"]}, ("t", "y", []), "line 3: 'y' is 'much', not a number"),
        ({"t": [0, 1], "y": [0, 1]}, ("t", "y", ["y"]), "is both a feature and the treatment"),
        ({"t": [0, 0, 1, 1], "y": [0, 1, 0, 1]}, ("t", "y", []), "first half of the rows"),
        ({"t": [0, 1, 0, 1], "y": [7] * 4}, ("t", "y", []), "the outcome is always 7"),
        ({"t": [], "y": []}, ("t", "y", []), "has no rows"),
    ],
)
def test_a_wrong_trial_is_said_in_one_line(tmp_path, columns, arguments, said):
    path = write(tmp_path / "wrong.csv", columns)
    with pytest.raises(Inconsistent, match=said) as caught:
        uplift.run(path, *arguments, config=CONFIG)
    assert caught.value.remedy
    assert "\n" not in caught.value.message


def test_cells_are_numbers_texts_or_unknown(tmp_path):
    path = write(tmp_path / "t.csv", {"age": ["1", "", "3.5"], "city": ["x", "", "7"]})
    data = table.read(path)
    assert data.attributes(["age", "city"]) == [
        {"age": 1.0, "city": "x"}, {}, {"age": 3.5, "city": "7"},
    ]  # fmt: skip
    design = data.design(["age", "city"])
    assert design.shape == (3, 1 + 2 + 3)  # number and whether it is known; three levels
    assert np.isfinite(design).all()


def test_a_ragged_file_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n", encoding="utf-8")
    with pytest.raises(Inconsistent, match="row 2: 1 cells, but the header has 2"):
        table.read(tmp_path / "t.csv")
    (tmp_path / "u.csv").write_text("a,a\n1,2\n", encoding="utf-8")
    with pytest.raises(Inconsistent, match="distinct names"):
        table.read(tmp_path / "u.csv")


# policies ------------------------------------------------------------------------------------


def logged(path, n=6_000, actions=3, seed=5):
    """Write a log whose right action is the context's own, and return its path and truths."""
    r = np.random.default_rng(seed)
    context = r.integers(0, actions, n)
    lean = r.dirichlet(np.ones(actions) * 5, n)
    action = np.array([r.choice(actions, p=p) for p in lean])
    reward = (r.random(n) < np.where(action == context, 0.7, 0.2)).astype(int)
    columns = {
        "action": [f"a{a}" for a in action],
        "reward": reward,
        "propensity": lean[np.arange(n), action],
        "context": [f"c{c}" for c in context],
        "same": lean[np.arange(n), action],
    }
    return write(path, columns), {"uniform": (0.7 + 0.2 * (actions - 1)) / actions, "best": 0.7}


def test_a_known_policy_has_its_known_value(tmp_path):
    path, truth = logged(tmp_path / "log.csv")
    found = policy.run(path, "uniform", config=CONFIG)
    for estimator in ("ips", "snips", "dr"):
        low, high = found[estimator]["interval"]
        assert low <= truth["uniform"] <= high, estimator
        assert high - low < 0.1
    assert 0 < found["dr"]["ess"] <= found["n"] == 6_000


def test_the_logging_policy_earns_what_it_earned(tmp_path):
    path, _ = logged(tmp_path / "log.csv")
    found = policy.run(path, "same", config=CONFIG)
    assert found["ips"]["value"] == pytest.approx(found["logged"]["value"])
    assert found["snips"]["ess"] == pytest.approx(found["n"])
    assert found["dr"]["value"] is None  # a column tells of the logged action alone


def test_a_column_says_all_where_there_are_two_actions(tmp_path):
    path, _ = logged(tmp_path / "log.csv", actions=2)
    found = policy.run(path, "same", config=CONFIG)
    assert found["dr"]["value"] == pytest.approx(found["ips"]["value"], abs=0.05)


def test_the_learned_policy_is_better_than_the_log_and_no_better_than_the_best(tmp_path):
    path, truth = logged(tmp_path / "log.csv")
    found = policy.run(path, "model", config=CONFIG)
    assert found["logged"]["value"] + 0.1 < found["dr"]["value"] < truth["best"] + 0.05


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"propensity": ["0.5", "0"]}, "line 3: 'propensity' is '0', not a probability above 0"),
        ({"propensity": ["0.5", "1.5"]}, "not a probability"),
        ({"position": ["1", "0"]}, "not an integer from 1"),
        ({"action": ["x", "x"]}, "only one action"),
        ({"reward": ["", "1"]}, "line 2: 'reward' is '', not a number"),
    ],
)
def test_a_wrong_log_is_said_in_one_line(tmp_path, change, said):
    columns = {"action": ["x", "y"], "reward": ["0", "1"], "propensity": ["0.5", "0.5"]}
    with pytest.raises(Inconsistent, match=said):
        policy.run(write(tmp_path / "log.csv", columns | change), config=CONFIG)


# streams -------------------------------------------------------------------------------------


def test_what_came_before_is_counted():
    assert movielens.earlier(np.array([5, 3, 5, 5, 3])).tolist() == [0, 0, 1, 2, 1]


def small_events(users=30, items=20, n=600, seed=6):
    """Return a data set's events: everyone likes the even items, and dislikes the odd ones."""
    r = np.random.default_rng(seed)
    pairs = [divmod(int(p), items) for p in r.permutation(users * items)[:n]]
    events = [event("item", 0, event_id=f"m{i}", item_id=str(i)) for i in range(items)]
    events += [
        event("rating", k, event_id=f"r{k}", user_id=str(u), item_id=str(i), value=5 - 3 * (i % 2))
        for k, (u, i) in enumerate(pairs)
    ]
    return [
        movielens.datasets.DatasetEvent(
            e.kind, json.loads(e.value)["item_id"].encode(), e.value, e.ts_ms
        )
        for e in events
    ]


def small_stream(**named):
    return movielens.read(small_events(**named))


def test_the_figures_of_movielens_name_the_driver_that_learned(monkeypatch):
    small = SimpleNamespace(events=small_events)
    monkeypatch.setattr(movielens.datasets, "load", lambda name: small)
    found = movielens.run(CONFIG)
    assert found["learning_step"] == {
        "driver": "sequential", "device": "cpu", "threads": 1, "block": 1,
        "why": "model.step is sequential",
    }  # fmt: skip
    assert {"mae", "rmse", "segments", "hr10", "ndcg10", "held_out"} < found.keys()


def test_a_last_liked_rating_is_held_out_and_found_again():
    stream = small_stream(n=450)
    held = movielens.last_liked(stream)
    assert (stream.value[held] >= 3).all()
    assert len(set(stream.user[held].tolist())) == len(held)
    for rating in held.tolist():
        after = (np.arange(450) > rating) & (stream.user == stream.user[rating])
        assert (stream.value[after] < 3).all()
    assert len(stream.without(held)) == len(stream.events) - len(held)
    found = movielens.held_out(stream, CONFIG, 0)
    assert found["hr10"]["outcome"] > 0.9


def test_progressive_errors_are_those_of_the_engine():
    stream = small_stream()
    found = movielens.progressive(stream, CONFIG, 0)
    engine = Engine(CONFIG, 0)
    Feed(engine).learn(stream.events)
    said = engine.progressive.figures("rating")
    assert found["mae"] == pytest.approx(said["mae"], rel=1e-6)
    assert found["rmse"] == pytest.approx(said["rmse"], rel=1e-6)
    assert found["mae_served"] == pytest.approx(said["mae_served"], rel=1e-6)
    assert found["rmse_served"] == pytest.approx(said["rmse_served"], rel=1e-6)
    assert found["mae_served"] != pytest.approx(said["mae"], rel=1e-6)
    parts = found["segments"]
    for pair in (("new_users", "known_users"), ("popular_items", "tail_items")):
        assert sum(parts[name]["count"] for name in pair) == 600
    assert parts["known_users"]["mae"] < parts["new_users"]["mae"]


def test_a_refused_event_stops_the_feed():
    feed = Feed(Engine(CONFIG))
    with pytest.raises(Inconsistent, match="bad_id"):
        feed.learn([event("item", 0, event_id="x", item_id="")])


def test_how_the_feed_is_polled_changes_nothing(monkeypatch):
    stream = small_stream()
    told = []
    for size in (7, 10_000):
        monkeypatch.setattr("consumers.evaluate.feed.POLL", size)
        engine = Engine(CONFIG)
        engine.learner = recorder = Recorder(CONFIG)
        Feed(engine).learn([FeedEvent(*e) for e in stream.events])
        told.append(recorder.told()["prediction"])
    assert np.array_equal(*told)


# the command ---------------------------------------------------------------------------------


def test_the_command_prints_one_object(folder, capfdbinary):
    assert cli.main(["evaluate", "coat", "--data", str(folder), "--seeds", "1", "--json"]) == 0
    out = capfdbinary.readouterr().out.splitlines()
    assert len(out) == 1
    assert json.loads(out[0])["counterflow"]["auc"] > 0.8


def test_the_command_prints_lines_for_a_reader(tmp_path, capsys):
    path, _ = logged(tmp_path / "log.csv", n=300)
    assert cli.main(["evaluate", "policy", "--data", path, "--target", "uniform"]) == 0
    assert "snips.value" in capsys.readouterr().out


def test_a_missing_file_is_one_line_and_a_remedy(tmp_path, capsys):
    assert cli.main(["evaluate", "policy", "--data", str(tmp_path / "none.csv")]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 2
    assert "none.csv" in said[0]


def test_wrong_use_is_two():
    for wrong in (["evaluate"], ["evaluate", "coat", "--data", "x", "--seeds", "0"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(wrong)
        assert caught.value.code == 2
