"""The routes for effects, explanations and drift."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from consumers.service import answers, ranking, request_validation
from consumers.service.answers import Known, Served, answer
from consumers.service.concurrency_limits import ConcurrencyLimiter, ConcurrencyLimiters
from consumers.service.item_index import ItemIndex, Rows
from consumers.service.problems import Problem, invalid
from consumers.service.requests import AskEffect, AskWhy, Intervention, decode, read_body
from consumers.service.users import Found, Users
from consumers.settings import Settings
from model_store.keys import GENERATION
from stream.errors import CounterflowError
from stream.inference import abduction, do, intervals, support
from stream.inference.explain import explain
from stream.inference.model import PublishedOutcome
from stream.inference.outcome import Scenario
from stream.inference.rows import ServedPairs, ServedUser

T = TypeVar("T")

_EFFECT = msgspec.json.Decoder(AskEffect)
_WHY = msgspec.json.Decoder(AskWhy)

ASSUMED = {
    "always": "nothing outside the model affects both exposure and outcome",
    "user": "the user has no row, so the answer is for the average user, without bias or factors",
    "shown": "items were withheld at random with the given show_probability, and what one user is"
    " shown does not affect another",
    "position": "the position affects whether an item is looked at, not how much it is liked",
    "rating": "a rating does not depend on the position",
    "popularity": "popularity affects the outcome through log(1 + count) alone",
    "closed": "a path that has not been learned has no effect",
    "attributes": "the attribute value's coefficient is the effect of setting it; total equals"
    " direct, as the model has no path from attributes to popularity or position, which are fixed",
    "within": "whatever changed the item's number did not affect its outcome in another way; the"
    " slope is that of the mean user, estimated within items, and the user's deviation from it is"
    " the learner's",
    "interval": "model-based: from the numbers of observations of user, item and attribute values,"
    " and from the noise of the learner's steps; without the error of position, popularity and"
    " confounder terms",
    "paths": "and from the regression of the outcome on its paths, linear on the outcome's scale",
    "average": "the average effect over the windows that the policy chose holds for this item",
    "individual": "random influences on the outcome are the same in both worlds",
}

CLOSED = (
    "no path from {} to the {} has been learned: it is closed, so the effect is reported as 0 and"
    " has no interval"
)


class Effects:
    """The routes that ask about one user and item instead of a list."""

    def __init__(
        self,
        settings: Settings,
        users: Users,
        index: Callable[[], ItemIndex],
        limiters: ConcurrencyLimiters,
    ) -> None:
        self._settings = settings
        self._users = users
        self._all = index
        self._limiters = limiters

    def _index(self) -> ItemIndex:
        """Return the items with links of their own; building those beats waiting for a lock."""
        return self._all().alone()

    async def effect(self, request: Request) -> Response:
        """Answer with the factual and counterfactual outcome and the effect of an intervention."""
        asked = await self._asked(_EFFECT, request)
        self._effect(self._index(), asked)
        item = asked.item_id.encode()
        async with self._limiters.of_one(asked.do) as limiter:
            names = await limiter.run(
                request_validation.needs, self._view(limiter), [item], asked.do
            )
            found = await self._users.read(asked.user_id, False, names)
            # the follower may have changed the items meanwhile: use one view from here on
            return await limiter.run(self._told, self._view(limiter), asked, names, found)

    def _told(
        self, index: ItemIndex, asked: AskEffect, names: Sequence[str], found: Found
    ) -> Response:
        """Answer with the effect from the rows that were read."""
        outcome = self._effect(index, asked)
        user = index.user(found.user)
        row = known_row(index, asked.item_id)
        pairs = index.pairs(outcome, user, row).wide()
        read = index.features(names, found.features)
        setting, refusal = request_validation.intervene(index, pairs, row, asked.do, read)
        common: dict[str, Any] = {
            "user": known(user),
            "item_id": asked.item_id,
            "model": served(index, outcome, "effect"),
            "degraded": found.degraded,
        }
        if refusal is not None:
            return answer(unsupported(pairs, refusal, common))
        return answer(effect(pairs, setting, asked, common))

    async def _asked(self, decoder: msgspec.json.Decoder[T], request: Request) -> T:
        """Return the decoded request body."""
        body = await read_body(request, self._settings.service.body_max_bytes)
        async with self._limiters.of_body(body) as limiter:
            return await limiter.run(decode, decoder, body)

    def _view(self, limiter: ConcurrencyLimiter) -> ItemIndex:
        """Return a consistent view of the items for the lane's work."""
        return self._index().view() if limiter.threaded else self._index()

    def _effect(self, index: ItemIndex, asked: AskEffect) -> PublishedOutcome:
        """Return the requested outcome; raise a problem if the model cannot answer."""
        default = self._settings.service.outcome
        outcome = request_validation.choose(
            index, asked.user_id, asked.outcome, default, asked.item_id
        )
        known_row(index, asked.item_id)
        if asked.do.empty:
            raise invalid("do", "set at least one of shown, position, popularity and attributes")
        if asked.do.shown is not UNSET and not index.parsed.has_control(outcome):
            raise request_validation.no_control("do.shown")
        request_validation.causal(index, "do")
        if asked.observed is not UNSET:
            on_scale(outcome, asked.observed)
        return outcome

    async def explain(self, request: Request) -> Response:
        """Answer with the score of one user and item as a sum of terms, one for each path."""
        asked = await self._asked(_WHY, request)
        self._explain(self._index(), asked)
        async with self._limiters.of_one(None):
            names: list[str] = []
            if self._index().parsed.causal:  # else rows of attribute values are not published
                item = asked.item_id.encode()
                names = request_validation.needs(self._index(), [item], Intervention(attributes={}))
            try:
                found = await self._users.read(asked.user_id, False, names)
            except CounterflowError:  # attributes then stay within the item's terms
                names, found = [], Found(None, away=True)
            return self._why(self._index(), asked, names, found)

    def _why(self, index: ItemIndex, asked: AskWhy, names: Sequence[str], found: Found) -> Response:
        """Answer with the explanation from the rows that were read."""
        outcome = self._explain(index, asked)
        user = index.user(found.user)
        pairs = index.pairs(outcome, user, known_row(index, asked.item_id)).wide()
        read = index.features(names, found.features)
        setting = asked.do or Intervention()
        refusal = request_validation.refused(index, outcome, setting, read)
        if refusal is not None:
            raise refusal.problem()
        world = Scenario(
            position=1 if setting.position is UNSET else setting.position,
            popularity=None if setting.popularity is UNSET else setting.popularity,
            clipped=True,
        )
        item, meta = asked.item_id.encode(), index.catalogue.meta
        why = explain(
            pairs, world, index.attributes.parts(item, meta, read, pairs) if names else {}
        )
        return answer(
            answers.Why(
                user=known(user),
                item_id=asked.item_id,
                model=served(index, outcome, "outcome"),
                terms=[answers.Term(name=t.name, value=t.value, cut=t.clipped) for t in why.terms],
                sum=why.sum,
                link=outcome.link,
                score=why.score,
                degraded=found.degraded,
            )
        )

    def _explain(self, index: ItemIndex, asked: AskWhy) -> PublishedOutcome:
        """Return the requested outcome; raise a problem if the model cannot explain it."""
        default = self._settings.service.outcome
        outcome = request_validation.choose(
            index, asked.user_id, asked.outcome, default, asked.item_id
        )
        known_row(index, asked.item_id)
        if asked.do is not None and not asked.do.empty:
            request_validation.causal(index, "do")
            if asked.do.shown is not UNSET or asked.do.attributes is not UNSET:
                raise invalid("do", "an explanation accepts only position and popularity")
        return outcome

    async def drift(self, _: Request) -> Response:
        """Answer with the drift detectors as the trainer last published them."""
        said = self._index().model.get("drift") or {}
        return answer(msgspec.convert({"signals": said}, answers.Drift))


def effect(
    pairs: ServedPairs, setting: do.Do, asked: AskEffect, common: dict[str, Any]
) -> answers.Effect:
    """Return the answer for one pair and one intervention."""
    found = do.contrast(pairs, setting)
    own = bool(found.own[0])
    said = pairs.model.averages.get(pairs.outcome.name)
    if not own and (said is None or not np.isfinite(said.value)):
        raise request_validation.no_control(
            "item_id", "no control outcome of this item was observed"
        )
    bounds = None if found.interval is None else [float(side[0]) for side in found.interval]
    if bounds is not None and not np.isfinite(bounds).all():
        bounds = None
    total = consumption = None
    if asked.do.attributes is not UNSET and asked.do.shown is UNSET:
        total = float(found.effect[0])
        if len(pairs.model.learned_heads):
            taken = do.consumed(pairs, setting)
            consumption = answers.Consumption(
                factual=float(taken.factual[0]),
                direct=float(taken.direct[0]),
                total=float(taken.total[0]),
            )
    within = bool(setting.attributes is not None and setting.attributes.within[0])
    alone = asked.do.shown is UNSET and asked.do.position is UNSET and asked.do.popularity is UNSET
    kind: ranking.IntervalKind = "average" if not own else "model-based"
    if within and alone:
        kind = "within-item"
    closed = setting.closed(pairs)
    reason = CLOSED.format(" and ".join(closed), pairs.outcome.name) if closed else None
    reason = reason if own else ranking.standing_in(pairs)
    return answers.Effect(
        **common,
        factual=float(found.factual[0]),
        counterfactual=float(found.counterfactual[0]),
        effect=float(found.effect[0]),
        interval=bounds,
        interval_kind=None if bounds is None else kind,
        support=answers.Support(ok=reason is None, reason=reason),
        assumptions=assumed(asked, pairs, common["user"].known, kind, bounds is not None),
        direct=total,
        total=total,
        consumption=consumption,
        individual=individual(pairs.outcome, asked, found),
    )


def unsupported(
    pairs: ServedPairs, refusal: request_validation.Refusal, common: dict[str, Any]
) -> answers.Effect:
    """Return the answer to an unsupported intervention: the factual outcome and the reason."""
    factual = do.contrast(pairs, do.Do()).factual
    return answers.Effect(
        **common,
        factual=float(factual[0]),
        counterfactual=None,
        effect=None,
        interval=None,
        interval_kind=None,
        support=answers.Support(ok=False, reason=f"{refusal.field}: {refusal.reason}"),
        assumptions=[],
    )


def individual(
    outcome: PublishedOutcome, asked: AskEffect, found: do.Contrast
) -> answers.Individual | None:
    """Return the counterfactual of the observed outcome, None if no outcome was given."""
    if isinstance(asked.observed, msgspec.UnsetType):
        return None
    observed = np.array([asked.observed])
    then = abduction.individual(outcome, observed, found.factual, found.counterfactual)
    return answers.Individual(
        observed=asked.observed,
        residual=float(abduction.residual(observed, found.factual)[0]),
        counterfactual=float(then[0]),
    )


def assumed(
    asked: AskEffect, pairs: ServedPairs, known: bool, kind: ranking.IntervalKind, bounded: bool
) -> list[str]:
    """Return the assumptions that the answer rests on."""
    modelled = bounded and kind == "model-based"
    asked_position = None if asked.do.position is UNSET else asked.do.position
    count = None if asked.do.popularity is UNSET else asked.do.popularity
    position = "position" if pairs.outcome.link == "logit" else "rating"
    names = {
        "always": True,
        "user": not known,
        "shown": asked.do.shown is not UNSET,
        position: asked.do.position is not UNSET,
        "popularity": asked.do.popularity is not UNSET,
        "attributes": asked.do.attributes is not UNSET,
        "within": kind == "within-item",
        "average": kind == "average",
        "closed": bool(support.closed(pairs.model, pairs.outcome, asked_position, count)),
        "interval": modelled,
        "paths": modelled and intervals.fitted(pairs),
        "individual": asked.observed is not UNSET,
    }
    return [ASSUMED[name] for name, holds in names.items() if holds]


def known_row(index: ItemIndex, item_id: str) -> Rows:
    """Return the item's row as an array (1,); a 404 for an unknown item."""
    rows, unknown = index.find_rows([item_id])
    if unknown:
        raise Problem(404, "unknown_item", "the item has no row", field="item_id")
    return rows


def on_scale(outcome: PublishedOutcome, observed: float) -> None:
    """Raise a problem unless the observed outcome is a possible one."""
    if not outcome.low <= observed <= outcome.high or (
        outcome.link == "logit" and observed not in (0.0, 1.0)
    ):
        wanted = "0 or 1" if outcome.link == "logit" else f"{outcome.low} to {outcome.high}"
        raise invalid("observed", f"a {outcome.name} must be {wanted}")


def known(user: ServedUser | None) -> Known:
    """Return whether the user has a row, and the row's events."""
    return Known(known=user is not None, events=0 if user is None else user.events)


def served(index: ItemIndex, outcome: PublishedOutcome, objective: str) -> Served:
    """Return the description of the model that answers."""
    return Served(
        generation=GENERATION,
        epoch=int(index.model.get("epoch", 0)),
        version=index.catalogue.version,
        outcome=outcome.name,
        objective=objective,
    )
