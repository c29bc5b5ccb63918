"""Checking a request's choices against the model; what cannot be answered raises a problem."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import UNSET, UnsetType

from consumers.service.attribute_index import Read
from consumers.service.item_index import ItemIndex, Rows
from consumers.service.problems import Problem, invalid
from consumers.service.requests import ID_MAX_BYTES, Intervention
from stream.inference import attributes, support
from stream.inference.do import Do
from stream.inference.model import PublishedOutcome
from stream.inference.rows import ServedPairs
from stream.model.features import attribute_of, label, links_of, slope_name

FEATURES_MAX = 4_096  # attribute values that one request may read: about 1 MB from Redis

NO_CONTROL = "no control outcome has been observed: an effect needs withheld items"
WITHHOLD = (
    'post impressions with "shown": false and their show_probability, or set exploration.withhold'
    " so that recommendations withhold some items"
)


class Refusal(NamedTuple):
    """A part of an intervention that the data do not support, and the reason."""

    field: str
    reason: str

    def problem(self) -> Problem:
        """Return it as the problem that answers a request for a list."""
        remedy = "ask for values that were observed, or post such items first"
        return Problem(422, "no_support", self.reason, field=self.field, remedy=remedy)


def choose(
    index: ItemIndex, user_id: str, outcome: str | UnsetType, default: str, item_id: str = ""
) -> PublishedOutcome:
    """Return the requested outcome; raise a problem if an id is too long or it is unknown."""
    for field, given in (("user_id", user_id), ("item_id", item_id)):
        if len(given.encode(errors="surrogatepass")) > ID_MAX_BYTES:
            raise invalid(field, f"the id is longer than {ID_MAX_BYTES} bytes")
    name = default if isinstance(outcome, UnsetType) else outcome
    if name not in index.outcomes:
        raise invalid("outcome", f"the model's outcomes are {', '.join(index.outcomes)}")
    return index.outcomes[name]


def allow(
    index: ItemIndex, outcome: PublishedOutcome, objective: str, do: Intervention | None
) -> None:
    """Raise a problem if the model cannot rank by the objective in the world of `do`."""
    model = index.parsed
    if objective == "effect" and not model.has_control(outcome):
        raise no_control("objective")
    if objective == "consumption" and not len(model.learned_heads):
        raise Problem(
            422,
            "not_available",
            "the probability of exposure has not been learned yet",
            field="objective",
            remedy="post ratings or impressions; until then rank by outcome",
        )
    if do is None or do.empty:
        return
    causal(index, "do")
    if do.shown is False:
        if objective != "outcome":
            raise invalid("do.shown", f"objective {objective} is not defined for withheld items")
        if not model.has_control(outcome):
            raise no_control("do.shown")


def causal(index: ItemIndex, field: str) -> None:
    """Raise a problem if the served model has no causal paths."""
    if not index.parsed.causal:
        raise Problem(
            422,
            "not_available",
            "the served model has no causal paths",
            field=field,
            remedy="start a trainer of this version, which publishes them",
        )


def no_control(field: str, detail: str = NO_CONTROL) -> Problem:
    """Return the problem of an effect for which no control outcome was observed."""
    return Problem(422, "no_control", detail, field=field, remedy=WITHHOLD)


def describes(do: Intervention | None) -> bool:
    """Return whether the intervention sets attributes."""
    return do is not None and do.attributes is not UNSET


def needs(index: ItemIndex, items: Sequence[bytes], do: Intervention | None) -> list[str]:
    """Return the attribute values whose rows the intervention needs, without repeats."""
    if do is None or do.attributes is UNSET:
        return []
    _, numbers, _ = index.attributes.of(items, index.catalogue.meta)
    given = [name for name, _ in links_of("item", do.attributes)]
    names = list(dict.fromkeys([*given, *index.attributes.called(numbers)]))
    if len(names) > FEATURES_MAX:
        raise Problem(
            422,
            "too_many",
            f"these items have {len(names)} attribute values; at most {FEATURES_MAX} are allowed",
            field="do.attributes",
            remedy="filter the candidates, or rank fewer items",
        )
    return names


def intervene(
    index: ItemIndex,
    pairs: ServedPairs,
    rows: Rows,
    do: Intervention | None,
    read: Read,
    spread: bool = True,
) -> tuple[Do, Refusal | None]:
    """Return the intervention on the pairs of these rows, or its first unsupported part.

    With `spread` false, quantities that only intervals need are left out.
    """
    if do is None:
        return Do(), None
    refusal = refused(index, pairs.outcome, do, read)
    if refusal is not None:
        return Do(), refusal
    shift = None
    if do.attributes is not UNSET:
        items = [index.catalogue.items.ids[row] for row in rows.tolist()]
        old, new = index.attributes.replace(
            items, index.catalogue.meta, do.attributes, read, index.parsed.max_links
        )
        shift = attributes.shift(
            pairs.outcome, index.parsed, read.features, pairs.user, old, new, spread,
            {label(name): number(name, read) for name in do.attributes},
        )  # fmt: skip
    return (
        Do(
            shown=None if do.shown is UNSET else do.shown,
            position=None if do.position is UNSET else do.position,
            popularity=None if do.popularity is UNSET else do.popularity,
            attributes=shift,
        ),
        None,
    )


def number(name: str, read: Read) -> attributes.Number | None:
    """Return where a numeric attribute's rows are in `read`; None if it is not numeric."""
    slope = read.names.get(slope_name("item", name))
    if slope is None:
        return None
    links = [at for feature, at in read.names.items() if attribute_of(feature) == label(name)]
    return attributes.Number(slope, np.array(links, np.intp))


def refused(
    index: ItemIndex, outcome: PublishedOutcome, do: Intervention, read: Read
) -> Refusal | None:
    """Return the first part of the intervention that the data do not support, or None."""
    if do.position is not UNSET:
        reason = support.position(index.parsed, outcome, do.position)
        if reason is not None:
            return Refusal("do.position", reason)
    if do.popularity is not UNSET:
        q = index.pairs(outcome, None).q
        reason = support.popularity(q, do.popularity)
        if reason is not None:
            return Refusal("do.popularity", reason)
    for name, value in {} if do.attributes is UNSET else do.attributes.items():
        links = list(links_of("item", {name: value}))
        reason = support.attribute(name, links, read.names, read.features)
        if reason is not None:
            return Refusal(f"do.attributes.{name}", reason)
    return None
