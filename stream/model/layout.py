"""The positions of the fields in a packed row, for each kind of row.

A row is one piece of 64-byte-aligned memory, so an event touches few cache lines:

    vector D | exposure E | session S | bias C | bias_sum C | vector_sum | exposure_sum
             | session_sum | events | exposures | controls
    users:   recent S
    items:   control D | control_sum | decayed_count | decayed_count_s | popularity_mean Y
                | label_mean Y | outcomes Y
    items and attribute values, if averages are served: mean D | mean_bias Y
    attribute values: center | inverse

`*_sum` are the accumulators of row-wise Adagrad. `recent` is r_u, the running mean of t' of the
user's latest items; `control` is the item's part of h⁰; `heat` is the decayed count of clicks and
ratings as of `heat_s`; `usual` and `rest` are the running means of q (r_i) and of the label, over
`outcomes` outcomes; `center` and `inverse` standardise a number. `events`, `exposures`, `controls`,
`heat_s` and `outcomes` hold the bits of a uint32. The C = 3 Y + H biases are [treated Y | control Y
| factual Y | exposure H]. A row whose `vector_sum` is 0 does not exist yet.
"""

from typing import Literal, NamedTuple

LINE = 16  # float32 values in a cache line of 64 bytes
STRIDE = 32  # float32 values that the lanes of a GPU warp read at once
HEADS = 2  # of the exposure model: self-selection, and the policy behind the impressions
RowKind = Literal["user", "item", "feature"]


class Layout(NamedTuple):
    """Sizes, and the first column of each field; -1 if that kind of row has none."""

    D: int
    E: int
    S: int
    Y: int
    C: int
    vector: int
    exposure: int
    session: int
    bias: int
    bias_sum: int
    vector_sum: int
    exposure_sum: int
    session_sum: int
    events: int
    exposures: int
    controls: int
    recent: int
    control: int
    control_sum: int
    decayed_count: int
    decayed_count_s: int
    popularity_mean: int
    label_mean: int
    outcomes: int
    mean: int
    mean_bias: int
    center: int
    inverse: int
    size: int
    width: int


def layout(
    part: RowKind,
    factors: int,
    exposure_factors: int,
    session_factors: int,
    outcomes: int,
    averaged: bool = False,
    line: int = LINE,
) -> Layout:
    """Return the layout of that kind of row; its width is padded to whole multiples of `line`."""
    biases = 3 * outcomes + HEADS
    sizes = {
        "vector": factors, "exposure": exposure_factors, "session": session_factors,
        "bias": biases, "bias_sum": biases, "vector_sum": 1, "exposure_sum": 1, "session_sum": 1,
        "events": 1, "exposures": 1, "controls": 1,
    }  # fmt: skip
    if part == "user":
        sizes |= {"recent": session_factors}
    if part == "item":
        sizes |= {
            "control": factors,
            "control_sum": 1,
            "decayed_count": 1,
            "decayed_count_s": 1,
            "popularity_mean": outcomes,
            "label_mean": outcomes,
            "outcomes": outcomes,
        }
    if part != "user" and averaged:
        sizes |= {"mean": factors, "mean_bias": outcomes}
    if part == "feature":
        sizes |= {"center": 1, "inverse": 1}
    at, starts = 0, {}
    for name, size in sizes.items():
        starts[name] = at
        at += size
    missing = dict.fromkeys(Layout._fields, -1)
    shape = {
        "D": factors, "E": exposure_factors, "S": session_factors, "Y": outcomes, "C": biases,
    }  # fmt: skip
    return Layout(**(missing | shape | starts | {"size": at, "width": -(-at // line) * line}))
