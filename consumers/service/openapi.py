"""The OpenAPI description, made from the types of requests, answers and events."""

from typing import Any

import msgspec

from consumers.metrics import distribution_version
from consumers.service import answers, requests
from stream.schemas import EVENTS

JSON = "application/json"
PROBLEM = "application/problem+json"

_TYPES = (
    requests.Recommend, requests.Rank,
    answers.Recommendation, answers.Ranking, answers.UserRow, answers.ItemRow, answers.Accepted,
    answers.ProblemBody, *EVENTS.values(),
)  # fmt: skip

NOTES = """\
Recommendations from rows that are learned while events come in.

**Unknown users** get the fallback: the global mean and what each item is worth to everyone (its
bias), with popularity nowhere in it. Reading never creates anything.

**Objectives.** `outcome`: the expected outcome if shown. `effect`: shown minus withheld; without a
control outcome it is a 422 `no_control`. `consumption`: as an ordinary recommender learns it; until
exposures are joined the chance of exposure is not known, and it ranks as `outcome` does.

**`do`** is not available yet and is a 422 `not_available`.
"""


def describe() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    _, schemas = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    event = {"oneOf": [_ref(kind.__name__) for kind in EVENTS.values()]}
    events = {"oneOf": [event, {"type": "array", "items": event, "maxItems": requests.EVENTS_MAX}]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "counterflow", "version": distribution_version(), "description": NOTES},
        "paths": {
            "/v1/recommend": {
                "post": _operation(
                    "The best items for a user", "Recommendation", _ref("Recommend"),
                    problems=(400, 413, 422, 503),
                )
            },
            "/v1/rank": {
                "post": _operation(
                    "Given items, best first", "Ranking", _ref("Rank"),
                    problems=(400, 413, 422, 503),
                )
            },
            "/v1/events": {
                "post": _operation(
                    "Events, to Kafka; 202 after its acknowledgement", "Accepted", events,
                    status=202, problems=(400, 413, 422, 503),
                )
            },
            "/v1/users/{user_id}": {
                "get": _operation("What is kept of a user", "UserRow", name="user_id")
            },
            "/v1/items/{item_id}": {
                "get": _operation("What is kept of an item", "ItemRow", name="item_id")
            },
            "/v1/model": {"get": _operation("The model that answers", problems=(503,))},
            "/livez": {"get": _operation("Whether the process works", problems=())},
            "/readyz": {"get": _operation("Whether it can answer", problems=(503,))},
        },
        "components": {"schemas": schemas},
    }  # fmt: skip


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
