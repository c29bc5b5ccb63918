"""What can be chosen about the model."""

from dataclasses import dataclass, fields
from math import isfinite
from typing import Literal, get_args

Link = Literal["identity", "logit"]
Step = Literal["auto", "sequential", "blocks"]
Device = Literal["auto", "cpu", "cuda"]
FORMER = {  # what model.step was called, and what to say now
    "compiled": "model.step compiled is called sequential now",
    "torch": "model.step torch is gone: choose blocks, on a GPU or on threads of the CPU",
}
BLOCK_MAX = 1 << 20  # interactions
THREADS_MAX = 64
ROWS_MAX = 2**31 - 1  # numbers of rows are 32-bit integers
HALF_LIFE_MIN_S = 1.0  # event times are learned in whole seconds
SCALE_MAX = 1e9  # of a label: products of squared errors stay within 32-bit floating point
SCALE_SHARE = 1e-6  # of the larger end: a narrower scale has no values between in 32 bits


def scale_fault(low: float, high: float) -> str:
    """Return what is wrong with a scale of labels from `low` to `high`; empty if nothing is."""
    if not (isfinite(low) and isfinite(high)):
        return "both ends must be finite"
    if low >= high:
        return "the lower end is not below the upper one"
    largest = max(abs(low), abs(high))
    if largest > SCALE_MAX:
        return f"an end lies beyond {SCALE_MAX:g}"
    if high - low < SCALE_SHARE * largest:
        return "the ends are too close together for 32-bit floating point"
    return ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing that is predicted: its name, its link, and the scale of its labels."""

    name: str
    link: Link
    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse a scale on which nothing can be learned."""
        if fault := scale_fault(self.low, self.high):
            raise ValueError(
                f"model.outcomes: the scale {self.low} to {self.high} of {self.name}: {fault}"
            )

    @property
    def middle(self) -> float:
        """Return the label that is expected before any was seen."""
        return (self.low + self.high) / 2


OUTCOMES = (Outcome("rating", "identity", 1.0, 5.0), Outcome("click", "logit", 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Paths:
    """Which paths of the model are open; each can be closed alone, for an ablation.

    `exposure` learns who is shown what, `weights` corrects for it, `robust` adds the doubly robust
    term, `popularity`, `position` and `confounder` are paths of the outcome, `control` learns what
    happens without showing.
    """

    exposure: bool = True
    weights: bool = True
    robust: bool = True
    popularity: bool = True
    position: bool = True
    confounder: bool = True
    control: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model's shape, rates and limits.

    The rates are those of row-wise Adagrad, found by a random search on the progressive error of
    MovieLens-100K in time order. Users learn faster than items, and items faster than attribute
    values, because they are fewer events deep. `start_*` is what an accumulator holds before the
    first event; it caps the first steps, which Adagrad would otherwise take at full rate.
    """

    factors: int = 32
    exposure_factors: int = 16  # of what lasts in who is shown what
    session_factors: int = 16  # of what goes with the items just chosen
    outcomes: tuple[Outcome, ...] = OUTCOMES
    paths: Paths = Paths()
    lr_user_bias: float = 0.38
    lr_item_bias: float = 0.22
    lr_feature_bias: float = 0.07
    lr_user_factor: float = 0.2
    lr_item_factor: float = 0.045
    lr_feature_factor: float = 0.0375
    start_bias: float = 4.3
    start_factor: float = 0.2
    spread_factor: float = 0.015  # standard deviation of a new user's or item's own vector
    spread_feature: float = 0.07  # of a new attribute value's vector
    shrink: float = 0.0  # L2 pull of own rows towards 0, a share of the rate; attributes are free
    lr_exposure: float = 0.05
    lr_session: float = 0.075
    lr_exposure_bias: float = 0.4  # of an item's own: what is shown changes fastest
    start_exposure: float = 0.05
    spread_exposure: float = 0.1
    session_share: float = 3.0  # of the latest items' mean session vector in a user's own
    session_items: float = 2.5  # in so many items the memory of that mean falls to 1/e
    pairs: int = 2  # uniform pairs an event is contrasted with
    alpha: float = 0.5  # weights are propensity ** (alpha - 1): 0 corrects in full, 1 not at all
    clip: float = 0.02  # a propensity below it counts as it
    robust_share: float = 0.3  # of the doubly robust term: 0 is SNIPS, 1 plain DR
    mix: float = 0.25  # share of the corrected error in what shapes the vectors
    tie: float = 0.02  # pull of control rows towards the treated, a share of the rate
    half_life_s: float = 604_800.0  # of an item's popularity
    synthetic: float = 0.0  # weight of outcomes nobody observed (see synthetic.py), 0: none made
    memory: int = 200_000  # interactions in which running sums of global terms fall to a half
    average: float = 0.0  # Polyak average of the served item and attribute terms, 0: none
    replay_rows: int = 65_536  # interactions remembered for replay
    history: int = 128  # items a user is remembered to have seen, the latest
    max_users: int = 4_000_000  # reserved address space; memory is taken as rows are touched
    max_items: int = 2_000_000
    max_features: int = 200_000
    max_links: int = 24  # attribute values per user or item; later ones are left out
    linear: bool = True  # numbers have a slope beside their rounded values
    step: Step = "auto"  # which driver learns: choice.py
    device: Device = "auto"
    block: int = 256  # interactions that one block learns
    threads: int = 0  # of the CPU, for blocks; 0: one a core, at most 4

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the setting."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not isfinite(value):
                raise ValueError(f"model.{field.name} must be finite, not {value}")
        for name in (
            "factors", "exposure_factors", "history", "max_users", "max_items", "max_features",
            "max_links", "memory", "replay_rows",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1")
        for name in ("max_users", "max_items", "max_features"):
            if getattr(self, name) > ROWS_MAX:
                raise ValueError(f"model.{name} must be at most {ROWS_MAX}: rows have 32 bits")
        if self.half_life_s < HALF_LIFE_MIN_S:
            raise ValueError(f"model.half_life_s must be at least {HALF_LIFE_MIN_S:g}")
        for name in ("start_bias", "start_factor", "start_exposure"):
            if getattr(self, name) <= 0:  # an accumulator of 0 marks a row that does not exist yet
                raise ValueError(f"model.{name} must be above 0")
        if not self.outcomes or len({o.name for o in self.outcomes}) != len(self.outcomes):
            raise ValueError("model.outcomes must be at least one, with distinct names")
        for name in ("pairs", "session_factors", "session_share"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} must not be negative")
        if self.session_items < 1:
            raise ValueError("model.session_items must be at least 1")
        if not 0 < self.clip <= 1:
            raise ValueError("model.clip must be in (0, 1]")
        for name in ("alpha", "robust_share", "average", "tie", "shrink", "synthetic"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.{name} must be in [0, 1]")
        self._check_step()

    def _check_step(self) -> None:
        if self.step in FORMER:
            raise ValueError(FORMER[self.step])
        if self.step not in get_args(Step):
            raise ValueError(f"model.step must be one of {', '.join(get_args(Step))}")
        if self.device not in get_args(Device):
            raise ValueError(f"model.device must be one of {', '.join(get_args(Device))}")
        if self.step == "sequential" and self.device == "cuda":
            raise ValueError(
                "model.step sequential runs on the CPU: for model.device cuda choose blocks or auto"
            )
        if not 1 <= self.block <= BLOCK_MAX:
            raise ValueError(f"model.block must be in 1..{BLOCK_MAX}")
        if not 0 <= self.threads <= THREADS_MAX:
            raise ValueError(f"model.threads must be in 1..{THREADS_MAX}, or 0: one a core")

    def outcome(self, name: str) -> int:
        """Return the index of the outcome of that name."""
        return [o.name for o in self.outcomes].index(name)
