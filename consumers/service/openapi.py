"""The OpenAPI document, generated from the types of requests, answers and events."""

from typing import Any

import msgspec

from consumers.metrics import distribution_version
from consumers.service import answers, requests
from consumers.service.examples import EXAMPLES
from stream.schemas import EVENTS

JSON = "application/json"
PROBLEM = "application/problem+json"

_TYPES = (
    requests.Recommend, requests.Rank, requests.AskEffect, requests.AskWhy,
    answers.Recommendation, answers.Ranking, answers.Effect, answers.Why, answers.Drift,
    answers.UserRow, answers.ItemRow, answers.Accepted,
    answers.ProblemBody, *EVENTS.values(),
)  # fmt: skip

NOTES = """\
Recommendations from a model that learns while events arrive.

**Unknown users** are answered as the average user: the global mean plus each item's bias, without
the effect of popularity. Reading never creates anything.

**Objectives.** `outcome`: the expected outcome if shown at the first position, with the effects of
position and popularity removed; the user's long-term trait (the confounder term) is kept.
`effect`: expected outcome if shown minus if withheld, in the world as it is. Without any control
outcome it is a 422 `no_control`; an item without a control outcome of its own gets the average
effect, and its `support` says so. `consumption`: the probability of exposure times the outcome, as
an ordinary recommender learns it; a rating counts as its share of the scale. The probability is
that of self-selection for ratings and that of the present policy for clicks; while one of the two
has learned nothing the other is used, and while neither has, it is a 422 `not_available`.

**`do`** sets parts of the world, several at once: `shown` (true: against withheld), `position`
(from 1; multiplies the probability of a click), `popularity` (a count), `attributes` of the item
(the others do not change). For a list it is a counterfactual ranking: all candidates in the world
that is set. `shown: false` ranks by the expected outcome if withheld, and `support` says for which
items no control outcome of their own was observed. Values that were never observed are refused: an
attribute value that no item had, a number outside the observed range, a position or popularity
beyond it. Lists answer 422 `no_support`; `/v1/effect` answers with `support.ok` false, a reason and
no counterfactual.

**Randomisation.** If the service is configured to explore or to withhold, a part of the order of a
recommendation is random. Each item has the `propensity` with which it stands at its position.
Withheld items, which must not be shown, are listed with their position and `show_probability`.
`impression_id` names the list in impressions, clicks and ratings. Rankings of given items and lists
under `do` are never randomised.

**Intervals** are 95 % intervals, and `interval_kind` says of what kind. `predictive`: of one
rating. `model-based`: of an expected click or an effect, from how often user, item and attribute
values were observed, the variance of residuals, the learning rates and, if the model publishes one
(`paths`), the regression of the outcome on its paths. `within-item`: of a change of an item's
number alone (a price), from outcomes of the same items at other values of the number. `average`: of
the average effect, from closed windows (AIPW). If every path from what is set to the outcome is
closed, because none was learned, the effect is 0 without an interval, and `support.ok` is false.
"""


POSTED = (400, 403, 408, 413, 415, 422, 503)  # problems with which any POST may be answered


def describe() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    _, schemas = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    event = {"oneOf": [_ref(kind.__name__) for kind in EVENTS.values()]}
    events = {"oneOf": [event, {"type": "array", "items": event, "maxItems": requests.EVENTS_MAX}]}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "counterflow", "version": distribution_version(), "description": NOTES},
        "paths": {
            "/v1/recommend": {
                "post": _operation(
                    "The best items for a user", "Recommendation", _ref("Recommend"),
                    problems=POSTED,
                )
            },
            "/v1/rank": {
                "post": _operation(
                    "Given items, best first", "Ranking", _ref("Rank"),
                    problems=POSTED,
                )
            },
            "/v1/effect": {
                "post": _operation(
                    "What an intervention changes for one user and item", "Effect",
                    _ref("AskEffect"), problems=(404, *POSTED),
                )
            },
            "/v1/explain": {
                "post": _operation(
                    "Why one user and item have their score", "Why", _ref("AskWhy"),
                    problems=(404, *POSTED),
                )
            },
            "/v1/events": {
                "post": _operation(
                    "Send events to Kafka; answers 202 after the broker's acknowledgement",
                    "Accepted", events,
                    status=202, problems=POSTED,
                )
            },
            "/v1/users/{user_id}": {
                "get": _operation("A user's counts", "UserRow", name="user_id")
            },
            "/v1/items/{item_id}": {
                "get": _operation("An item's title, attributes and counts", "ItemRow",
                                  name="item_id")
            },
            "/v1/model": {"get": _operation("The served model", problems=(503,))},
            "/v1/drift": {
                "get": _operation("The drift detectors", "Drift", problems=(503,))
            },
            "/livez": {"get": _operation("Whether the process works", problems=())},
            "/readyz": {"get": _operation("Whether it can answer", problems=(503,))},
        },
        "components": {"schemas": schemas},
    }  # fmt: skip
    for path, examples in EXAMPLES.items():
        content = document["paths"][path]["post"]["requestBody"]["content"][JSON]
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return document


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _operation(
    summary: str,
    returns: str | None = None,
    body: dict[str, Any] | None = None,
    *,
    name: str | None = None,
    status: int = 200,
    problems: tuple[int, ...] = (404, 503),
) -> dict[str, Any]:
    schema = _ref(returns) if returns else {"type": "object"}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            str(status): {"description": "done", "content": {JSON: {"schema": schema}}},
            **{
                str(code): {
                    "description": "a problem",
                    "content": {PROBLEM: {"schema": _ref("ProblemBody")}},
                }
                for code in problems
            },
        },
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    if name is not None:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return operation
