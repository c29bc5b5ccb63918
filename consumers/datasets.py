"""Data sets as events in time order: users and items first, then ratings.

MovieLens-100K may not be redistributed; it is read from the folder of the `recbole` wheel, which is
located without importing it.
"""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from stream.errors import Inconsistent


class DatasetEvent(NamedTuple):
    """One event ready for Kafka: its topic's kind, its key, its value and its time."""

    kind: str
    key: bytes
    value: bytes
    ts_ms: int


class Dataset(NamedTuple):
    """A data set: its name, its number of outcomes, and its events."""

    name: str
    outcomes: int
    events: Callable[[], Iterator[DatasetEvent]]


def load(name: str, folder: Path | None = None) -> Dataset:
    """Return a data set by name; raise Inconsistent with the known names, or how to get it."""
    if name not in LOADERS:
        raise Inconsistent(f"no data set {name!r}", f"known: {', '.join(sorted(LOADERS))}")
    return LOADERS[name](folder)


def ml_100k(folder: Path | None = None) -> Dataset:
    """Return MovieLens-100K: 943 users, 1,682 items, 100,000 ratings."""
    folder = folder or ml_100k_folder()
    ratings = [
        (int(float(row["timestamp"])) * 1_000, row["user_id"], row["item_id"], float(row["rating"]))
        for row in read_atomic(folder / "ml-100k.inter")
    ]
    ratings.sort(key=lambda rating: rating[0])  # stable: ties keep the file's order
    start_ms = ratings[0][0]

    def events() -> Iterator[DatasetEvent]:
        for row in read_atomic(folder / "ml-100k.user"):
            yield user_event(row, start_ms)
        for row in read_atomic(folder / "ml-100k.item"):
            yield item_event(row, start_ms)
        for number, (ts_ms, user_id, item_id, value) in enumerate(ratings):
            yield event(
                "rating", user_id, ts_ms,
                event_id=f"ml-r-{number}", user_id=user_id, item_id=item_id, value=value,
            )  # fmt: skip

    return Dataset("ml-100k", len(ratings), events)


def ml_100k_folder() -> Path:
    """Return the data's folder in recbole's wheel without importing recbole, which loads torch."""
    spec = importlib.util.find_spec("recbole")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        folder = Path(place) / "dataset_example" / "ml-100k"
        if (folder / "ml-100k.inter").is_file():
            return folder
    raise Inconsistent(
        "MovieLens-100K is not installed", "pip install --no-deps recbole==1.2.1 brings it"
    )


def read_atomic(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a recbole atomic file: tab-separated, `name:type` in its first line."""
    try:
        with path.open(encoding="utf-8") as lines:
            names = [column.partition(":")[0] for column in next(lines).rstrip("\n").split("\t")]
            for line in lines:
                yield dict(zip(names, line.rstrip("\n").split("\t"), strict=True))
    except (OSError, ValueError, StopIteration) as error:
        raise Inconsistent(f"cannot read {path}: {error}", "install the data set again") from error


def user_event(row: dict[str, str], ts_ms: int) -> DatasetEvent:
    """Return the user event with age, gender and occupation; the post code is left out."""
    attributes = {
        "age": int(row["age"]),
        "gender": row["gender"],
        "occupation": row["occupation"],
    }
    user_id = row["user_id"]
    return event(
        "user", user_id, ts_ms, event_id=f"ml-u-{user_id}", user_id=user_id, attributes=attributes
    )


def item_event(row: dict[str, str], ts_ms: int) -> DatasetEvent:
    """Return the item event with title, genres and, where known, the year."""
    attributes: dict[str, Any] = {"genre": row["class"].split()}
    if row["release_year"].isdigit():
        attributes["year"] = int(row["release_year"])
    item_id = row["item_id"]
    return event(
        "item", item_id, ts_ms,
        event_id=f"ml-i-{item_id}", item_id=item_id, title=row["movie_title"],
        attributes=attributes,
    )  # fmt: skip


def event(kind: str, key: str, ts_ms: int, **fields: Any) -> DatasetEvent:
    """Return an event with encoded key and value."""
    value = orjson.dumps({"v": 1, "type": kind, "ts_ms": ts_ms, **fields})
    return DatasetEvent(kind, key.encode(), value, ts_ms)


LOADERS: dict[str, Callable[[Path | None], Dataset]] = {"ml-100k": ml_100k}
