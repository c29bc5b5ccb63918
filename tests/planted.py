"""Rows whose answers are known: planted by hand, folded as the learner folds attributes in."""

import math

import numpy as np

from stream.inference.model import parse
from stream.inference.rows import ServedFeatures, ServedItems, ServedPairs, ServedUser
from stream.model.features import links_of

Y, D, E, H = 2, 4, 2, 2
OUTCOMES = [
    {"name": "rating", "link": "identity", "low": 1.0, "high": 5.0},
    {"name": "click", "link": "logit", "low": 0.0, "high": 1.0},
]
ITEMS = {
    "a": {"genre": ["Comedy", "Drama"], "price": 9.9, "new": True},
    "b": {"genre": ["Drama"], "price": 20.0, "new": False},
    "c": {"genre": ["Comedy"], "price": 5.0},
    "d": {},
    "e": {"genre": ["Drama", "Horror", "Comedy"], "price": 12.5, "new": True},
}
MODEL = {
    "epoch": 1,
    "factors": D,
    "exposure_factors": E,
    "outcomes": OUTCOMES,
    "rows": {
        "user": [2 * Y, D + E],
        "item": [2 * Y + H + 2, 2 * D + E],
        "feature": [2 * Y + H + 4, D],
    },
    "globals": [3.0, -1.0, 2.6, -1.5],
    "residual_sd": {"rating": 0.9, "click": 0.3},
    "kappa": [0.1, 0.2],
    "popularity_mean": [2.0, 2.0],
    "alpha": [0.3, 0.25],
    "alpha0": [0.2, 0.15],
    "level0": [0.05, -0.1],
    "theta": [1.0, 0.6, 0.4],
    "exposure": {"scale": [1.0, 0.8], "shift": [-2.0, -1.5], "clip": 0.02},
    "effects": {
        "click": {"value": 0.07, "interval": [0.05, 0.09], "shown": 900, "withheld": 100},
        "rating": {"value": 0.4, "interval": [0.2, 0.6], "shown": 90, "withheld": 10},
    },
    "paths": {},
    "controls": 110,
    "drift": {"click_loss_adwin": {"detections": 2, "last_ts_ms": 1_790_000_000_000}},
}
CENTER, SCALE, LOW, HIGH = 12.0, 6.0, 4.0, 25.0


def half(x):
    """Return x as float16 holds it."""
    return np.asarray(x, np.float16).astype(np.float32)


class Planted:
    """Own parts of items, attribute values and users; `items` folds them into served rows."""

    def __init__(self, seed=0, items=ITEMS, model=MODEL):
        rng = np.random.default_rng(seed)
        self.model, self.attributes = model, dict(items)
        n = len(items)
        self.ids = list(items)
        self.own_bias = rng.normal(0, 0.3, (n, 2 * Y + H + 2)).astype(np.float32)
        self.own_bias[:, -2] = np.log1p(rng.integers(0, 40, n))
        self.own_bias[:, -1] = 1.0
        self.own_vector = rng.normal(0, 0.3, (n, 2 * D + E)).astype(np.float32)
        self.names = list(
            dict.fromkeys(name for a in items.values() for name, _ in links_of("item", a))
        )
        self.feature_bias = rng.normal(0, 0.3, (len(self.names), 2 * Y + H + 4)).astype("f4")
        for row, name in zip(self.feature_bias, self.names, strict=True):
            row[-4:] = (LOW, HIGH, CENTER, SCALE) if name.endswith("#") else 0.0
        self.feature_vector = half(rng.normal(0, 0.3, (len(self.names), D)))
        self.user_bias = rng.normal(0, 0.3, 2 * Y).astype(np.float32)
        self.user_vector = half(rng.normal(0, 0.5, D + E))

    def folded(self, at, attributes):
        """Return bias and vector of an item's row if it had these attributes, one by one."""
        bias, vector = self.own_bias[at].astype(float), self.own_vector[at].astype(float)
        links = list(links_of("item", attributes))
        for name, value in links:
            if name.endswith("#"):
                value = (value - CENTER) / SCALE
            if name not in self.names:
                continue
            f, weight = self.names.index(name), value / math.sqrt(len(links))
            bias[: 2 * Y + H] += weight * self.feature_bias[f, : 2 * Y + H]
            vector[:D] += weight * self.feature_vector[f]
            vector[D : 2 * D] += weight * self.feature_vector[f]
        return bias, vector

    def rows(self, attributes=None):
        """Return the biases and vectors of all items, with other attributes where given."""
        made = [
            self.folded(at, {**self.attributes[item], **(attributes or {})})
            for at, item in enumerate(self.ids)
        ]
        return np.array([b for b, _ in made]), np.array([v for _, v in made])

    def items(self, attributes=None, events=50):
        """Return the items as inference takes them."""
        bias, vector = self.rows(attributes)
        counts = np.full(len(bias), events)
        return ServedItems(bias, vector, counts, counts, counts)

    def user(self, events=50):
        """Return the user as inference takes it."""
        return ServedUser(self.user_bias, self.user_vector, events, events, events)

    def features(self):
        """Return the attribute values as inference takes them."""
        count = len(self.names)
        return ServedFeatures(
            self.feature_bias, self.feature_vector, np.full(count, 100), np.ones(count, np.bool_)
        )

    def pairs(self, outcome="rating", attributes=None, **counts):
        """Return the user against all items."""
        model = parse(self.model)
        globals_ = np.array(self.model["globals"])
        return ServedPairs(
            model,
            model.outcomes[outcome],
            globals_,
            self.user(**counts),
            self.items(attributes, **counts),
        )
