"""The OpenAPI description, made from the types of requests, answers and events."""

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
Recommendations from rows that are learned while events come in.

**Unknown users** get the fallback: the global mean and what each item is worth to everyone (its
bias), with popularity nowhere in it. Reading never creates anything.

**Objectives.** `outcome`: the expected outcome if shown at the first place, with position and
popularity taken out; what lasts in the user, the confounder term, stays in. `effect`: shown minus
withheld, the world being as it is; without any control outcome it is a 422 `no_control`, and an
item without one of its own gets the average effect, which `support` tells. `consumption`: the
chance of exposure times the outcome, as an ordinary recommender learns it; a rating counts as its
share of the scale. The chance is that of self-selection for ratings and of the present policy for
clicks, or of the other one where a head has learned nothing; where none has, it is a 422
`not_available`.

**`do`** sets parts of the world, several at once: `shown` (true: against withheld), `position`
(from 1; multiplies a click's chance), `popularity` (a count), `attributes` of the item (the others
stay). In lists it is a counterfactual ranking: all candidates in the world that is set; `shown:
false` ranks by what is expected when withheld; `support` tells for which items no control of their
own was observed. What was never observed is refused: an attribute value that no item had, a number
outside those seen, a place or popularity beyond. Lists answer 422 `no_support`; `/v1/effect`
answers with `support.ok` false, a reason, and no counterfactual.

**Chance.** Where the service is configured to explore or to withhold, a recommendation leaves part
of its order to chance: each item carries the `propensity` with which it stands at its place, and a
withheld item is named with its place and `show_probability`, not to be shown. `impression_id` names
the list in impressions, clicks and ratings. Rankings of given items and lists under `do` are never
left to chance.

**Intervals** are of 95 % and say which kind they are. `predictive`: of one rating. `model-based`:
of an expected click or an effect, from how often user, item and attribute values were seen, the
spread of residuals and the learner's rates, and, where the model publishes one (`paths`), from the
regression of the outcome on its paths. `within-item`: of a change of an item's number alone (a
price), from outcomes of the same items at other numbers. `average`: of the average effect, from
closed windows (AIPW). Where every path from what is set is closed, since none was learned, the
effect is 0 without an interval, and `support.ok` is false.
"""


POSTED = (400, 403, 408, 413, 415, 422, 503)  # what any POST may be answered


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
                    "Events, to Kafka; 202 after its acknowledgement", "Accepted", events,
                    status=202, problems=POSTED,
                )
            },
            "/v1/users/{user_id}": {
                "get": _operation("What is kept of a user", "UserRow", name="user_id")
            },
            "/v1/items/{item_id}": {
                "get": _operation("What is kept of an item", "ItemRow", name="item_id")
            },
            "/v1/model": {"get": _operation("The model that answers", problems=(503,))},
            "/v1/drift": {
                "get": _operation("What the drift detectors say", "Drift", problems=(503,))
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
