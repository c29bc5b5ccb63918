"""The model as the trainer publishes it, in the form that the formulas need."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Link = Literal["identity", "logit"]


@dataclass(frozen=True, slots=True)
class PublishedOutcome:
    """One outcome of the model: its index in the rows, its link and its scale."""

    index: int
    name: str
    link: Link
    low: float
    high: float
    residual_sd: float | None

    def inverse(self, eta: Floats) -> Floats:
        """Return the expected outcome (n,): a probability, or a value within the scale."""
        if self.link == "logit":
            return np.asarray(1.0 / (1.0 + np.exp(-np.clip(eta, -60.0, 60.0))), eta.dtype)
        return np.clip(eta, self.low, self.high)

    def forward(self, mean: Floats) -> Floats:
        """Return the link of an expected outcome; probabilities are first moved inside (0, 1)."""
        if self.link == "logit":
            safe = np.clip(mean, 1e-12, 1.0 - 1e-12)
            return np.asarray(np.log(safe) - np.log1p(-safe), mean.dtype)
        return mean

    def slope(self, mean: Floats) -> Floats:
        """Return d mean / d eta, the factor of the delta method."""
        return mean * (1.0 - mean) if self.link == "logit" else np.ones_like(mean)

    def unit(self, mean: Floats) -> Floats:
        """Return the expected outcome as a share of its scale, in [0, 1]."""
        return (mean - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Average:
    """The average effect of showing: estimate, 95 % interval, and the windows of both arms.

    `reason` says why there is no interval; it is None if there is one or if none was published.
    """

    value: float
    interval: tuple[float, float] | None
    shown: int
    withheld: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PathFit:
    """The regression of an outcome on the terms of its score: their names and beta's covariance."""

    names: tuple[str, ...]
    covariance: Floats  # (p, p)


@dataclass(frozen=True, slots=True)
class PublishedRates:
    """Learning rates and initial accumulators of Adagrad, for the users' and items' own rows."""

    user_bias: float
    item_bias: float
    user_factor: float
    item_factor: float
    start_bias: float
    start_factor: float


@dataclass(frozen=True, slots=True)
class SlopeFit:
    """Slopes of items' numbers on the link scale, estimated within items, and their covariance."""

    names: tuple[str, ...]  # (N,) names of the attributes
    beta: Floats  # (N,)
    covariance: Floats  # (N, N)


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """The published model; `causal` is false if its rows contain only the plain outcome."""

    outcomes: Mapping[str, PublishedOutcome]
    factors: int
    causal: bool
    kappa: Floats  # (Y,)
    popularity_mean: Floats  # (Y,)
    confounder_slope: Floats  # (Y,) coefficient of s_u . t_i if shown, 0 while that path is closed
    confounder_slope0: Floats  # (Y,) its coefficient if withheld
    level0: Floats  # (Y,) constant of the withheld arm that belongs to alpha0
    theta: Floats  # (K,) probability that position k is examined, relative to the first
    scale: Floats  # (H,) A of each exposure head
    shift: Floats  # (H,) B of each exposure head, with ln(rho n) added
    controls: int | None
    averages: Mapping[str, Average]
    fits: Mapping[str, PathFit]
    slopes: Mapping[str, SlopeFit]  # of the outcomes with enough data
    mean_user: Floats  # (D,) the mean user's factors
    rates: PublishedRates | None
    lasting: int | None  # number of long-term exposure factors; None: all are
    max_links: int

    @property
    def heads(self) -> int:
        """Return how many exposure heads the rows hold: self-selection, then the policy."""
        return len(self.scale)

    @property
    def learned_heads(self) -> NDArray[np.intp]:
        """Return the heads that have learned something; the others have a scale of 0."""
        return np.flatnonzero(np.isfinite(self.scale) & (self.scale != 0.0))

    def has_control(self, outcome: PublishedOutcome) -> bool:
        """Return whether control outcomes of this outcome were learned."""
        if not self.causal or self.controls == 0:
            return False
        if outcome.name in self.averages:
            return self.averages[outcome.name].withheld > 0
        return not self.averages and bool(self.controls)


def parse(model: Mapping[str, Any]) -> PublishedModel:
    """Return the published JSON as a Model; missing parts are neutral (closed path, no head).

    Raises KeyError, TypeError or ValueError if `outcomes`, `factors` or `rows` are missing or
    invalid.
    """
    spread = model.get("residual_sd") or {}
    outcomes = {
        declared["name"]: PublishedOutcome(
            index=index,
            name=declared["name"],
            link=_link(declared.get("link", "identity")),
            low=float(declared.get("low", 0.0)),
            high=float(declared.get("high", 1.0)),
            residual_sd=spread.get(declared["name"]),
        )
        for index, declared in enumerate(model["outcomes"])
    }
    none = np.zeros(len(outcomes))
    exposure = model.get("exposure") or {}
    heads = int(model["rows"]["item"][0]) - 2 * len(outcomes) - 2
    unlearned = np.zeros(max(heads, 0))
    return PublishedModel(
        outcomes=outcomes,
        factors=int(model["factors"]),
        causal=heads > 0,
        kappa=np.asarray(model.get("kappa") or none, float),
        popularity_mean=np.asarray(model.get("popularity_mean") or none, float),
        confounder_slope=np.asarray(model.get("alpha") or none, float),
        confounder_slope0=np.asarray(model.get("alpha0") or none, float),
        level0=np.asarray(model.get("level0") or none, float),
        theta=np.asarray(model.get("theta") or [1.0], float),
        scale=np.asarray(exposure.get("scale") or unlearned, float),
        shift=np.asarray(exposure.get("shift") or unlearned, float),
        controls=model.get("controls"),
        averages={n: _average(v) for n, v in (model.get("effects") or {}).items()},
        fits={n: _fit(v) for n, v in (model.get("paths") or {}).items() if v.get("covariance")},
        slopes={n: _slopes(v) for n, v in (model.get("slopes") or {}).items() if v.get("open")},
        mean_user=np.asarray(model.get("mean_user") or np.zeros(int(model["factors"])), float),
        lasting=int(model["exposure_factors"]) - said
        if (said := model.get("session_factors"))
        else None,
        rates=_rates(model.get("rates")),
        max_links=int(model.get("max_links") or 2**31),
    )


def _link(said: str) -> Link:
    if said not in ("identity", "logit"):
        raise ValueError(f"unknown link {said!r}; it must be identity or logit")
    return cast(Link, said)


def _average(said: Mapping[str, Any]) -> Average:
    value, bounds = said.get("value"), said.get("interval")
    known = bounds is not None and all(b is not None for b in bounds)
    return Average(
        value=float("nan") if value is None else float(value),
        interval=(float(bounds[0]), float(bounds[1])) if bounds is not None and known else None,
        shown=int(said.get("shown") or 0),
        withheld=int(said.get("withheld") or 0),
        reason=said.get("reason"),
    )


def _fit(said: Mapping[str, Any]) -> PathFit:
    return PathFit(tuple(said["names"]), np.asarray(said["covariance"], float))


def _rates(said: Mapping[str, float] | None) -> PublishedRates | None:
    if said is None:
        return None
    return PublishedRates(
        **{field.name: float(said[field.name]) for field in fields(PublishedRates)}
    )


def _slopes(said: Mapping[str, Any]) -> SlopeFit:
    return SlopeFit(
        tuple(said["names"]), np.asarray(said["beta"], float), np.asarray(said["covariance"], float)
    )
