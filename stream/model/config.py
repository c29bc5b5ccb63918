"""The settings of the model."""

from dataclasses import dataclass, fields
from math import isfinite
from typing import Literal, get_args

Link = Literal["identity", "logit"]
Step = Literal["auto", "sequential", "blocks"]
Device = Literal["auto", "cpu", "cuda"]
FORMER = {  # former values of model.step, with the error message for each
    "compiled": "model.step = compiled was renamed: set it to sequential",
    "torch": "model.step = torch was removed: set it to blocks, which uses a GPU or CPU threads",
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
class OutcomeConfig:
    """An outcome that is predicted: its name, its link, and the scale of its labels."""

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
        """Return the middle of the scale, which is predicted before any label was seen."""
        return (self.low + self.high) / 2


OUTCOMES = (
    OutcomeConfig("rating", "identity", 1.0, 5.0),
    OutcomeConfig("click", "logit", 0.0, 1.0),
)


@dataclass(frozen=True, slots=True)
class PathConfig:
    """Which paths of the model are enabled; each can be disabled separately, for an ablation.

    `exposure` learns who is shown what, `weights` applies propensity weights, `robust` adds the
    doubly robust term, `popularity`, `position` and `confounder` are terms of the outcome, and
    `control` learns the outcomes of withheld items.
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
    """The model's dimensions, learning rates and limits.

    The rates are those of row-wise Adagrad, found by random search on the progressive error of
    MovieLens-100K in time order. Users have higher rates than items, and items than attribute
    values, because they see fewer events. `start_*` are the initial values of the accumulators;
    they limit the first steps, which Adagrad would otherwise take at the full rate. The symbols in
    the comments are those of docs/model.md.
    """

    factors: int = 32
    exposure_factors: int = 16  # s, t: long-term exposure factors
    session_factors: int = 16  # s', t': session factors, of the items just chosen
    outcomes: tuple[OutcomeConfig, ...] = OUTCOMES
    paths: PathConfig = PathConfig()
    lr_user_bias: float = 0.38
    lr_item_bias: float = 0.22
    lr_feature_bias: float = 0.07
    lr_user_factor: float = 0.2
    lr_item_factor: float = 0.045
    lr_feature_factor: float = 0.0375
    start_bias: float = 4.3
    start_factor: float = 0.2
    spread_factor: float = 0.015  # standard deviation of a new user's or item's vector
    spread_feature: float = 0.07  # the same of a new attribute value's vector
    shrink: float = 0.0  # L2 penalty on users' and items' own rows; attribute values have none
    lr_exposure: float = 0.05
    lr_session: float = 0.075
    lr_exposure_bias: float = 0.4  # of items; the highest rate, as what is shown changes fastest
    start_exposure: float = 0.05
    spread_exposure: float = 0.1
    session_share: float = 3.0  # weight of r_u, the mean t' of the user's latest items
    session_items: float = 2.5  # r_u's time constant in items: its memory decays to about 1/e
    pairs: int = 2  # n: uniform items that an interaction is contrasted with
    alpha: float = 0.5  # weights are propensity ** (alpha - 1): 0 corrects in full, 1 not at all
    clip: float = 0.02  # least propensity; lower ones are raised to it
    robust_share: float = 0.3  # d: share of the doubly robust term; 0 is SNIPS, 1 plain DR
    mix: float = 0.25  # weight of the corrected error in the gradient of the vectors
    control_shrinkage: float = 0.02  # shrinkage of the control rows towards the treated rows
    half_life_s: float = 604_800.0  # of an item's decayed count (popularity)
    synthetic: float = 0.0  # weight of counterfactual outcomes (synthetic.py); 0 makes none
    sum_half_life: int = 200_000  # half-life of the global terms' running sums, in interactions
    average: float = 0.0  # decay of the Polyak average of served item and attribute terms; 0: off
    replay_rows: int = 65_536  # interactions remembered for replay
    history: int = 128  # latest items of a user that are remembered as seen
    max_users: int = 4_000_000  # reserves address space; memory is committed as rows are used
    max_items: int = 2_000_000
    max_features: int = 200_000
    max_links: int = 24  # attribute values per user or item; further ones are ignored
    linear: bool = True  # whether numbers have a slope besides their rounded values
    step: Step = "auto"  # the driver (choice.py)
    device: Device = "auto"
    block: int = 256  # most interactions per block
    block_share: float = 1 / 64  # most interactions per block, as a share of those learned before
    threads: int = 0  # CPU threads of the block driver; 0: one per core, at most 4

    def __post_init__(self) -> None:
        """Raise ValueError, naming the setting, if a value cannot work."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not isfinite(value):
                raise ValueError(f"model.{field.name} is {value}; it must be finite")
        for name in (
            "factors", "exposure_factors", "history", "max_users", "max_items", "max_features",
            "max_links", "sum_half_life", "replay_rows",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_users", "max_items", "max_features"):
            if getattr(self, name) > ROWS_MAX:
                raise ValueError(
                    f"model.{name} is {getattr(self, name)}; it must be at most {ROWS_MAX}, as row "
                    "numbers have 32 bits"
                )
        if self.half_life_s < HALF_LIFE_MIN_S:
            raise ValueError(
                f"model.half_life_s is {self.half_life_s}; it must be at least {HALF_LIFE_MIN_S:g}"
            )
        for name in ("start_bias", "start_factor", "start_exposure"):
            if getattr(self, name) <= 0:  # an accumulator of 0 marks a row that does not exist
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be above 0")
        if not self.outcomes or len({o.name for o in self.outcomes}) != len(self.outcomes):
            raise ValueError("model.outcomes must name at least one outcome, with distinct names")
        for name in ("pairs", "session_factors", "session_share"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 0")
        if self.session_items < 1:
            raise ValueError(f"model.session_items is {self.session_items}; it must be at least 1")
        if not 0 < self.clip <= 1:
            raise ValueError(f"model.clip is {self.clip}; it must be in (0, 1]")
        for name in (
            "alpha",
            "robust_share",
            "average",
            "control_shrinkage",
            "shrink",
            "synthetic",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be in [0, 1]")
        self._check_step()

    def _check_step(self) -> None:
        if self.step in FORMER:
            raise ValueError(FORMER[self.step])
        if self.step not in get_args(Step):
            raise ValueError(
                f"model.step is {self.step}; it must be one of {', '.join(get_args(Step))}"
            )
        if self.device not in get_args(Device):
            raise ValueError(
                f"model.device is {self.device}; it must be one of {', '.join(get_args(Device))}"
            )
        if self.step == "sequential" and self.device == "cuda":
            raise ValueError(
                "model.step = sequential runs on the CPU: with model.device = cuda set blocks or"
                " auto"
            )
        if not 1 <= self.block <= BLOCK_MAX:
            raise ValueError(f"model.block is {self.block}; it must be in 1..{BLOCK_MAX}")
        if not 0 < self.block_share <= 1:
            raise ValueError(f"model.block_share is {self.block_share}; it must be in (0, 1]")
        if not 0 <= self.threads <= THREADS_MAX:
            raise ValueError(
                f"model.threads is {self.threads}; it must be in 1..{THREADS_MAX}, or 0 for one "
                "per core"
            )

    def outcome(self, name: str) -> int:
        """Return the index of the outcome of that name."""
        return [o.name for o in self.outcomes].index(name)
