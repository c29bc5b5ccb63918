"""What answers hold; the OpenAPI description is made from these types."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

from consumers.service.ranking import IntervalKind
from stream.inference.model import Link


class Support(Struct, frozen=True, kw_only=True):
    """Whether the data speak of what is asked; if not, why."""

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
        float, Meta(description="probability with which the item stands at this place of the list")
    ]
    interval: Annotated[
        list[float] | None,
        Meta(description="95 %, of what interval_kind says; null where the model does not say"),
    ]
    interval_kind: Annotated[
        IntervalKind | None,
        Meta(description="predictive: of one rating; model-based: of the expected click or of the"
             " effect; within-item: of a change of the item's number, from items whose number has"
             " changed; average: of the average effect"),
    ] = None  # fmt: skip
    support: Annotated[
        Support | None,
        Meta(description="by effect, or withheld by `do`: whether the item's own control was"
             " observed"),
    ] = None  # fmt: skip
    show_probability: Annotated[
        float | UnsetType,
        Meta(description="of being shown rather than withheld, in both arms; left out where"
             " nothing is withheld by chance"),
    ] = UNSET  # fmt: skip


class Withheld(Struct, frozen=True, kw_only=True):
    """An item that was left out by chance, to learn what happens without it: not to be shown."""

    item_id: str
    position: Annotated[int, Meta(description="place where it would stand, from 1")]
    propensity: float
    show_probability: float


class Known(Struct, frozen=True, kw_only=True):
    """Whether the user has a row; without one the list is the fallback's."""

    known: bool
    events: int


class Served(Struct, frozen=True, kw_only=True):
    """Which model answered."""

    generation: str
    epoch: int
    version: Annotated[int, Meta(description="changes that this server has followed")]
    outcome: str
    objective: str


Degraded = Annotated[
    list[str] | UnsetType,
    Meta(description="what the answer had to do without (redis: the user's row and seen items, so"
         " it is the one for an unknown user, and not logged); left out where nothing was missing"),
]  # fmt: skip


class Recommendation(Struct, frozen=True, kw_only=True):
    """The best items, best first, but for what the service leaves to chance."""

    user: Known
    model: Served
    items: list[Scored]
    impression_id: Annotated[
        str | UnsetType,
        Meta(description="names the list in impressions, clicks and ratings; there if the service"
             " logs impressions or leaves something to chance"),
    ] = UNSET  # fmt: skip
    withheld: Annotated[
        list[Withheld] | UnsetType, Meta(description="left out where nothing is withheld")
    ] = UNSET
    degraded: Degraded = UNSET


class Ranking(Struct, frozen=True, kw_only=True):
    """The asked items that are known, best first, and those that are not."""

    user: Known
    model: Served
    items: list[Scored]
    unknown_items: list[str]
    degraded: Degraded = UNSET


class Consumption(Struct, frozen=True, kw_only=True):
    """Chance of exposure times outcome, as a share of its scale, and what changes it."""

    factual: float
    direct: Annotated[float, Meta(description="change through the outcome, exposure held")]
    total: Annotated[float, Meta(description="change through outcome and exposure")]


class Individual(Struct, frozen=True, kw_only=True):
    """What would have happened to the outcome that was observed."""

    observed: float
    residual: Annotated[float, Meta(description="observed beyond what was expected")]
    counterfactual: float


class Effect(Struct, frozen=True, kw_only=True):
    """What an intervention changes; null where the data do not support it.

    Where every path from what is set is closed (not learned) the effect is 0, without an interval,
    and `support` says so.
    """

    user: Known
    item_id: str
    model: Served
    factual: float
    counterfactual: float | None
    effect: float | None
    interval: Annotated[list[float] | None, Meta(description="95 %, of the effect")]
    interval_kind: IntervalKind | None
    support: Support
    assumptions: list[str]
    direct: Annotated[
        float | None, Meta(description="of attributes: through the outcome's own equation")
    ] = None
    total: Annotated[
        float | None,
        Meta(description="of attributes: equal to direct, popularity and position being held"),
    ] = None
    consumption: Consumption | None = None
    individual: Individual | None = None
    degraded: Degraded = UNSET


class Term(Struct, frozen=True, kw_only=True):
    """One path of a score, on the link scale."""

    name: str
    value: float
    cut: Annotated[
        float, Meta(description="what the path adds in the observed world and the score leaves out")
    ]


class Why(Struct, frozen=True, kw_only=True):
    """A score in terms that add up: sum = link(score)."""

    user: Known
    item_id: str
    model: Served
    terms: list[Term]
    sum: float
    link: Link
    score: float
    degraded: Degraded = UNSET


class Signal(Struct, frozen=True, kw_only=True):
    """What one detector has said."""

    detections: int
    last_ts_ms: int | None = None


class Drift(Struct, frozen=True, kw_only=True):
    """The detectors by signal; empty where the trainer publishes none."""

    signals: dict[str, Signal]


class UserRow(Struct, frozen=True, kw_only=True):
    """What is kept of a user."""

    user_id: str
    events: int
    exposures: int
    epoch: int
    sequence: int


class ItemRow(Struct, frozen=True, kw_only=True):
    """What is kept of an item."""

    item_id: str
    title: str | None
    attributes: dict[str, Any]
    events: int
    exposures: int
    epoch: int
    sequence: int


class Accepted(Struct, frozen=True, kw_only=True):
    """How many events the broker has acknowledged."""

    accepted: int


class BadPosted(Struct, frozen=True, kw_only=True):
    """One event that is none."""

    index: int
    reason: str
    detail: str


class ProblemBody(Struct, frozen=True, kw_only=True):
    """An error, RFC 9457; `code` is stable."""

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
    """Return the body as JSON."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")
