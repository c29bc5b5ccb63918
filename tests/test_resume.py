"""Going on from a snapshot, and the choices where it cannot be: through the command line."""

import hashlib
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import orjson
import pytest
import safetensors.numpy
from kafka import KafkaAdminClient, TopicPartition

from consumers import playground, settings, topics
from consumers.kafka import KafkaSource
from model_store.snapshots import Snapshots
from stream.errors import Inconsistent
from tests.test_trainer import Place, expected, place, ratings

__all__ = ["place"]  # the fixture


def command(place: Place, *words: str, **chosen: str):
    """Return the ended process; `chosen` are settings as section__key."""
    named = {f"COUNTERFLOW_{name.upper()}": value for name, value in chosen.items()}
    return subprocess.run(
        [sys.executable, "-m", "consumers", *words],
        env=os.environ | place.environ | named, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def train(place: Place, *words: str, **chosen: str) -> dict[str, object]:
    """Return the summary of a trainer that learned to the end."""
    done = command(place, "train", "--until-end", *words, **chosen)
    assert done.returncode == 0, done.stderr
    return orjson.loads(done.stdout.splitlines()[-1])


def refused(place: Place, *words: str, **chosen: str) -> tuple[str, str]:
    """Return the reason and the remedy of a trainer that did not start."""
    done = command(place, "train", "--until-end", *words, **chosen)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    reason, remedy = done.stderr.splitlines()[-2:]
    assert reason.startswith("counterflow: ") and remedy.startswith("  ")
    return reason, remedy


def folder(place: Place) -> Path:
    return Path(place.environ["COUNTERFLOW_SNAPSHOTS__DIR"])


def files(at: Path) -> dict[str, bytes]:
    """Every file of the snapshots there, by its path; neither lock nor epoch."""
    return {str(path.relative_to(at)): path.read_bytes() for path in at.glob("snapshot-*/*")}


def sealed(path: Path, manifest: dict[str, object]) -> None:
    body = orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)
    seal = hashlib.sha256(body).hexdigest().encode()
    (path / "manifest.json").write_bytes(body + b"\n" + seal + b"\n")


def rewritten(path: Path, manifest=lambda m: None, state=lambda s: None, seal=True) -> None:
    """The snapshot is whole after the call, but for what these change; unsealed: as by hand."""
    file = path / "state.safetensors"
    arrays = safetensors.numpy.load_file(file)
    state(arrays)
    safetensors.numpy.save_file(arrays, file)
    data = file.read_bytes()
    held = orjson.loads((path / "manifest.json").read_bytes().partition(b"\n")[0])
    held["files"]["state.safetensors"] = {
        "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    if seal:
        manifest(held)
        sealed(path, held)
    else:
        sealed(path, held)
        old = (path / "manifest.json").read_bytes().partition(b"\n")[2]
        manifest(held)
        body = orjson.dumps(held, option=orjson.OPT_SORT_KEYS)
        (path / "manifest.json").write_bytes(body + b"\n" + old)


def without(*path: str):
    def change(manifest):
        for name in path[:-1]:
            manifest = manifest[name]
        del manifest[path[-1]]

    return change


def with_(value: object, *path: str):
    def change(manifest):
        for name in path[:-1]:
            manifest = manifest[name]
        manifest[path[-1]] = value

    return change


def learner_version(state):
    state["learner.shape"][0] += 1


def wider(state):
    state["learner.user.rows"] = np.hstack([state["learner.user.rows"]] * 2)


def longer(state):
    state["drift.open"] = np.zeros((9, 3))


# what is done to the newest of two snapshots, and what the refusal names
NOT_OURS = {
    "a newer format": ({"manifest": with_(2, "format")}, "format 2"),
    "a newer format, sealed otherwise": (
        {"manifest": with_(2, "format"), "seal": False}, "format 2",
    ),
    "a format as text": ({"manifest": with_("1", "format")}, "format '1'"),
    "no format": ({"manifest": without("format")}, "format"),
    "no meta": ({"manifest": without("meta")}, "`meta`"),
    "no files": ({"manifest": without("files")}, "`files`"),
    "files of another kind": ({"manifest": with_([], "files")}, "files"),
    "no offsets": ({"manifest": without("meta", "positions")}, "`positions`"),
    "offsets of another kind": ({"manifest": with_([["a"]], "meta", "positions")}, "positions"),
    "no epoch": ({"manifest": without("meta", "epoch")}, "`epoch`"),
    "a newer learner": ({"state": learner_version}, "shape"),
    "no array": ({"state": lambda s: s.pop("users.hashes")}, "hashes"),
    "no partitions": ({"state": lambda s: s.pop("partitions")}, "partitions"),
    "no learner": ({"state": lambda s: s.pop("learner.shape")}, "learner.shape"),
    "wider rows": ({"state": wider}, "learner.user.rows"),
    "more outcomes": ({"state": longer}, "shape"),
}  # fmt: skip


MORE = ratings(50, seed=2, start=200)  # sent to some after their snapshot


@pytest.fixture(scope="module")
def module_redis():
    with playground.redis_server() as url:
        yield url


def learned_twice(broker: str, redis_url: str, at: Path) -> Place:
    """Return a place where two snapshots were taken, after 100 and 200 ratings."""
    made = Place(broker, f"t{uuid.uuid4().hex[:12]}", redis_url, at)
    for part in (ratings(100), ratings(100, seed=1, start=100)):
        made.send(part)
        made.learn_all()
    return made


@pytest.fixture(scope="module")
def learned(broker, module_redis, tmp_path_factory):
    return learned_twice(broker, module_redis, tmp_path_factory.mktemp("snapshots"))


@pytest.fixture(scope="module")
def behind(broker, module_redis, tmp_path_factory):
    made = learned_twice(broker, module_redis, tmp_path_factory.mktemp("behind"))
    made.send(MORE)
    return made


def copy(place: Place, to: Path) -> Place:
    """Return the same place with a copy of its snapshots."""
    shutil.copytree(folder(place), to)
    environ = place.environ | {"COUNTERFLOW_SNAPSHOTS__DIR": str(to)}
    made = object.__new__(Place)
    made.__dict__ |= place.__dict__ | {"environ": environ, "settings": settings.load({}, environ)}
    return made


@pytest.fixture
def copied(learned, tmp_path):
    return copy(learned, tmp_path / "copy")


@pytest.mark.parametrize("case", NOT_OURS)
def test_a_snapshot_that_this_version_cannot_take_up_stops_it_and_stays(copied, case):
    change, named = NOT_OURS[case]
    newest = max(folder(copied).glob("snapshot-*"))
    rewritten(newest, **change)
    before = files(folder(copied))
    trainer = copied.trainer()
    try:
        with pytest.raises(Inconsistent) as stopped:
            trainer.start()
    finally:
        trainer.close()
    assert str(newest) in stopped.value.message and named in stopped.value.message
    assert "--from-earliest" in stopped.value.remedy
    assert files(folder(copied)) == before


@pytest.mark.parametrize("case", ["a newer format", "no array", "no offsets"])
def test_the_command_says_so_in_one_line_and_the_remedy_in_the_next(copied, case):
    change, named = NOT_OURS[case]
    rewritten(max(folder(copied).glob("snapshot-*")), **change)
    before = files(folder(copied))
    reason, remedy = refused(copied)
    assert named in reason and "--from-earliest" in remedy
    assert files(folder(copied)) == before


def test_other_settings_of_the_model_are_refused_with_the_snapshots_name(copied):
    before = files(folder(copied))
    for chosen in ({"model__factors": "16"}, {"trainer__seed": "5"}, {"model__average": "0.1"}):
        reason, remedy = refused(copied, **chosen)
        assert "snapshot-" in reason and "--from-earliest" in remedy
    assert files(folder(copied)) == before


def test_where_all_are_damaged_beginning_afresh_is_a_choice_and_the_old_ones_are_kept(copied):
    for path in folder(copied).glob("snapshot-*/manifest.json"):
        path.write_bytes(path.read_bytes()[:-9])
    before = files(folder(copied))
    reason, remedy = refused(copied)
    assert "checksum" in reason and "--from-earliest" in remedy
    assert files(folder(copied)) == before
    assert train(copied, "--from-earliest")["events"] == 200
    assert files(folder(copied) / "aside-000001") == before
    assert copied.counts() == expected([*ratings(100), *ratings(100, seed=1, start=100)])
    assert train(copied)["events"] == 0
    train(copied, "--from-earliest")
    assert sorted(path.name for path in folder(copied).glob("aside-*")) == [
        "aside-000001", "aside-000002",
    ]  # fmt: skip


def test_a_damaged_newest_still_leaves_the_one_before(copied):
    newest = max(folder(copied).glob("snapshot-*"))
    (newest / "state.safetensors").write_bytes(b"")
    damaged = files(newest.parent / newest.name)
    assert train(copied)["events"] == 100
    assert files(newest.parent / newest.name) == damaged


def test_pruning_removes_whole_ones_of_ours_alone(tmp_path):
    state = {"a": np.zeros(3)}
    with Snapshots(tmp_path, keep=2) as snapshots:
        paths = [snapshots.save(state, {}) for _ in range(2)]
        rewritten(paths[0], with_(2, "format"))
        (paths[1] / "state.safetensors").write_bytes(b"")
        (tmp_path / "draft-of-a-letter").write_text("not ours")
        for _ in range(5):
            newest = snapshots.save(state, {})
        kept = sorted(path.name for path in tmp_path.glob("snapshot-*"))
        assert kept == [f"snapshot-{n:012d}" for n in (1, 2, 6, 7)]
        assert (tmp_path / "draft-of-a-letter").exists()
        found = snapshots.newest_valid()
        assert found is not None and found.path == newest
        rewritten(newest, with_(2, "format"))
        with pytest.raises(Inconsistent):
            snapshots.newest_valid()


def test_from_earliest_and_skip_gap_at_once_are_wrong_use(place):
    done = command(place, "train", "--from-earliest", "--skip-gap")
    assert done.returncode == 2


def cut(place: Place, before: int) -> dict[tuple[str, int], int]:
    """Kafka holds no rating below that offset; returns what each snapshot offset lacks then."""
    rating = topics.name(place.prefix, "rating")
    admin = KafkaAdminClient(bootstrap_servers=place.broker)
    admin.delete_records({TopicPartition(rating, number): before for number in (0, 1)})
    admin.close()
    with Snapshots(folder(place)) as snapshots:
        found = snapshots.newest_valid()
    assert found is not None
    stood = {(t, p): offset for t, p, offset in found.meta["positions"] if t == rating}
    return {at: before - offset for at, offset in stood.items()}


def test_offsets_that_retention_took_can_be_skipped_and_the_model_kept(place, apache):
    if not apache:
        pytest.skip("the embedded broker deletes no records")
    place.send(ratings(100))
    train(place)
    place.send(ratings(300, seed=1, start=100))
    with KafkaSource(
        bootstrap_servers=place.broker, topics={topics.name(place.prefix, "rating"): "rating"}
    ) as source:
        source.start()
        ends = source.ends()
    gap = cut(place, 120)
    assert all(missing > 0 for missing in gap.values())
    left = sum(end - 120 for end in ends.values())
    before = files(folder(place))
    reason, remedy = refused(place)
    assert "is gone" in reason and "--skip-gap" in remedy and "--from-earliest" in remedy
    assert files(folder(place)) == before
    done = command(place, "train", "--until-end", "--skip-gap")
    summary = orjson.loads(done.stdout.splitlines()[-1])
    assert (summary["events"], summary["skipped_offsets"]) == (left, sum(gap.values()))
    for (topic, number), missing in gap.items():
        assert f"{topic}[{number}]" in done.stderr and f"skipping {missing} offsets" in done.stderr
    counted = sum(n for (kind, _), n in place.counts().items() if kind == "user")
    assert counted == 100 + left
    assert train(place, "--skip-gap")["skipped_offsets"] == 0
    assert train(place, "--from-earliest")["events"] == left


def shares(place: Place, numbers) -> dict[str, int]:
    """How many ratings lie in each of these partitions."""
    rating = topics.name(place.prefix, "rating")
    with KafkaSource(bootstrap_servers=place.broker, topics={rating: "rating"}) as source:
        source.start()
        ends = source.ends()
    return sum(ends[rating, number] for number in numbers)


def test_another_rank_or_world_is_refused_and_no_event_is_learned_twice(place):
    place.send(ratings(210))
    half = {"trainer__rank": "0", "trainer__world": "2"}
    assert train(place, **half)["events"] == shares(place, [0])
    before = files(folder(place))
    for chosen in ({}, half | {"trainer__rank": "1"}, half | {"trainer__world": "3"}):
        reason, remedy = refused(place, **chosen)
        assert "rank 0 of trainer.world 2" in reason
        assert "trainer.rank" in remedy and "--from-earliest" in remedy
    assert files(folder(place)) == before
    assert train(place, **half)["events"] == 0
    assert train(place, "--from-earliest")["events"] == 210


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_snapshot_that_tells_no_share_is_taken_by_its_partitions(broker, prefix, redis_url,
                                                                   tmp_path, world):  # fmt: skip
    """Those of the version before tell neither rank nor world."""
    place = Place(broker, prefix, redis_url, tmp_path / "snapshots", partitions=6)
    place.send(ratings(60))

    def started(rank: int, world: int) -> bool:
        place.settings = settings.load(
            {"trainer.rank": str(rank), "trainer.world": str(world)}, place.environ
        )
        trainer = place.trainer()
        try:
            trainer.start()
            trainer.run_until(trainer.source.ends())
        except Inconsistent as error:
            assert "another share" in error.message
            return False
        finally:
            trainer.close()
        return True

    assert started(world - 1, world)
    newest = max(folder(place).glob("snapshot-*"))
    for name in ("rank", "world"):
        rewritten(newest, without("meta", name))
    every = [(rank, of) for of in (1, 2, 3) for rank in range(of)]
    assert not any(started(*other) for other in every if other != (world - 1, world))
    assert started(world - 1, world)
    assert orjson.loads(
        (max(folder(place).glob("snapshot-*")) / "manifest.json").read_bytes().splitlines()[0]
    )["meta"]["world"] == world  # fmt: skip


def test_a_snapshot_of_other_topics_is_refused(place):
    place.send(ratings(20))
    train(place)
    topics.create(place.broker, f"{place.prefix}x", partitions=2)
    reason, remedy = refused(place, kafka__topic_prefix=f"{place.prefix}x")
    assert f"{place.prefix}.rating.v1" in reason and "topic_prefix" in remedy


MAY_CHANGE = [
    {"kafka.group_id": "other"},
    {"kafka.isolation_level": "read_uncommitted"},
    {"redis.prefix": "other"},
    {"redis.ttl_s": "100"},
    {"trainer.batch_max": "7"},
    {"trainer.duplicates_window": "300"},
    {"join.window_s": "5"},
    {"join.closed_max": "3", "join.pending_max": "3"},
    {"model.step": "blocks", "model.threads": "1", "model.block": "7"},
    {"model.synthetic": "0.3"},
    {"model.replay": "2"},
    {"model.pairs": "0"},
    {"model.without": "popularity,control,exposure"},
    {"model.rating_max": "10"},
    {"model.half_life_s": "10"},
    {"model.max_users": "100"},
    {"service.seen_max": "3", "service.outcome": "click"},
    {"snapshots.keep": "1"},
]


@pytest.mark.parametrize("chosen", MAY_CHANGE, ids=lambda chosen: next(iter(chosen)))
def test_what_may_change_between_two_starts_counts_each_event_once(behind, tmp_path, chosen):
    place = copy(behind, tmp_path / "copy")
    place.settings = settings.load(chosen, place.environ)
    last = place.learn_all()
    assert (last.learned, last.duplicates) == (50, 0)
    every = [*ratings(100), *ratings(100, seed=1, start=100), *MORE]
    assert place.counts() == expected(every)


def test_the_names_of_a_new_folder_and_of_those_above_it_are_forced_to_disk(tmp_path, monkeypatch):
    forced: list[str] = []
    real = os.fsync

    def fsync(handle):
        forced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with Snapshots(tmp_path / "a" / "b") as snapshots:
        assert forced == [str(tmp_path), str(tmp_path / "a")]
        snapshots.save({"a": np.zeros(3)}, {})
    assert forced[-1] == str(tmp_path / "a" / "b")
