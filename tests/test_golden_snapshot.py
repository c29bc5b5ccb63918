"""A snapshot of the previous version is read by this one.

golden/snapshot-1.tar.gz was written by version 0.1 as it stood before windows knew first decisions
and hashes had a seed: attributes, prices that changed, open and closed windows,
outcomes that wait. told.json holds what that version said of it.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model_store.snapshots import Snapshots
from stream.engine import Engine, JoinConfig
from stream.framing import frame
from stream.model.config import ModelConfig
from stream.records import RecordBatch

ARCHIVE = Path(__file__).parent / "golden" / "snapshot-1.tar.gz"


@pytest.fixture
def told(tmp_path):
    """Unpack the archive into tmp_path; return what its maker said of it."""
    shutil.unpack_archive(ARCHIVE, tmp_path)
    return json.loads((tmp_path / "told.json").read_text())


@pytest.fixture
def engine(told, tmp_path):
    """Return an engine with the snapshot's state."""
    config = ModelConfig(**told["config"] | {"step": "sequential"})
    made = Engine(config, seed=3, window=10_000, join=JoinConfig(window_s=600.0))
    found = Snapshots(tmp_path).newest_valid()
    assert found is not None
    state, meta = found.state, found.meta
    assert meta["learned"] == 123
    made.load(state)
    return made


def rating(*values, ts_ms):
    data = b"".join(frame(n, 0, b"u", value.encode()) for n, value in enumerate(values))
    size = len(values)
    return RecordBatch(
        "counterflow.rating.v1", "rating", 0, 40, 40, 40 + size, ts_ms, ts_ms, False, size, data
    )


def test_it_loads_whole(engine, told):
    assert len(engine.users) == told["users"]
    assert len(engine.items) == told["items"]
    assert engine.joiner.open_exposures == told["open"]
    figures = engine.model()["effects"]
    assert figures["click"]["withheld"] > 0


def test_its_events_are_duplicates_and_its_ids_keep_their_rows(engine, told):
    ts_ms = json.loads(told["known"][0])["ts_ms"]
    again = engine.learn([rating(*told["known"], ts_ms=ts_ms)])
    assert again.duplicates == len(told["known"])
    assert again.learned == 0
    new = json.loads(told["known"][0]) | {"event_id": "new"}
    before = engine.learner.served_rows("user", np.arange(told["users"], dtype=np.int32)).events
    learned = engine.learn([rating(json.dumps(new), ts_ms=ts_ms)])
    assert learned.learned == 1
    assert len(engine.users) == told["users"]
    after = engine.learner.served_rows("user", np.arange(told["users"], dtype=np.int32)).events
    assert int((after - before).sum()) == 1


def test_what_it_became_is_saved_and_read_again(engine, told, tmp_path):
    ts_ms = json.loads(told["known"][0])["ts_ms"] + 10_000
    new = json.loads(told["known"][0]) | {"event_id": "new", "ts_ms": ts_ms}
    engine.learn([rating(json.dumps(new), ts_ms=ts_ms)])
    engine.close_windows()
    with Snapshots(tmp_path / "next") as snapshots:
        snapshots.save(engine.state(), {})
        found = snapshots.newest_valid()
    assert found is not None
    other = Engine(engine.config, seed=3, window=10_000, join=JoinConfig(window_s=600.0))
    other.load(found.state)
    for name, array in engine.state().items():
        np.testing.assert_array_equal(other.state()[name], array, err_msg=name)
