"""Coat Shopping (Schnabel et al. 2016): self-selected ratings to train on, random ones to test.

290 users and 300 coats; every user chose 24 to rate and rated 16 more that were drawn at random.
The data has no licence, so it is read from a folder and not distributed with this package:
https://www.cs.cornell.edu/~schnabts/mnar/
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.errors import Inconsistent

REMEDY = "--data takes the unpacked coat folder, which has train.ascii and user_item_features/"


@dataclass(frozen=True, slots=True)
class Ratings:
    """Ratings as columns of length N."""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    value: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: NDArray[Any] | slice) -> "Ratings":
        """Return the ratings of an index, a mask or a slice."""
        return Ratings(self.user[index], self.item[index], self.value[index])

    def shuffled(self, seed: int) -> "Ratings":
        """Return the ratings in random order; the log has no times."""
        return self.take(np.random.default_rng(seed).permutation(len(self)))


@dataclass(frozen=True, slots=True)
class Coat:
    """The data set: ratings for training and testing, attributes and propensities."""

    train: Ratings
    test: Ratings
    user_attributes: list[dict[str, str]]  # by user: {"age": "20-30", …}
    item_attributes: list[dict[str, str]]
    user_hot: NDArray[np.float32]  # (users, 14)
    item_hot: NDArray[np.float32]  # (items, 33)
    propensity: NDArray[np.float32]  # (users, items) from the data set: of a pair being rated

    @property
    def users(self) -> int:
        """The number of users."""
        return len(self.user_hot)

    @property
    def items(self) -> int:
        """The number of items."""
        return len(self.item_hot)


def load(path: str | Path) -> Coat:
    """Return the data set in a folder; raise Inconsistent for a missing or damaged file."""
    folder = Path(path)
    features = folder / "user_item_features"
    train, test, propensity = (
        matrix(folder / f"{name}.ascii") for name in ("train", "test", "propensities")
    )
    users, user_attributes = described(features, "user")
    items, item_attributes = described(features, "item")
    shape = (len(users), len(items))
    for name, table in (("train", train), ("test", test), ("propensities", propensity)):
        if table.shape != shape:
            raise Inconsistent(
                f"{folder / name}.ascii has shape {table.shape}, but the features say {shape}",
                REMEDY,
            )
    return Coat(
        cells(train), cells(test), user_attributes, item_attributes, users, items, propensity
    )


def matrix(path: Path) -> NDArray[np.float32]:
    """Return the numbers of a file, one row per line."""
    try:
        return np.loadtxt(path, dtype=np.float32, ndmin=2)
    except (OSError, ValueError) as error:
        raise Inconsistent(f"cannot read {path}: {error}", REMEDY) from error


def cells(table: NDArray[np.float32]) -> Ratings:
    """Return the cells that are not 0, row by row."""
    user, item = np.nonzero(table)
    return Ratings(user.astype(np.int32), item.astype(np.int32), table[user, item])


def described(folder: Path, kind: str) -> tuple[NDArray[np.float32], list[dict[str, str]]]:
    """Return a kind's one-hot features (n, F), and the same as attributes of each row."""
    hot = matrix(folder / f"{kind}_features.ascii")
    names = folder / f"{kind}_features_map.txt"
    try:
        columns = [line.partition(":") for line in names.read_text("utf-8").split("\n") if line]
    except (OSError, UnicodeDecodeError) as error:
        raise Inconsistent(f"cannot read {names}: {error}", REMEDY) from error
    if len(columns) != hot.shape[1]:
        raise Inconsistent(f"{names} names {len(columns)} of {hot.shape[1]} columns", REMEDY)
    attributes = [
        {columns[c][0]: columns[c][2] for c in np.flatnonzero(row).tolist()} for row in hot
    ]
    return hot, attributes
