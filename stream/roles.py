"""What an interaction is to the learner."""

from enum import IntEnum


class Role(IntEnum):
    """Why an interaction is there: what may be learned of it, and what it counts."""

    FACTUAL = 0  # a rating without an impression: self-selected
    EXPOSED = 1  # a shown exposure with its outcome: learned once
    CONTROL = 2  # a withheld item with its control outcome
    CONSUMED = 3  # a click without an exposure: never the outcome if shown
    CORRECTION = 4  # a late click, after the 0 was learned
    PREDICT = 5  # an impression or a withheld item arrives: predict both arms, learn nothing
    CLOSED = 6  # the window of an exposure learned before closes: learn nothing


SYNTHETIC = 7  # no event has it: an outcome that nobody observed, whose label is a residual
