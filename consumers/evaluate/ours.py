"""Our model's settings for `evaluate coat`, and the search on the training log that found them.

In the random search each draw learns four fifths of the training log in one pass with replay. It is
judged on the remaining fifth by the squared error, weighted by inverse propensities of being rated
(`propensity.logistic`, estimated from the log alone), on three such splits. No test rating is used.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumers.evaluate.coat import Coat, Ratings
from consumers.evaluate.propensity import logistic
from stream.model.config import ModelConfig

Table = Callable[[Coat, Ratings, ModelConfig, int], NDArray[np.float64]]

DRAWS, SPLITS, CLIP = 350, 3, 0.02
REPLAY = 4  # how often each rating is learned again, as a trainer does while its queue is empty
CHUNK = 16  # ratings between two replays
CHOSEN: dict[str, Any] = dict(  # the best of DRAWS draws, rounded to three digits
    average=0.97,
    mix=1.0,
    shrink=0.145,
    robust_share=0.3,
    alpha=0.25,
    pairs=4,
    lr_user_bias=0.228,
    lr_item_bias=0.12,
    lr_feature_bias=0.0664,
    lr_user_factor=0.0945,
    lr_item_factor=0.0248,
    lr_feature_factor=0.0459,
    start_bias=4.8,
    start_factor=0.579,
    spread_factor=0.0287,
    spread_feature=0.0146,
    lr_exposure=0.0565,
    lr_exposure_bias=0.0565,
    start_exposure=0.0722,
    exposure_factors=32,
    session_factors=0,  # the log has no times, hence no sessions
    half_life_s=1e9,  # the same for popularity
)


def draw(rng: np.random.Generator) -> dict[str, Any]:
    """Return one draw of the search: each parameter within a factor of a starting value."""

    def near(value: float, low: float, high: float) -> float:
        return float(value * np.exp(rng.uniform(np.log(low), np.log(high))))

    exposure = near(0.2, 0.2, 1.5)
    return {
        "average": 0.97,
        "mix": float(rng.choice([0.75, 1.0, 1.0])),
        "shrink": near(1.0, 0.01, 0.3),
        "robust_share": float(rng.choice([0.2, 0.3, 0.5, 0.7])),
        "alpha": float(rng.choice([0.0, 0.0, 0.25])),
        "pairs": int(rng.choice([2, 4])),
        "lr_user_bias": near(0.38, 0.3, 1.5),
        "lr_item_bias": near(0.22, 0.4, 2.0),
        "lr_feature_bias": near(0.07, 0.4, 2.0),
        "lr_user_factor": near(0.2, 0.3, 2.0),
        "lr_item_factor": near(0.045, 0.4, 3.0),
        "lr_feature_factor": near(0.0375, 0.4, 3.0),
        "start_bias": near(4.3, 0.3, 3.0),
        "start_factor": near(0.2, 0.3, 3.0),
        "spread_factor": near(0.015, 0.3, 3.0),
        "spread_feature": near(0.07, 0.2, 2.0),
        "lr_exposure": exposure,
        "lr_exposure_bias": exposure,
        "start_exposure": near(0.05, 0.3, 5.0),
        "exposure_factors": int(rng.choice([8, 16, 32])),
        "half_life_s": 1e9,
    }


def search(coat: Coat, table: Table, config: ModelConfig, draws: int = DRAWS) -> dict[str, Any]:
    """Return the draw with the lowest weighted error on held-out ratings of the training log."""
    log = coat.train
    rated = np.zeros((coat.users, coat.items))
    rated[log.user, log.item] = 1.0
    weight = 1.0 / np.clip(logistic(rated, coat.user_hot, coat.item_hot), CLIP, 1.0)
    rng = np.random.default_rng(5)
    best: tuple[float, dict[str, Any]] = (np.inf, {})
    for _ in range(draws):
        chosen = draw(rng)
        errors = []
        for split in range(SPLITS):
            mixed = log.shuffled(100 + split)
            held, kept = (
                mixed.take(slice(len(mixed) // 5)),
                mixed.take(slice(len(mixed) // 5, None)),
            )
            told = table(coat, kept, replace(config, **chosen), split)[held.user, held.item]
            w = weight[held.user, held.item]
            errors.append(float((w * (np.clip(told, 1, 5) - held.value) ** 2).sum() / w.sum()))
        best = min(best, (float(np.mean(errors)), chosen), key=lambda found: found[0])
    return {"error": best[0], **best[1]}
