"""Example requests by path; they work on any service that has these items."""

from typing import Any

EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/recommend": {
        "the best ten": {"user_id": "7"},
        "comedies since 1990": {
            "user_id": "7",
            "k": 20,
            "filters": {"genre": "Comedy", "year": {"gte": 1990}},
        },
        "by what showing changes": {"user_id": "7", "outcome": "click", "objective": "effect"},
        "if all were at 9.90": {"user_id": "7", "do": {"attributes": {"price": 9.9}}},
    },
    "/v1/rank": {
        "three items": {"user_id": "7", "item_ids": ["50", "172", "181"]},
        "at the third position": {
            "user_id": "7",
            "item_ids": ["50", "172"],
            "outcome": "click",
            "do": {"position": 3},
        },
    },
    "/v1/effect": {
        "of showing": {
            "user_id": "7",
            "item_id": "50",
            "outcome": "click",
            "do": {"shown": True},
        },
        "of a price": {"user_id": "7", "item_id": "50", "do": {"attributes": {"price": 9.9}}},
        "of more popularity at the second position": {
            "user_id": "7",
            "item_id": "50",
            "outcome": "click",
            "do": {"position": 2, "popularity": 100},
        },
        "on a rating that was given": {
            "user_id": "7",
            "item_id": "50",
            "outcome": "rating",
            "do": {"attributes": {"genre": ["Comedy"]}},
            "observed": 4,
        },
    },
    "/v1/explain": {"why": {"user_id": "7", "item_id": "50"}},
    "/v1/events": {
        "a rating": {
            "type": "rating",
            "event_id": "r-1",
            "ts_ms": 1_790_000_000_000,
            "user_id": "7",
            "item_id": "50",
            "value": 4.0,
        }
    },
}
