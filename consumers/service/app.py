"""The Starlette application: its routes and their handlers.

A request reads Redis once; the items are in memory.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np
import orjson
import redis.asyncio
from msgspec import UNSET, UnsetType
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from consumers.metrics import ServiceMetrics, distribution_version
from consumers.service import problems, ranking, request_validation
from consumers.service.answers import (
    Accepted,
    ItemRow,
    Known,
    Ranking,
    Recommendation,
    Scored,
    Support,
    UserRow,
    Withheld,
    answer,
)
from consumers.service.concurrency_limits import ConcurrencyLimiter, ConcurrencyLimiters
from consumers.service.connection_limits import ConnectionLimit
from consumers.service.effects import Effects, known, served
from consumers.service.exploration import Explorer, Slate, Withholds, greedy
from consumers.service.follower import Follower
from consumers.service.health import AtScrape, Broker
from consumers.service.host_filter import HostFilter
from consumers.service.impressions import ImpressionLog, Shown
from consumers.service.item_index import ItemIndex, Rows
from consumers.service.openapi import describe
from consumers.service.posted import Posted, Produce, read
from consumers.service.problems import Problem, unavailable
from consumers.service.requests import (
    ID_MAX_BYTES,
    ListRequest,
    Rank,
    Recommend,
    decode,
    read_body,
)
from consumers.service.store import Store
from consumers.service.timing import Timing
from consumers.service.users import Found, Users
from consumers.service.withholding import Lot, Withholding
from consumers.settings import Settings
from model_store.keys import GENERATION
from model_store.reader import AsyncReader
from stream.errors import CounterflowError
from stream.inference.model import Floats, PublishedOutcome

log = logging.getLogger("counterflow.service")

T = TypeVar("T")

_RECOMMEND = msgspec.json.Decoder(Recommend)
_RANK = msgspec.json.Decoder(Rank)
CANCEL_S = 1.0  # longest wait for a background task to end before it is cancelled again
_SEEN_BY = ("rating", "click")  # events after which an item counts as seen

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>counterflow</title>
<h1>counterflow {version}</h1><p>{state}</p><ul>{links}</ul></html>
"""
LINKS = ("/v1/model", "/v1/drift", "/readyz", "/livez", "/metrics", "/openapi.json")


def create_app(
    settings: Settings,
    client: redis.asyncio.Redis,
    produce: Produce | None,
    registry: CollectorRegistry,
    clock: Callable[[], float] = time.time,
    impressions: ImpressionLog | None = None,
    loaded: Callable[[], object] = lambda: None,
) -> Starlette:
    """Return the application.

    Parameters
    ----------
    settings : Settings
        All settings.
    client : redis.asyncio.Redis
        Client of the vector cache (`connect_async`).
    produce : callable or None
        Sends posted events and blocks until the broker acknowledges them; None accepts no events.
    registry : CollectorRegistry
        Receives the service's metrics.
    clock : callable
        Unix time in seconds.
    impressions : ImpressionLog, optional
        Logs each recommendation.
    loaded : callable
        Called each time all items have been loaded anew, before they are served.
    """
    service = Service(settings, client, produce, registry, clock, impressions, loaded)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = service.start()
        try:
            yield
        finally:
            while tasks:  # repeat: a cancellation that coincides with a reply can be lost
                for task in tasks:
                    task.cancel()
                tasks = (await asyncio.wait(tasks, timeout=CANCEL_S))[1]
            service.limiters.close()
            await client.aclose()

    routes = _routes(service)
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={
            Problem: problems.on_problem,
            CounterflowError: problems.on_store,
            ClientDisconnect: problems.on_gone,
            HTTPException: problems.on_http,
            Exception: problems.on_error,
        },
    )
    templates = {route.endpoint: route.path.replace(":path", "") for route in routes}
    histogram = service.metrics.http_request_duration_seconds
    app.add_middleware(HostFilter, settings=settings.service)
    app.add_middleware(ConnectionLimit)
    app.add_middleware(Timing, histogram=histogram, templates=templates)
    return app


def _routes(service: "Service") -> list[Route]:
    """Return the table of routes."""
    return [
        Route("/", service.page),
        Route("/v1/recommend", service.recommend, methods=["POST"]),
        Route("/v1/rank", service.rank, methods=["POST"]),
        Route("/v1/effect", service.effects.effect, methods=["POST"]),
        Route("/v1/explain", service.effects.explain, methods=["POST"]),
        Route("/v1/events", service.events, methods=["POST"]),
        Route("/v1/users/{user_id:path}", service.user),
        Route("/v1/items/{item_id:path}", service.item),
        Route("/v1/model", service.model),
        Route("/v1/drift", service.effects.drift),
        Route("/livez", service.livez),
        Route("/readyz", service.readyz),
        Route("/metrics", service.metrics_page),
        Route("/openapi.json", service.openapi),
    ]


class Service:
    """The handlers of the routes and the components that they share."""

    def __init__(
        self,
        settings: Settings,
        client: redis.asyncio.Redis,
        produce: Produce | None,
        registry: CollectorRegistry,
        clock: Callable[[], float],
        impressions: ImpressionLog | None,
        loaded: Callable[[], object],
    ) -> None:
        self.settings = settings
        self.metrics = ServiceMetrics(registry)
        self.reader = AsyncReader(client, settings.redis.prefix)
        self.store = Store(client, settings.redis.read_timeout_s, self.metrics)
        ttl_s = settings.redis.ttl_s
        self.users = Users(
            client, self.store, settings.redis.prefix, ttl_s, settings.service.seen_max
        )
        self.limiters = ConcurrencyLimiters()
        self.effects = Effects(settings, self.users, self._index, self.limiters)
        self.follower = Follower(self.reader, self.metrics, time.monotonic, loaded, ttl_s)
        self.broker = None if produce is None else Broker(settings.kafka)
        self.following: asyncio.Task[None] | None = None
        self.explorer = Explorer(settings.exploration)
        self.withholding = Withholding(settings, client)
        self._impressions = impressions
        self._produce = produce
        self._clock = clock
        self._openapi = orjson.dumps(describe())
        AtScrape(
            "counterflow_dependency_up", "1 while the dependency answers", self._up, registry,
            "dependency",
        )  # fmt: skip
        AtScrape(
            "counterflow_model_age_seconds",
            "Seconds since a trainer changed or confirmed the model's rows",
            lambda: {"": self.follower.age_s()},
            registry,
        )

    def start(self) -> set[asyncio.Task[None]]:
        """Start the background tasks and return them."""
        self.following = asyncio.create_task(self.follower.run())
        watches = [self.store.watch(), self.withholding.run()]
        watches += [self.broker.watch()] if self.broker else []
        return {self.following, *map(asyncio.create_task, watches)}

    def _up(self) -> dict[str, float | None]:
        """Return 1 or 0 for each dependency."""
        up: dict[str, float | None] = {"redis": float(self.store.up())}
        return up if self.broker is None else up | {"kafka": float(self.broker.up())}

    # lists ---------------------------------------------------------------------------------------

    async def recommend(self, request: Request) -> Response:
        """Answer with the best k items."""
        asked = await self._asked(_RECOMMEND, request)
        index = self._index()
        self._choose(index, asked)
        async with self.limiters.of(index, asked) as limiter:
            names: list[str] = []
            if request_validation.describes(asked.do):
                names = await limiter.run(attribute_names, self._view(limiter), asked)
            seen = self.settings.service.exclude_seen
            found = await self.users.read(asked.user_id, seen, names)
            # under `do`, or without the user's row, the list is not a decision to randomise or log
            real = (asked.do is None or asked.do.empty) and not found.away
            now_ms = int(self._clock() * 1_000)  # time of the decision and of its impressions
            lot = await self.withholding.of(asked.user_id, now_ms) if real else None
            told = now_ms if real else None
            # the follower may have changed the items meanwhile: use one view from here on
            view = self._view(limiter)
            return await limiter.run(self._recommended, view, asked, names, found, lot, told)

    def _recommended(
        self,
        index: ItemIndex,
        asked: Recommend,
        names: Sequence[str],
        found: Found,
        lot: Lot | None,
        now_ms: int | None,
    ) -> Response:
        """Answer with the list; `now_ms` is the time of its impressions, None if it has none."""
        outcome = self._choose(index, asked)
        without = [*found.seen, *(item.encode() for item in asked.exclude)]
        rows = index.candidates(asked.filters, without)
        known, items, slate = self._list(index, outcome, asked, names, found, rows, asked.k, lot)
        shown = int(slate.shown.sum())
        return answer(
            Recommendation(
                user=known,
                model=served(index, outcome, asked.objective),
                items=items[:shown],
                impression_id=(
                    UNSET if now_ms is None else self._tell(asked.user_id, items, slate, now_ms)
                ),
                withheld=withheld(items, slate) if shown < len(items) else UNSET,
                degraded=found.degraded,
            )
        )

    async def rank(self, request: Request) -> Response:
        """Answer with the given items, best first, and the ids of the unknown ones."""
        asked = await self._asked(_RANK, request)
        index = self._index()
        self._choose(index, asked)
        async with self.limiters.of(index, asked) as limiter:
            names: list[str] = []
            if request_validation.describes(asked.do):
                items = [item.encode() for item in asked.item_ids]
                names = await limiter.run(
                    request_validation.needs, self._view(limiter), items, asked.do
                )
            found = await self.users.read(asked.user_id, False, names)
            return await limiter.run(self._ranked, self._view(limiter), asked, names, found)

    def _ranked(
        self, index: ItemIndex, asked: Rank, names: Sequence[str], found: Found
    ) -> Response:
        """Answer with the ranking."""
        outcome = self._choose(index, asked)
        rows, unknown = index.find_rows(asked.item_ids)
        known, items, _ = self._list(index, outcome, asked, names, found, rows, len(rows))
        model = served(index, outcome, asked.objective)
        return answer(
            Ranking(
                user=known,
                model=model,
                items=items,
                unknown_items=unknown,
                degraded=found.degraded,
            )
        )

    async def _asked(self, decoder: msgspec.json.Decoder[T], request: Request) -> T:
        """Return the decoded request body."""
        body = await read_body(request, self.settings.service.body_max_bytes)
        async with self.limiters.of_body(body) as limiter:
            return await limiter.run(decode, decoder, body)

    def _view(self, limiter: ConcurrencyLimiter) -> ItemIndex:
        """Return a consistent view of the items for the lane's work."""
        return self._index().view() if limiter.threaded else self._index()

    def _index(self) -> ItemIndex:
        """Return the items; raise a 503 problem before the first model was loaded."""
        if self.follower.index is None:
            raise unavailable(self.follower.problem)
        return self.follower.index

    def _choose(self, index: ItemIndex, asked: ListRequest) -> PublishedOutcome:
        """Return the outcome to rank by; raise a problem if the model cannot rank as asked."""
        default = self.settings.service.outcome
        outcome = request_validation.choose(index, asked.user_id, asked.outcome, default)
        request_validation.allow(index, outcome, asked.objective, asked.do)
        return outcome

    def _list(
        self,
        index: ItemIndex,
        outcome: PublishedOutcome,
        asked: ListRequest,
        names: Sequence[str],
        found: Found,
        rows: Rows | None,
        k: int,
        lot: Lot | None = None,
    ) -> tuple[Known, list[Scored], Slate]:
        """Return the slate and its scored items in the slate's order, withheld ones last.

        `rows` are the candidates, None for all items; `names` are attribute values read for `do`.
        """
        user = index.user(found.user)
        size = len(index.catalogue.items)
        everyone = np.arange(size)
        within = everyone if rows is None else rows
        if rows is not None and (names or 4 * len(rows) < size):
            place, within = rows, np.arange(len(rows))
            pairs = index.pairs(outcome, user, place)
        else:  # scoring all items is cheaper than copying most of their rows
            place, pairs = everyone, index.pairs(outcome, user)
        read = index.features(names, found.features)
        do, refusal = request_validation.intervene(
            index, pairs, place, asked.do, read, spread=False
        )
        if refusal is not None:
            raise refusal.problem()
        scores = ranking.scores(pairs, asked.objective, do)[within]
        if lot is not None and self.explorer.chance:
            decide = withholds(lot, index.catalogue.items.ids, place[within])
            ranked = ranking.best(scores, self.explorer.reach(k))
            slate = self.explorer.draw(ranked, len(scores), k, decide)
        else:
            slate = greedy(ranking.best(scores, k))
        order = slate.candidate
        best = place[within[order]]
        score = ranking.displayed(outcome, asked.objective, scores[order])
        pairs = index.pairs(outcome, user, best)
        do, _ = request_validation.intervene(index, pairs, best, asked.do, read)
        judged = ranking.judge(pairs, asked.objective, do, score)
        return known(user), scored(index, asked.objective, best, score, judged, slate), slate

    def _tell(
        self, user_id: str, items: Sequence[Scored], slate: Slate, now_ms: int
    ) -> str | UnsetType:
        """Log the slate; return its id, or UNSET if nothing is logged or left to chance."""
        if self._impressions is None and not self.explorer.chance:
            return UNSET
        impression_id = uuid.uuid4().hex
        if self._impressions is not None:
            ids = [item.item_id for item in items]
            self._impressions.put(Shown(impression_id, user_id, now_ms, ids, slate))
        return impression_id

    # rows ----------------------------------------------------------------------------------------

    async def user(self, request: Request) -> Response:
        """Answer with the user's counts."""
        user_id = request.path_params["user_id"]
        row = await self.store.ask(partial(self.reader.user, encoded(user_id)))
        if row is None:
            raise Problem(404, "unknown_user", "the user has no row", field="user_id")
        return answer(
            UserRow(
                user_id=user_id,
                events=row.events,
                exposures=row.exposures,
                epoch=row.epoch,
                sequence=row.sequence,
            )
        )

    async def item(self, request: Request) -> Response:
        """Answer with the item's title, attributes and counts."""
        item_id = request.path_params["item_id"]
        row = await self.store.ask(partial(self.reader.item, encoded(item_id)))
        if row is None:
            raise Problem(404, "unknown_item", "the item has no row", field="item_id")
        index = self.follower.index
        meta = index.catalogue.meta.get(encoded(item_id), {}) if index else {}
        return answer(
            ItemRow(
                item_id=item_id,
                title=meta.get("title"),
                attributes=meta.get("attributes") or {},
                events=row.events,
                exposures=row.exposures,
                epoch=row.epoch,
                sequence=row.sequence,
            )
        )

    async def model(self, _: Request) -> Response:
        """Answer with the trainer's description of the model, and with what is in memory."""
        index = self._index()
        return answer(
            {
                **index.model,
                "generation": GENERATION,
                "global_bias": index.globals().tolist(),
                "items": len(index.catalogue.items),
                "version": index.catalogue.version,
            }
        )

    # events --------------------------------------------------------------------------------------

    async def events(self, request: Request) -> Response:
        """Answer once the broker has acknowledged all events, else say which it acknowledged."""
        body = await read_body(request, self.settings.service.body_max_bytes)
        scale = (self.settings.model.rating_min, self.settings.model.rating_max)
        async with self.limiters.of_body(body) as limiter:
            events = await limiter.run(read, body, int(self._clock() * 1_000), scale)
        if self._produce is None:
            raise unavailable("this service has no broker to send events to", acknowledged=[])
        try:
            async with self.limiters.of_events(len(events)) as limiter:
                done = await limiter.run(self._produce, events)
        except CounterflowError as error:
            log.warning("posted events were not sent: %s", error)
            retry_after_s = getattr(error, "retry_after_s", 1.0)
            raise unavailable(
                "Kafka is unavailable: no event was acknowledged", retry_after_s, acknowledged=[]
            ) from error
        if self.settings.service.exclude_seen:
            await self._mark([event for event, ok in zip(events, done, strict=True) if ok])
        if not all(done):
            acknowledged = [index for index, ok in enumerate(done) if ok]
            raise unavailable(
                f"the broker acknowledged {len(acknowledged)} of {len(events)} events",
                acknowledged=acknowledged,
            )
        return answer(Accepted(accepted=len(events)), 202)

    async def _mark(self, events: Sequence[Posted]) -> None:
        """Exclude rated and clicked items from further lists; failures of Redis are only logged."""
        try:
            await self.users.mark(
                (event.user_id, event.item_id) for event in events if event.kind in _SEEN_BY
            )
        except CounterflowError as error:
            self.metrics.store_errors.labels(store="redis").inc()
            log.warning("seen items were not marked: %s", error)

    # health --------------------------------------------------------------------------------------

    async def livez(self, _: Request) -> Response:
        """Answer 200 while the process works, whether or not Redis does."""
        if self.following is None or self.following.done():
            raise Problem(503, "stopped", "the follower task has ended; restart the service")
        return answer({"live": True})

    async def readyz(self, _: Request) -> Response:
        """Answer 200 while lists can be served, from memory if necessary, with the model's age."""
        index = self._index()
        silent_s, most_s = self.follower.silent_s(), self.settings.service.ready_lag_s
        if 0 < most_s < silent_s:
            raise unavailable(f"Redis is silent for {silent_s:.1f} s: {self.follower.problem}")
        return answer(
            {
                "ready": True,
                "items": len(index.catalogue.items),
                "model_age_seconds": self.follower.age_s(),
                "degraded": [name for name, up in self._up().items() if not up],
            }
        )

    async def metrics_page(self, request: Request) -> Response:
        """Answer with the metrics in the requested format."""
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self.metrics.registry), headers={"content-type": media_type})

    async def openapi(self, _: Request) -> Response:
        """Answer with the OpenAPI description."""
        return Response(self._openapi, media_type="application/json")

    async def page(self, _: Request) -> Response:
        """Answer with an HTML page for people."""
        index = self.follower.index
        state = f"{len(index.catalogue.items)} items" if index else self.follower.problem
        links = "".join(f'<li><a href="{link}">{link}</a>' for link in LINKS)
        return HTMLResponse(PAGE.format(version=distribution_version(), state=state, links=links))


def attribute_names(index: ItemIndex, asked: Recommend) -> list[str]:
    """Return the attribute values whose rows the intervention needs, for all candidates."""
    rows = index.candidates(asked.filters, [])
    ids = index.catalogue.items.ids
    items = ids if rows is None else [ids[row] for row in rows.tolist()]
    return request_validation.needs(index, items, asked.do)


def scored(
    index: ItemIndex,
    objective: str,
    rows: Rows,
    scores: Floats,
    judged: Sequence[ranking.Judged],
    slate: Slate,
) -> list[Scored]:
    """Return the items of these rows with their scores, intervals and probabilities."""
    ids, meta = index.catalogue.items.ids, index.catalogue.meta
    items: list[Scored] = []
    for row, value, said, propensity, show_probability in zip(
        rows.tolist(),
        scores.tolist(),
        judged,
        slate.propensity.tolist(),
        slate.show_probability.tolist(),
        strict=True,
    ):
        item = ids[row]
        title: Any = meta[item].get("title") if item in meta else None
        support = None if said.own is None else Support(ok=said.own, reason=said.reason)
        items.append(
            Scored(
                item_id=item.decode(),
                title=title,
                score=value,
                propensity=propensity,
                show_probability=UNSET if show_probability == 1 else show_probability,
                interval=said.interval,
                interval_kind=said.kind,
                support=support,
            )
        )
    return items


def withholds(lot: Lot, ids: Sequence[bytes], rows: Rows) -> Withholds | None:
    """Return a function that says whether a candidate, an index into `rows`, is withheld."""
    withheld = lot.withheld
    return None if withheld is None else lambda each: withheld(ids[rows[each]])


def withheld(items: Sequence[Scored], slate: Slate) -> list[Withheld]:
    """Return the withheld items with the fields that their impression events need."""
    return [
        Withheld(
            item_id=items[place].item_id,
            position=int(slate.position[place]),
            propensity=float(slate.propensity[place]),
            show_probability=float(slate.show_probability[place]),
        )
        for place in np.flatnonzero(~slate.shown).tolist()
    ]


def encoded(entity: str) -> bytes:
    """Return an id from a path as bytes; a 404 for an id that no event can have."""
    try:
        id_ = entity.encode()
    except UnicodeEncodeError:
        raise Problem(404, "not_found", "the id is not valid UTF-8") from None
    if len(id_) > ID_MAX_BYTES:
        raise Problem(404, "not_found", f"the id is longer than {ID_MAX_BYTES} bytes")
    return id_
