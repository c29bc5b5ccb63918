"""The role of an interaction in learning."""

from enum import IntEnum


class InteractionType(IntEnum):
    """Determines what the learner learns from an interaction and what it counts."""

    FACTUAL = 0  # a rating without an impression: self-selected
    EXPOSED = 1  # a shown exposure with its outcome, learned once
    CONTROL = 2  # a withheld item with its control outcome
    CONSUMED = 3  # a click without an exposure: teaches exposure, not the outcome if shown
    CORRECTION = 4  # a click that arrives after the exposure was learned as 0
    PREDICT = 5  # a shown or withheld exposure opens: predict both arms, learn nothing
    CLOSED = 6  # the window of an already learned exposure closes: learn nothing


SYNTHETIC = 7  # a counterfactual outcome made by the model; its label is a residual
