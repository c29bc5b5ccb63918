"""The response bodies; the OpenAPI description is generated from these types."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

from consumers.service.ranking import IntervalKind
from stream.inference.model import Link


class Support(Struct, frozen=True, kw_only=True):
    """Whether the data support what is asked; if not, the reason."""

    ok: bool
    reason: str | None = None


class Scored(Struct, frozen=True, kw_only=True):
    """One item of a list."""

    item_id: str
    title: str | None
    score: Annotated[
        float,
        Meta(description="by the objective: expected outcome or effect, on the outcome's scale, or"
             " consumption, from 0 to 1"),
    ]  # fmt: skip
    propensity: Annotated[
        float, Meta(description="probability that the item stands at this position of the list")
    ]
    interval: Annotated[
        list[float] | None,
        Meta(description="95 % interval, of the kind in interval_kind; null if none is known"),
    ]
    interval_kind: Annotated[
        IntervalKind | None,
        Meta(description="predictive: of one rating; model-based: of the expected click or of the"
             " effect; within-item: of a change of the item's number, estimated from items whose"
             " number has changed; average: of the average effect"),
    ] = None  # fmt: skip
    support: Annotated[
        Support | None,
        Meta(description="for objective effect, and for do.shown false: whether a control outcome"
             " of the item was observed"),
    ] = None  # fmt: skip
    show_probability: Annotated[
        float | UnsetType,
        Meta(description="probability of being shown rather than withheld, the same in both arms;"
             " left out if nothing is withheld at random"),
    ] = UNSET  # fmt: skip


class Withheld(Struct, frozen=True, kw_only=True):
    """An item withheld at random, to learn what happens without it; it must not be shown."""

    item_id: str
    position: Annotated[int, Meta(description="position at which it would stand, from 1")]
    propensity: float
    show_probability: float


class Known(Struct, frozen=True, kw_only=True):
    """Whether the user has a row; an unknown user is answered as the average user."""

    known: bool
    events: int


class Served(Struct, frozen=True, kw_only=True):
    """The model that answered."""

    generation: str
    epoch: int
    version: Annotated[int, Meta(description="number of changes that this server has applied")]
    outcome: str
    objective: str


Degraded = Annotated[
    list[str] | UnsetType,
    Meta(description="dependencies that were unavailable (redis: neither the user's row nor seen"
         " items are known, so the answer is that for an unknown user and is not logged); left out"
         " if none was"),
]  # fmt: skip


class Recommendation(Struct, frozen=True, kw_only=True):
    """The best items, best first, except where exploration or withholding changes the order."""

    user: Known
    model: Served
    items: list[Scored]
    impression_id: Annotated[
        str | UnsetType,
        Meta(description="id of the list in impressions, clicks and ratings; present if the service"
             " logs impressions, explores or withholds"),
    ] = UNSET  # fmt: skip
    withheld: Annotated[
        list[Withheld] | UnsetType, Meta(description="left out if nothing is withheld")
    ] = UNSET
    degraded: Degraded = UNSET


class Ranking(Struct, frozen=True, kw_only=True):
    """The requested items that are known, best first, and the ids of the others."""

    user: Known
    model: Served
    items: list[Scored]
    unknown_items: list[str]
    degraded: Degraded = UNSET


class Consumption(Struct, frozen=True, kw_only=True):
    """Probability of exposure times outcome, as a share of its scale, and what changes it."""

    factual: float
    direct: Annotated[float, Meta(description="change through the outcome, at fixed exposure")]
    total: Annotated[float, Meta(description="change through outcome and exposure")]


class Individual(Struct, frozen=True, kw_only=True):
    """What would have happened to the observed outcome in the other world."""

    observed: float
    residual: Annotated[float, Meta(description="observed minus expected outcome")]
    counterfactual: float


class Effect(Struct, frozen=True, kw_only=True):
    """The effect of an intervention; null if the data do not support it.

    If every path from the intervention to the outcome is closed (not learned), the effect is 0
    without an interval, and `support` says so.
    """

    user: Known
    item_id: str
    model: Served
    factual: float
    counterfactual: float | None
    effect: float | None
    interval: Annotated[list[float] | None, Meta(description="95 % interval of the effect")]
    interval_kind: IntervalKind | None
    support: Support
    assumptions: list[str]
    direct: Annotated[
        float | None, Meta(description="for attributes: effect through the outcome's own equation")
    ] = None
    total: Annotated[
        float | None,
        Meta(description="for attributes: equal to direct, as popularity and position are fixed"),
    ] = None
    consumption: Consumption | None = None
    individual: Individual | None = None
    degraded: Degraded = UNSET


class Term(Struct, frozen=True, kw_only=True):
    """One path's contribution to a score, on the link scale."""

    name: str
    value: float
    cut: Annotated[
        float, Meta(description="what the path adds in the observed world but not to the score")
    ]


class Why(Struct, frozen=True, kw_only=True):
    """A score as terms that add up: sum = link(score)."""

    user: Known
    item_id: str
    model: Served
    terms: list[Term]
    sum: float
    link: Link
    score: float
    degraded: Degraded = UNSET


class Signal(Struct, frozen=True, kw_only=True):
    """Detections of one drift detector."""

    detections: int
    last_ts_ms: int | None = None


class Drift(Struct, frozen=True, kw_only=True):
    """The drift detectors by signal; empty if the trainer publishes none."""

    signals: dict[str, Signal]


class UserRow(Struct, frozen=True, kw_only=True):
    """The counts and the stamp of a user's row."""

    user_id: str
    events: int
    exposures: int
    epoch: int
    sequence: int


class ItemRow(Struct, frozen=True, kw_only=True):
    """Title, attributes, counts and stamp of an item."""

    item_id: str
    title: str | None
    attributes: dict[str, Any]
    events: int
    exposures: int
    epoch: int
    sequence: int


class Accepted(Struct, frozen=True, kw_only=True):
    """The number of events that the broker acknowledged."""

    accepted: int


class BadPosted(Struct, frozen=True, kw_only=True):
    """One invalid event of a posted list."""

    index: int
    reason: str
    detail: str


class ProblemBody(Struct, frozen=True, kw_only=True):
    """An error as in RFC 9457; `code` is stable."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    field: str | None = None
    remedy: str | None = None
    errors: list[BadPosted] | None = None
    acknowledged: list[int] | None = None


def answer(body: Any, status: int = 200) -> Response:
    """Return the body as a JSON response."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")
