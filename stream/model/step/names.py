"""What the functions of the step take: named tuples of columns, tables, terms, rates and scratch.

Alphabet: D factors, E exposure factors, S session factors, Y outcomes, C biases of a row, and
W = D + E + S + C of a composed row; P uniform pairs an interaction; B interactions of one block;
o an outcome, h an exposure head, j an interaction, p its target (0) or a pair (1..P), k a link,
f a feature row, d a component.
"""

from typing import Any, NamedTuple

import numpy as np

from stream.model.layout import Layout

Array = Any  # of NumPy's, torch's or numba-cuda's, by where the tables stand
TERMS = ("intercept", "user", "item", "match", "popularity", "confounder")  # of a score


class Lane(NamedTuple):
    """Which of the lanes that work on one row this is, and how many there are: 0 of 1 on a CPU."""

    own: int
    all: int


class Columns(NamedTuple):
    """The interactions (B,), their uniform pairs (B, P), and how many were learned before each."""

    user: Array
    item: Array
    outcome: Array
    label: Array
    role: Array
    propensity: Array
    position: Array
    ts_s: Array
    counts: Array
    pair: Array
    step: Array


class Tables(NamedTuple):
    """Packed rows, the same memory as the bits of counts, and the links of users and items."""

    users: Array
    items: Array
    features: Array
    user_bits: Array
    item_bits: Array
    feature_bits: Array
    user_links: Array
    user_values: Array
    item_links: Array
    item_values: Array


class GlobalTerms(NamedTuple):
    """The arrays of `stream.model.scalars`, with its columns."""

    outcome: Array
    head: Array
    place: Array
    withheld: Array
    counters: Array


class Outcomes(NamedTuple):
    """Per outcome: whether its link is the logit, and the bounds of its labels."""

    logit: Array
    low: Array
    high: Array


class Rates(NamedTuple):
    """The rates and shares of `ModelConfig`, as float32."""

    user_bias: np.float32
    user_factor: np.float32
    item_bias: np.float32
    item_factor: np.float32
    feature_bias: np.float32
    feature_factor: np.float32
    exposure: np.float32
    exposure_bias: np.float32
    session: np.float32
    session_share: np.float32
    recent: np.float32
    shrink: np.float32
    keep: np.float32
    alpha: np.float32
    clip: np.float32
    robust: np.float32
    tie: np.float32
    half_life: np.float32
    mix: np.float32
    start: np.float32
    synthetic: np.float32


class Paths(NamedTuple):
    """Which paths of the model are open; `live` where the interactions count (no replay)."""

    exposure: bool
    weights: bool
    robust: bool
    popularity: bool
    position: bool
    confounder: bool
    control: bool
    live: bool


class Given(NamedTuple):
    """What a driver is called with: the interactions, and what they are learned by."""

    columns: Columns
    tables: Tables
    terms: GlobalTerms
    outcomes: Outcomes
    rates: Rates
    on: Paths


class Layouts(NamedTuple):
    """Where the parts of the rows stand, and how many pairs an interaction has: constants."""

    user: Layout
    item: Layout
    feature: Layout
    pairs: int


class Model(NamedTuple):
    """All that an interaction is learned by; `at` and `lane` are constants to the compiler."""

    at: Layouts
    lane: Lane
    tables: Tables
    terms: GlobalTerms
    outcomes: Outcomes
    rates: Rates
    on: Paths


class Scratch(NamedTuple):
    """Room for one interaction: rows as they enter its score, gradients, and per-p numbers."""

    user: Array  # (W,) its user's, composed
    items: Array  # (1 + P, W) the target's and the pairs'
    links: Array  # (1 + P,) how many attribute values each is linked to
    weight: Array  # (1 + P,) of a link, 1 / sqrt(links)
    grad: Array  # (D + E + S,) of the user's vectors
    error: Array  # (1 + P,) of the outcome if shown
    contrast: Array  # (1 + P,) of the exposure head
    session: Array  # (1 + P,) the same with the session
    eta: Array  # (1 + P,) exposure scores
    raised: Array  # (2 (1 + P),) of each p, and with the session
    told: Array  # (n, told columns) what the interactions say of the global terms


class Predictions(NamedTuple):
    """What was expected of each interaction before it was learned."""

    prediction: Array  # (B,) of the outcome, as it was shown
    control: Array  # (B,) of the outcome if withheld; nan where nothing is known
    terms: Array  # (B, 6) of the sampled ones' scores; else the user's alone
    served: Array  # (B,) as a list by outcome would have said it; nan of no outcome


class Event(NamedTuple):
    """One interaction as it is learned."""

    j: int  # its place among the columns
    at: int  # its row of the scratch
    step: int  # how many were learned before it
    u: int
    i: int
    o: int
    role: int
    label: np.float32
    logit: bool
    place: int  # from 0
    head: int  # of exposure: 0 self-selection, 1 the policy
    treated: bool  # teaches the outcome if shown
