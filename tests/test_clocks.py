"""The wall clock may be set while the trainer runs: only stamps know of it."""

import re
import time
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from consumers import build
from tests.test_trainer import Place, expected, ratings


@pytest.fixture
def place(broker, prefix, redis_url, tmp_path):
    return Place(broker, prefix, redis_url, tmp_path / "snapshots")


class Wall:
    """A wall clock, as someone sets it."""

    def __init__(self):
        self.ahead_s = 0.0

    def __call__(self):
        return time.time() + self.ahead_s


def value(trainer, name):
    """Return a metric as it is scraped."""
    text = generate_latest(trainer.metrics.registry).decode()
    return float(re.search(rf"^counterflow_{name} (\S+)$", text, re.M)[1])


@pytest.mark.parametrize("set_by_s", [-3_600.0, 3_600.0])
def test_snapshots_and_upkeep_go_on_when_the_clock_is_set(place, monkeypatch, set_by_s):
    wall = Wall()
    monkeypatch.setattr(build, "time", SimpleNamespace(time=wall, monotonic=time.monotonic))
    place.send(ratings(40))
    trainer = build.trainer(place.settings, CollectorRegistry(), build.Event())
    try:
        trainer.start()
        trainer.run_until(trainer.source.ends())
        wall.ahead_s = set_by_s
        before = trainer.snapshot
        place.send(ratings(40, seed=1, start=40))
        build.redis_client(place.settings).flushall()  # upkeep writes all of it again
        for _ in range(400):
            trainer.turn()
            if trainer.snapshot > before and place.counts() == expected(
                [*ratings(40), *ratings(40, seed=1, start=40)]
            ):
                break
        else:
            pytest.fail(f"{trainer.snapshot} after {before}, {sum(place.counts().values())} events")
    finally:
        trainer.close()
    assert trainer.last_write_s - trainer.first_poll_s < 60
    assert trainer.learned == 80
    skewed = 40 if set_by_s < 0 else 0
    assert value(trainer, "clock_skew_total") == skewed
    assert value(trainer, "freshness_seconds_count") == 80 - skewed
    assert min(trainer.freshness_s) >= 0
