"""Simulated worlds with known causal answers: events as producers send them, and the truth."""

from stream.worlds.adversarial import Adversarial
from stream.worlds.base import Change, Interactions, Wire, World, WorldBlock
from stream.worlds.change_point import ChangePoint
from stream.worlds.confounded import Confounded
from stream.worlds.heterogeneous import Heterogeneous
from stream.worlds.popularity import PopularityLoop
from stream.worlds.position import PositionBias
from stream.worlds.price import PriceEffects
from stream.worlds.records import record_batches

WORLDS: dict[str, type[World]] = {
    "adversarial": Adversarial,
    "change-point": ChangePoint,
    "confounded": Confounded,
    "heterogeneous": Heterogeneous,
    "popularity": PopularityLoop,
    "position": PositionBias,
    "price": PriceEffects,
}

__all__ = [
    "WORLDS",
    "Adversarial",
    "Change",
    "ChangePoint",
    "Confounded",
    "Heterogeneous",
    "Interactions",
    "PopularityLoop",
    "PositionBias",
    "PriceEffects",
    "Wire",
    "World",
    "WorldBlock",
    "record_batches",
]
