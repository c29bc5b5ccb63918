"""A CSV file as columns, with error messages that name the line and column."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.errors import Inconsistent

Attributes = dict[str, float | str]
LEVELS = 30  # one-hot levels of a text column; rarer ones are part of the intercept
NUMBER_MAX = 1e30  # third moments of larger numbers overflow
TRUE, FALSE = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}


class TextTable:
    """Text columns by name, all of length N."""

    def __init__(self, name: str, columns: dict[str, list[str]]) -> None:
        self.name = name
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def column(self, name: str) -> list[str]:
        """Return a column's texts; raise Inconsistent with the existing names."""
        if name not in self.columns:
            raise Inconsistent(
                f"{self.name} has no column {name!r}", f"it has: {', '.join(self.columns)}"
            )
        return self.columns[name]

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return a column's numbers; raise Inconsistent for the first line without one."""
        texts = self.column(name)
        found = np.array([number(text) for text in texts])
        if not np.isfinite(found).all():
            at = int(np.flatnonzero(~np.isfinite(found))[0])
            raise self.wrong(name, at, "a number")
        if not (np.abs(found) <= NUMBER_MAX).all():
            at = int(np.flatnonzero(np.abs(found) > NUMBER_MAX)[0])
            raise self.wrong(name, at, f"a number within {NUMBER_MAX:g}")
        return found

    def arms(self, name: str) -> NDArray[np.int8]:
        """Return a column of 0 and 1 (false/true, no/yes); raise Inconsistent unless both occur."""
        texts = self.column(name)
        out = np.zeros(len(texts), np.int8)
        for at, text in enumerate(texts):
            low = text.strip().lower()
            if low not in TRUE and low not in FALSE:
                raise self.wrong(name, at, "0 or 1")
            out[at] = low in TRUE
        for value, arm in ((1, "treated"), (0, "control")):
            if not (out == value).any():
                raise Inconsistent(
                    f"{self.name}: no row is {arm}: {name!r} is never {value}",
                    "an effect needs rows of both arms",
                )
        return out

    def groups(self, name: str) -> NDArray[np.int32]:
        """Return a number for each row (N,), equal where the column's texts are equal."""
        return np.unique(self.column(name), return_inverse=True)[1].astype(np.int32)

    def wrong(self, name: str, at: int, wanted: str) -> Inconsistent:
        """Return the error for one cell."""
        return Inconsistent(
            f"{self.name} line {at + 2}: {name!r} is {self.columns[name][at]!r}, not {wanted}",
            "correct the file, or leave the row out",
        )

    def attributes(self, names: Sequence[str]) -> list[Attributes]:
        """Return each row's attributes: numbers for numeric columns, else texts.

        Empty cells are unknown attributes.
        """
        out: list[Attributes] = [{} for _ in range(len(self))]
        for name in names:
            texts = self.column(name)
            values: Sequence[float | str] = _numeric(texts) if _is_numeric(texts) else texts
            for row, text, value in zip(out, texts, values, strict=True):
                if text:
                    row[name] = value
        return out

    def design(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Return the design matrix (N, 1 + columns): intercept, standardised numbers, one-hots."""
        parts: list[Any] = [np.ones(len(self))]
        for name in names:
            texts = self.column(name)
            if _is_numeric(texts):
                x = np.array(_numeric(texts))
                known = np.isfinite(x)
                x = np.where(known, x, x[known].mean() if known.any() else 0.0)
                parts.append((x - x.mean()) / (x.std() or 1.0))
                if not known.all():
                    parts.append(known.astype(float))
            else:
                levels, count = np.unique(texts, return_counts=True)
                kept = levels[np.argsort(-count, kind="stable")[:LEVELS]]
                parts += [np.array(texts) == level for level in kept]
        return np.stack(parts, 1).astype(float)


def read(path: str | Path) -> TextTable:
    """Return the file's columns; raise Inconsistent if the file is invalid."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines)
            names = [name.strip() for name in next(reader, [])]
            if not names or len(set(names)) != len(names):
                raise Inconsistent(
                    f"{path} has no header with distinct names",
                    "the first line must name the columns",
                )
            rows = [row for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Inconsistent(
            f"cannot read {path}: {error}", "--data takes a CSV file in UTF-8"
        ) from error
    for at, row in enumerate(rows):
        if len(row) != len(names):
            raise Inconsistent(
                f"{path}, row {at + 1}: {len(row)} cells, but the header has {len(names)}",
                "quote cells that hold a comma",
            )
    if not rows:
        raise Inconsistent(f"{path} has no rows", "--data takes a CSV file with a header and rows")
    return TextTable(
        path.name, dict(zip(names, (list(c) for c in zip(*rows, strict=True)), strict=True))
    )


def number(text: str) -> float:
    """Return the text as a number, NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _is_numeric(texts: Sequence[str]) -> bool:
    """Return whether every non-empty cell is a number, and at least one is."""
    return all(np.isfinite(number(text)) for text in texts if text) and any(texts)


def _numeric(texts: Sequence[str]) -> list[float]:
    return [number(text) for text in texts]
