"""What a block is learned with: who works, in which order, and the room between its phases.

Beside the alphabet of `stream.model.step.names`: a chain is one user's interactions of a block, a
segment one item's occurrences (as target or as pair) in it, a value one attribute value's links
behind its chains and segments. A sum is G = W + C + 6 numbers of a row: the summed gradients of its
vectors and biases, the summed squares of the biases' gradients, the summed mean squares of the
three vectors', how often its vector was touched, how many treated interactions it had, and what
each of its links counts.
"""

from typing import NamedTuple

from stream.model.step.names import Array, Columns, Model, Predictions, Scratch

TILE = 32  # occurrences that one worker sums; more of a row are summed by many


class Size(NamedTuple):
    """How large a block may be: so many interactions, and this share of those learned before."""

    block: int
    share: float


class Worker(NamedTuple):
    """Which of the workers that share a block this is, and how many there are."""

    own: int
    all: int


class Groups(NamedTuple):
    """What was grouped by row within each block; all arrays are int32.

    Group g of block b (block[b] <= g < block[b + 1]) holds members[start[g] : start[g + 1]], in
    their order, of row[g]. Where it has more than TILE, tiles[g] is its first tile, else -1; tile t
    of block b (tile_block[b] <= t < tile_block[b + 1]) is of group tile[t].
    """

    block: Array  # (blocks + 1,)
    start: Array  # (groups + 1,)
    members: Array  # (n,)
    row: Array  # (groups,)
    tiles: Array  # (groups,)
    tile: Array  # (all tiles,)
    tile_block: Array  # (blocks + 1,)


class Order(NamedTuple):
    """The order in which blocks are learned.

    Members of a chain are interactions j, of a segment occurrences j (1 + P) + p, of a value
    sources (2 chain, or 2 segment + 1) times the most links of a row, plus the link k.
    """

    events: Array  # (blocks + 1,) where the blocks begin
    chains: Groups
    segments: Groups
    values: Groups
    segment: Array  # (B (1 + P),) the segment of each occurrence
    border: Array  # (blocks,) whether the global terms move after it


class Room(NamedTuple):
    """What the phases of a block leave to each other, by its place in the block."""

    told: Array  # (B, told columns) what its interactions say of the global terms
    kind: Array  # (B,) what an interaction does to its item, as bits
    error: Array  # (B, 1 + P) of the outcome if shown
    push: Array  # (B, 1 + P) of the vectors: error mixed with the factual head's miss
    contrast: Array  # (B, 1 + P)
    session: Array  # (B, 1 + P)
    miss: Array  # (B,) of the factual head
    off: Array  # (B,) of a control outcome
    rest: Array  # (B,) its lin0 without the item's own control row and bias
    moment: Array  # (B, D + E + S) the user's vectors at that moment
    norm: Array  # (B, 3) their mean squares
    composed: Array  # (segments, W) items as the block began, with their attribute values
    chain_sum: Array  # (chains, G)
    segment_sum: Array  # (segments, G)
    segment_part: Array  # (tiles, G)
    value_part: Array  # (tiles, G)
    cells: Array  # (n, 6) of `account.cells`, where many workers add up
    total_part: Array  # (tiles of TILE interactions, n) their sums


class Block(NamedTuple):
    """Where a block begins among the batch's interactions, groups and tiles."""

    event: int
    stop: int
    chain: int
    segment: int
    segment_tile: int
    value_tile: int


class Hands(NamedTuple):
    """One worker's own room."""

    folded: Array  # (W,) what the user's attribute values add
    held: Array  # (4 + C, most links) of each: its strength, and its accumulators
    rates: Array  # (6, most links) of each, by what an interaction moves
    sum: Array  # (G,)
    ts_s: Array  # (lanes,) of the occurrences at hand
    label: Array  # (lanes,)
    kind: Array  # (lanes,)
    at: Array  # (lanes,) their places in the block, -1 for a pair


class Work(NamedTuple):
    """All that a worker has at hand."""

    m: Model
    c: Columns
    s: Scratch
    out: Predictions
    order: Order
    room: Room
    hands: Hands


# bits of `kind`
CLOSES, COUNTS, REMEMBERS, CONTROLS, TREATED, CLICKS = 1, 2, 4, 8, 16, 32
HEAD = 64  # the head of exposure is 1
OUTCOME = 256  # times the outcome
