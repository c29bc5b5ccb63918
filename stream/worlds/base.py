"""Shared parts of the worlds: interactions as columns, their events as bytes, random generators."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import ArrayLike, NDArray

from stream.schemas import Attribute, Click, Event, Impression, Item, Rating, User

START_MS = 1_700_000_000_000
STEP_MS = 60_000  # between decisions, so that few windows of an hour contain a pair twice
BLOCK = 1_000  # decisions per block

Truth = dict[str, Any]
Floats = NDArray[np.float64]


class Wire(NamedTuple):
    """One event as it goes to Kafka: its kind, which names the topic, key, value and time."""

    kind: str
    key: bytes
    value: bytes
    ts_ms: int


@dataclass(frozen=True, slots=True)
class Interactions:
    """Decisions and their outcomes, as columns of length n in time order.

    A row with a slate is a window: shown or withheld, and clicked or not. A row without one is a
    rating that the user gave without an impression. `treated` and `control` are the true expected
    outcomes if shown and if withheld, which no event contains.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    ts_ms: NDArray[np.int64]
    slate: NDArray[np.int64]  # -1: none
    position: NDArray[np.int64]  # 0: none
    propensity: Floats  # nan: not logged
    show_probability: Floats  # nan: not logged
    shown: NDArray[np.bool_]
    click: NDArray[np.bool_]
    rating: Floats  # nan: none
    treated: Floats
    control: Floats  # nan where nothing is withheld

    def __len__(self) -> int:
        return len(self.user)

    def take(self, chosen: Any) -> "Interactions":
        """Return the chosen rows (a mask, a slice or indices)."""
        return Interactions(*(getattr(self, f.name)[chosen] for f in fields(self)))


def interactions(
    user: ArrayLike,
    item: ArrayLike,
    ts_ms: ArrayLike,
    *,
    slate: ArrayLike = -1,
    position: ArrayLike = 0,
    propensity: ArrayLike = np.nan,
    show_probability: ArrayLike = np.nan,
    shown: ArrayLike = True,
    click: ArrayLike = False,
    rating: ArrayLike = np.nan,
    treated: ArrayLike = np.nan,
    control: ArrayLike = np.nan,
) -> Interactions:
    """Return the columns; scalars are repeated to the length of `user`."""
    n = len(np.asarray(user))

    def column(values: ArrayLike, dtype: Any) -> NDArray[Any]:
        return np.broadcast_to(np.asarray(values, dtype), (n,))

    whole, real, yes = np.int64, np.float64, np.bool_
    return Interactions(
        column(user, whole), column(item, whole), column(ts_ms, whole), column(slate, whole),
        column(position, whole), column(propensity, real), column(show_probability, real),
        column(shown, yes), column(click, yes), column(rating, real), column(treated, real),
        column(control, real),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """An attribute event of a user or an item, before the interactions of its block."""

    kind: str
    id: int
    attributes: dict[str, Attribute]
    ts_ms: int


@dataclass(frozen=True, slots=True)
class WorldBlock:
    """A part of a world: first the attribute changes, then the interactions."""

    changes: list[Change]
    interactions: Interactions


@dataclass(frozen=True)
class World:
    """A generator of events with known causal answers.

    The same seed gives the same events, and a shorter stream is a prefix of a longer one.
    Subclasses implement `blocks` and `truth`, and may keep true parameters in cached properties.
    """

    name: ClassVar[str]
    seed: int = 0

    def blocks(self) -> Iterator[WorldBlock]:
        """Yield blocks in time order, without end."""
        raise NotImplementedError

    @property
    def truth(self) -> Truth:
        """Return the true answers, ready for JSON."""
        raise NotImplementedError

    def columns(self, n: int) -> Interactions:
        """Return the first n interactions."""
        parts, have = [], 0
        for block in self.blocks():
            parts.append(block.interactions)
            have += len(block.interactions)
            if have >= n:
                break
        names = [f.name for f in fields(Interactions)]
        return Interactions(
            *(np.concatenate([getattr(part, name) for part in parts])[:n] for name in names)
        )

    def events(self, n: int) -> Iterator[Wire]:
        """Yield the first n events in time order."""
        return islice(self._wires(), n)

    def draws(self, block: int, purpose: int = 0) -> np.random.Generator:
        """Return the random generator of a block for a purpose; block -1: the true parameters."""
        return np.random.default_rng([self.seed % 2**64, block + 1, purpose])

    def _wires(self) -> Iterator[Wire]:
        """Yield the events in time order, without end."""
        at = 0
        for block in self.blocks():
            yield from (self._attributes(change) for change in block.changes)
            made = self._happened(block.interactions, at)
            made.sort(key=lambda event: event.ts_ms)  # stable
            yield from map(wire, made)
            at += len(block.interactions)

    def _attributes(self, change: Change) -> Wire:
        event_id = f"{self.name}-{self.seed}-{change.kind}-{change.id}-{change.ts_ms}"
        common: dict[str, Any] = {
            "event_id": event_id, "ts_ms": change.ts_ms, "attributes": change.attributes,
        }  # fmt: skip
        if change.kind == "user":
            return wire(User(user_id=user_id(change.id), **common))
        return wire(Item(item_id=item_id(change.id), title=f"Item {change.id}", **common))

    def _happened(self, rows: Interactions, at: int) -> list[Event]:
        """Return the events of the rows; a click comes half a step after its window opened."""
        made: list[Event] = []
        columns = zip(*(getattr(rows, f.name).tolist() for f in fields(rows)), strict=True)
        for n, (
            user,
            item,
            ts_ms,
            slate,
            position,
            propensity,
            show,
            shown,
            click,
            rating,
            _,
            _,
        ) in enumerate(columns, at):
            common: dict[str, Any] = {
                "event_id": f"{self.name}-{self.seed}-{n}",
                "user_id": user_id(user),
                "item_id": item_id(item),
            }
            if slate < 0:
                made.append(Rating(ts_ms=ts_ms, value=rating, **common))
                continue
            impression_id = f"{self.name}-{self.seed}-{slate}"
            made.append(
                Impression(
                    ts_ms=ts_ms,
                    impression_id=impression_id,
                    position=position or UNSET,
                    propensity=propensity if propensity == propensity else UNSET,
                    show_probability=show if show == show else 1.0,
                    shown=shown,
                    **common,
                )
            )
            if click:
                # if the item was withheld, the click cannot name the slate
                named = impression_id if shown else UNSET
                later_ms = ts_ms + STEP_MS // 2 + position
                made.append(Click(ts_ms=later_ms, impression_id=named, **common))
        return made


def wire(event: Event) -> Wire:
    """Return the event as JSON in the wire format, under the key of its topic."""
    key = event.item_id if isinstance(event, Item) else event.user_id
    return Wire(event.type, key.encode(), msgspec.json.encode(event), event.ts_ms)


def user_id(number: int) -> str:
    """Return the user's id in events."""
    return f"u{number}"


def item_id(number: int) -> str:
    """Return the item's id in events."""
    return f"i{number}"


def by_item(values: ArrayLike) -> dict[str, float]:
    """Return the values (items,) by the items' ids."""
    return {item_id(n): float(value) for n, value in enumerate(np.asarray(values).tolist())}


def times(block: int) -> NDArray[np.int64]:
    """Return the times (BLOCK,) of a block's decisions."""
    return START_MS + STEP_MS * (1 + block * BLOCK + np.arange(BLOCK, dtype=np.int64))


def logistic(score: ArrayLike) -> Floats:
    """Return 1 / (1 + exp(-score))."""
    out: Floats = 1 / (1 + np.exp(-np.asarray(score, np.float64)))
    return out
