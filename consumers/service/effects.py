"""What an intervention changes, why a score is what it is, and what the detectors say."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from consumers.service import answers, choice, ranking
from consumers.service.answers import Known, Served, answer
from consumers.service.problems import Problem, invalid
from consumers.service.requests import AskEffect, AskWhy, Intervention, decode, read_body
from consumers.service.shelf import Rows, Shelf
from consumers.service.users import Found, Users
from consumers.service.work import Lane, Lanes
from consumers.settings import Settings
from model_store.keys import GENERATION
from stream.errors import CounterflowError
from stream.inference import abduction, do, intervals, support
from stream.inference.explain import explain
from stream.inference.model import Outcome
from stream.inference.outcome import World
from stream.inference.rows import Pairs, User

T = TypeVar("T")

_EFFECT = msgspec.json.Decoder(AskEffect)
_WHY = msgspec.json.Decoder(AskWhy)

ASSUMED = {
    "always": "nothing outside the model moves both exposure and outcome",
    "user": "the user has no row: the average user, without bias or factors",
    "shown": "windows were withheld by chance alone, given their show_probability, and what one"
    " user is shown does not affect another",
    "position": "a place changes whether an item is looked at, not what it is worth",
    "rating": "a rating does not depend on the place",
    "popularity": "popularity acts on the outcome through log(1 + count) alone",
    "closed": "what no path was learned for changes nothing",
    "attributes": "the value's coefficient is what setting it would do; total is direct, since the"
    " model has no path from attributes to popularity or position: both are held",
    "within": "what moved the number of an item did not move its outcome in another way; the slope"
    " is that of the mean user, found within items, and the user's own part is the learner's",
    "interval": "model-based: from how often user, item and values were seen, and from what the"
    " learner's steps leave; without the error of position, popularity and confounder",
    "paths": "and from the regression of the outcome on its paths, linear on the outcome's scale",
    "average": "the average effect over the windows that the policy chose holds for this item",
    "individual": "what was left to chance stays the same in both worlds",
}

CLOSED = "no path from {} to the {} was learned: it is closed, so nothing is known beyond 0"


class Effects:
    """The routes that ask the model, not for a list."""

    def __init__(
        self, settings: Settings, users: Users, shelf: Callable[[], Shelf], lanes: Lanes
    ) -> None:
        self._settings = settings
        self._users = users
        self._all = shelf
        self._lanes = lanes

    def _shelf(self) -> Shelf:
        return self._all().alone()  # an item's links are found faster than waited for

    async def effect(self, request: Request) -> Response:
        """Answer with factual, counterfactual and effect of an intervention."""
        asked = await self._asked(_EFFECT, request)
        self._effect(self._shelf(), asked)
        item = asked.item_id.encode()
        async with self._lanes.of_one(asked.do) as lane:
            names = await lane.run(choice.needs, self._view(lane), [item], asked.do)
            found = await self._users.read(asked.user_id, False, names)
            # the follower may have moved items meanwhile: all from here is one
            return await lane.run(self._told, self._view(lane), asked, names, found)

    def _told(self, shelf: Shelf, asked: AskEffect, names: Sequence[str], found: Found) -> Response:
        outcome = self._effect(shelf, asked)
        user = shelf.user(found.user)
        row = place(shelf, asked.item_id)
        pairs = shelf.pairs(outcome, user, row).wide()
        read = shelf.features(names, found.features)
        setting, refusal = choice.intervene(shelf, pairs, row, asked.do, read)
        common: dict[str, Any] = {
            "user": known(user),
            "item_id": asked.item_id,
            "model": served(shelf, outcome, "effect"),
            "degraded": found.degraded,
        }
        if refusal is not None:
            return answer(unsupported(pairs, refusal, common))
        return answer(effect(pairs, setting, asked, common))

    async def _asked(self, decoder: msgspec.json.Decoder[T], request: Request) -> T:
        body = await read_body(request, self._settings.service.body_max_bytes)
        async with self._lanes.of_body(body) as lane:
            return await lane.run(decode, decoder, body)

    def _view(self, lane: Lane) -> Shelf:
        return self._shelf().view() if lane.threaded else self._shelf()

    def _effect(self, shelf: Shelf, asked: AskEffect) -> Outcome:
        """Return the outcome; what the model cannot say of the intervention is a problem."""
        default = self._settings.service.outcome
        outcome = choice.choose(shelf, asked.user_id, asked.outcome, default, asked.item_id)
        place(shelf, asked.item_id)
        if asked.do.empty:
            raise invalid("do", "name what is set: shown, position, popularity or attributes")
        if asked.do.shown is not UNSET and not shelf.parsed.has_control(outcome):
            raise choice.no_control("do.shown")
        choice.causal(shelf, "do")
        if asked.observed is not UNSET:
            on_scale(outcome, asked.observed)
        return outcome

    async def explain(self, request: Request) -> Response:
        """Answer with the score of one user and item, cut into its paths."""
        asked = await self._asked(_WHY, request)
        self._explain(self._shelf(), asked)
        async with self._lanes.of_one(None):
            names: list[str] = []
            if self._shelf().parsed.causal:  # else attribute values have no rows that are served
                item = asked.item_id.encode()
                names = choice.needs(self._shelf(), [item], Intervention(attributes={}))
            try:
                found = await self._users.read(asked.user_id, False, names)
            except CounterflowError:  # the terms add up, with attributes inside the item's
                names, found = [], Found(None, away=True)
            return self._why(self._shelf(), asked, names, found)

    def _why(self, shelf: Shelf, asked: AskWhy, names: Sequence[str], found: Found) -> Response:
        outcome = self._explain(shelf, asked)
        user = shelf.user(found.user)
        pairs = shelf.pairs(outcome, user, place(shelf, asked.item_id)).wide()
        read = shelf.features(names, found.features)
        setting = asked.do or Intervention()
        refusal = choice.refused(shelf, outcome, setting, read)
        if refusal is not None:
            raise refusal.problem()
        world = World(
            position=1 if setting.position is UNSET else setting.position,
            popularity=None if setting.popularity is UNSET else setting.popularity,
            cut=True,
        )
        item, meta = asked.item_id.encode(), shelf.catalogue.meta
        why = explain(pairs, world, shelf.linked.parts(item, meta, read, pairs) if names else {})
        return answer(
            answers.Why(
                user=known(user),
                item_id=asked.item_id,
                model=served(shelf, outcome, "outcome"),
                terms=[answers.Term(name=t.name, value=t.value, cut=t.cut) for t in why.terms],
                sum=why.sum,
                link=outcome.link,
                score=why.score,
                degraded=found.degraded,
            )
        )

    def _explain(self, shelf: Shelf, asked: AskWhy) -> Outcome:
        default = self._settings.service.outcome
        outcome = choice.choose(shelf, asked.user_id, asked.outcome, default, asked.item_id)
        place(shelf, asked.item_id)
        if asked.do is not None and not asked.do.empty:
            choice.causal(shelf, "do")
            if asked.do.shown is not UNSET or asked.do.attributes is not UNSET:
                raise invalid("do", "a score is explained under position and popularity")
        return outcome

    async def drift(self, _: Request) -> Response:
        """Answer with the detectors as the trainer published them last."""
        said = self._shelf().model.get("drift") or {}
        return answer(msgspec.convert({"signals": said}, answers.Drift))


def effect(
    pairs: Pairs, setting: do.Do, asked: AskEffect, common: dict[str, Any]
) -> answers.Effect:
    """Return the answer for one pair."""
    found = do.contrast(pairs, setting)
    own = bool(found.own[0])
    said = pairs.model.averages.get(pairs.outcome.name)
    if not own and (said is None or not np.isfinite(said.value)):
        raise choice.no_control("item_id", "no control outcome of this item has been observed")
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


def unsupported(pairs: Pairs, refusal: choice.Refusal, common: dict[str, Any]) -> answers.Effect:
    """Return the answer that refuses: the factual alone, and why."""
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


def individual(outcome: Outcome, asked: AskEffect, found: do.Contrast) -> answers.Individual | None:
    """Return what would have happened to the observed outcome, None if none is given."""
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
    asked: AskEffect, pairs: Pairs, known: bool, kind: ranking.IntervalKind, bounded: bool
) -> list[str]:
    """Return what the answer rests on."""
    modelled = bounded and kind == "model-based"
    place = None if asked.do.position is UNSET else asked.do.position
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
        "closed": bool(support.closed(pairs.model, pairs.outcome, place, count)),
        "interval": modelled,
        "paths": modelled and intervals.fitted(pairs),
        "individual": asked.observed is not UNSET,
    }
    return [ASSUMED[name] for name, holds in names.items() if holds]


def place(shelf: Shelf, item_id: str) -> Rows:
    """Return the row of an item (1,); an unknown one is a 404."""
    rows, unknown = shelf.rows([item_id])
    if unknown:
        raise Problem(404, "unknown_item", "no row of this item", field="item_id")
    return rows


def on_scale(outcome: Outcome, observed: float) -> None:
    """The observed outcome is one that can happen after the call, or it is a problem."""
    if not outcome.low <= observed <= outcome.high or (
        outcome.link == "logit" and observed not in (0.0, 1.0)
    ):
        wanted = "0 or 1" if outcome.link == "logit" else f"{outcome.low} to {outcome.high}"
        raise invalid("observed", f"a {outcome.name} is {wanted}")


def known(user: User | None) -> Known:
    """Return whether the user has a row."""
    return Known(known=user is not None, events=0 if user is None else user.events)


def served(shelf: Shelf, outcome: Outcome, objective: str) -> Served:
    """Return which model answers."""
    return Served(
        generation=GENERATION,
        epoch=int(shelf.model.get("epoch", 0)),
        version=shelf.catalogue.version,
        outcome=outcome.name,
        objective=objective,
    )
