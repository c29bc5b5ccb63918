"""Arguments of the step's functions: named tuples of columns, tables, terms, rates and scratch.

Symbols of dimensions: D factors, E exposure factors, S session factors, Y outcomes, C biases of a
row, W = D + E + S + C values of a composed row, P uniform items per interaction, B interactions of
a batch (in `stream.model.blocks`, of a block). Indices: o an outcome, h an exposure head, j an
interaction, p its target (0) or one of its uniform items (1..P), k a link, f the row of an
attribute value, d a component.
"""

from typing import Any, NamedTuple

import numpy as np

from stream.model.layout import Layout

Array = Any  # of NumPy, torch or numba-cuda, depending on where the tables are
TERMS = ("intercept", "user", "item", "match", "popularity", "confounder")  # of a score


class Lane(NamedTuple):
    """The index of a lane among those that work on one row, and their number; CPU: (0, 1)."""

    own: int
    all: int


class InteractionColumns(NamedTuple):
    """The interactions (B,), their uniform items (B, P), and the number learned before each."""

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


class TableArrays(NamedTuple):
    """Packed rows, uint32 views of them for the counts, and the links of users and items."""

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
    """The arrays of `stream.model.scalars.Scalars`."""

    outcome: Array
    head: Array
    position: Array
    withheld: Array
    counters: Array


class OutcomeLinks(NamedTuple):
    """Per outcome: whether its link is the logit, and the bounds of its labels."""

    logit: Array
    low: Array
    high: Array


class LearningRates(NamedTuple):
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
    weight_exponent: np.float32
    clip: np.float32
    robust: np.float32
    control_shrinkage: np.float32
    half_life: np.float32
    corrected_share: np.float32
    start: np.float32
    synthetic: np.float32


class OpenPaths(NamedTuple):
    """Which paths of the model are enabled; `live`: whether interactions count (not in replay)."""

    exposure: bool
    weights: bool
    robust: bool
    popularity: bool
    position: bool
    confounder: bool
    control: bool
    live: bool


class Given(NamedTuple):
    """The arguments of a driver: the interactions, and everything they are learned with."""

    columns: InteractionColumns
    tables: TableArrays
    terms: GlobalTerms
    outcomes: OutcomeLinks
    rates: LearningRates
    on: OpenPaths


class Layouts(NamedTuple):
    """The layouts of the rows and the number of uniform items; constants for the compiler."""

    user: Layout
    item: Layout
    feature: Layout
    pairs: int


class StepContext(NamedTuple):
    """All that an interaction is learned with; `at` and `lane` are compile-time constants."""

    at: Layouts
    lane: Lane
    tables: TableArrays
    terms: GlobalTerms
    outcomes: OutcomeLinks
    rates: LearningRates
    on: OpenPaths


class Scratch(NamedTuple):
    """Memory for one interaction: composed rows, gradients, and values of each of its items."""

    user: Array  # (W,) the user's composed row
    items: Array  # (1 + P, W) composed rows of the target and the uniform items
    links: Array  # (1 + P,) number of attribute values of each
    weight: Array  # (1 + P,) weight of a link, 1 / sqrt(links)
    grad: Array  # (D + E + S,) gradient of a row's vectors
    error: Array  # (1 + P,) derivative of the loss of the outcome if shown
    contrast: Array  # (1 + P,) derivative of the exposure loss
    session: Array  # (1 + P,) the same with the session
    eta: Array  # (1 + P,) exposure scores
    raised: Array  # (2 (1 + P),) exposure scores of each p without and with the session
    told: Array  # (n, account.columns) contributions to the global terms


class Predictions(NamedTuple):
    """The prediction of each interaction before it was learned."""

    prediction: Array  # (B,) of the outcome, as it was shown
    control: Array  # (B,) of the outcome if withheld; nan where unknown
    terms: Array  # (B, 6) TERMS of sampled scores; of others the user's only
    served: Array  # (B,) the served score; nan without an outcome if shown


class Interaction(NamedTuple):
    """One interaction in the form in which it is learned."""

    j: int  # its index in the columns
    at: int  # its row of `Scratch.told`
    step: int  # number of interactions learned before it
    u: int
    i: int
    o: int
    role: int
    label: np.float32
    logit: bool
    position: int  # position, from 0
    head: int  # exposure head: 0 self-selection, 1 the policy
    treated: bool  # whether it teaches the outcome if shown
