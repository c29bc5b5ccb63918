"""What can be chosen about the model."""

from dataclasses import dataclass
from typing import Literal

Link = Literal["identity", "logit"]
Step = Literal["auto", "compiled", "torch"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing that is predicted: its name, its link, and the scale of its labels."""

    name: str
    link: Link
    low: float
    high: float

    @property
    def middle(self) -> float:
        """Return the label that is expected before any was seen."""
        return (self.low + self.high) / 2


OUTCOMES = (Outcome("rating", "identity", 1.0, 5.0), Outcome("click", "logit", 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model's shape, rates and limits.

    The rates are those of row-wise Adagrad, found by a random search on the progressive error of
    MovieLens-100K in time order. Users learn faster than items, and items faster than attribute
    values, because they are fewer events deep. `start_*` is what an accumulator holds before the
    first event; it caps the first steps, which Adagrad would otherwise take at full rate.
    """

    factors: int = 32
    outcomes: tuple[Outcome, ...] = OUTCOMES
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
    negatives: int = 2  # unseen items that a click is learned against
    history: int = 128  # items a user is remembered to have seen, the latest
    max_users: int = 4_000_000  # reserved address space; memory is taken as rows are touched
    max_items: int = 2_000_000
    max_features: int = 200_000
    max_links: int = 24  # attribute values per user or item; later ones are left out
    step: Step = "auto"
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the setting."""
        for name in ("factors", "history", "max_users", "max_items", "max_features", "max_links"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1")
        for name in ("start_bias", "start_factor"):
            if getattr(self, name) <= 0:  # 0 marks a row that does not exist yet
                raise ValueError(f"model.{name} must be above 0")
        if not self.outcomes or len({o.name for o in self.outcomes}) != len(self.outcomes):
            raise ValueError("model.outcomes must be at least one, with distinct names")
        if self.negatives < 0:
            raise ValueError("model.negatives must not be negative")
        if self.step == "compiled" and self.device == "cuda":
            raise ValueError("model.step compiled runs on the CPU; model.device cuda needs torch")

    def outcome(self, name: str) -> int:
        """Return the index of the outcome of that name."""
        return [o.name for o in self.outcomes].index(name)
