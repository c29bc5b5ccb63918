"""The JSON summary of a training run."""

from typing import Any

import numpy as np

from consumers.trainer import Trainer


def of(trainer: Trainer) -> dict[str, Any]:
    """Return the summary of `train`: counts, errors, freshness quantiles and lag."""
    figures = trainer.engine.progressive.figures("rating")
    first, last = trainer.first_poll_s, trainer.last_write_s
    seconds = last - first if first is not None and last is not None else 0.0
    freshness = np.array(trainer.freshness_s or [np.nan])
    return {
        "events": trainer.learned,
        "bad_events": trainer.bad_events,
        "duplicates": trainer.duplicates,
        "skipped_offsets": trainer.skipped,
        "open_exposures": trainer.engine.joiner.open_exposures,
        "seconds": round(seconds, 4),
        "events_per_s": round(trainer.learned / seconds) if seconds else None,
        "mae": figures.get("mae"),
        "rmse": figures.get("rmse"),
        "mae_served": figures.get("mae_served"),
        "rmse_served": figures.get("rmse_served"),
        "freshness_p50_s": _quantile(freshness, 0.5),
        "freshness_p99_s": _quantile(freshness, 0.99),
        "users": len(trainer.engine.users),
        "items": len(trainer.engine.items),
        "snapshot": trainer.snapshot,
        "lag": sum(trainer.source.lag().values()),
    }


def _quantile(values: "np.ndarray[Any, Any]", q: float) -> float | None:
    value = float(np.quantile(values, q))
    return round(value, 5) if np.isfinite(value) else None
