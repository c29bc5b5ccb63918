"""Arguments of the block drivers: workers, the order of the work, and memory between phases.

In addition to the symbols of `stream.model.step.names`: a chain is the interactions of one user in
a block; a segment is the occurrences of one item (as target or as uniform item) in it; a value is
the links of one attribute value to the block's users and items. A sum is a row of G = W + C + 6
numbers: the summed gradients of vectors and biases, the summed squares of the biases' gradients,
the summed mean squares of the three vectors' gradients, the number of updates of the factors, the
number of treated interactions, and the weight of each link.
"""

from typing import NamedTuple

from stream.model.step.names import Array, InteractionColumns, Predictions, Scratch, StepContext

TILE = 32  # most members that one worker sums; larger groups are divided into tiles


class Size(NamedTuple):
    """How large a block may be: so many interactions, and this share of those learned before."""

    block: int
    share: float


class Worker(NamedTuple):
    """The index of this worker among those that share a block, and their number."""

    own: int
    all: int


class Groups(NamedTuple):
    """Members grouped by row within each block; all arrays are int32.

    Group g of block b (block[b] <= g < block[b + 1]) holds members[start[g] : start[g + 1]], in
    their order, of row[g]. If it has more than TILE members, tiles[g] is its first tile, else -1;
    tile t of block b (tile_block[b] <= t < tile_block[b + 1]) belongs to group tile[t].
    """

    block: Array  # (blocks + 1,)
    start: Array  # (groups + 1,)
    members: Array  # (n,)
    row: Array  # (groups,)
    tiles: Array  # (groups,)
    tile: Array  # (all tiles,)
    tile_block: Array  # (blocks + 1,)


class Order(NamedTuple):
    """The order in which a batch is learned: its blocks, and their chains, segments and values.

    Members of a chain are interactions j, of a segment occurrences j (1 + P) + p, of a value
    sources (2 chain, or 2 segment + 1) times the most links of a row, plus the link k.
    """

    events: Array  # (blocks + 1,) first interaction of each block
    chains: Groups
    segments: Groups
    values: Groups
    segment: Array  # (B (1 + P),) the segment of each occurrence
    update_point: Array  # (blocks,) whether the global terms are updated after it


class Room(NamedTuple):
    """Memory through which the phases of a block communicate, indexed within the block."""

    told: Array  # (B, account.columns) contributions to the global terms
    kind: Array  # (B,) flags: how an interaction affects its item
    error: Array  # (B, 1 + P) derivative of the loss of the outcome if shown
    push: Array  # (B, 1 + P) that of the factors' loss: mix * error + (1 - mix) * miss
    contrast: Array  # (B, 1 + P) derivative of the exposure loss
    session: Array  # (B, 1 + P) the same with the session
    miss: Array  # (B,) derivative of the factual head's loss
    off: Array  # (B,) derivative of a control outcome's loss
    rest: Array  # (B,) its lin0 without the item's own control row and bias
    moment: Array  # (B, D + E + S) the user's vectors when the interaction was learned
    norm: Array  # (B, 3) their mean squares
    composed: Array  # (segments, W) composed rows of items at the block's beginning
    chain_sum: Array  # (chains, G)
    segment_sum: Array  # (segments, G)
    segment_part: Array  # (tiles, G)
    value_part: Array  # (tiles, G)
    cells: Array  # (n, 6) `account.cells`, if many workers sum
    total_part: Array  # (tiles of TILE interactions, n) partial sums of the cells


class BlockBounds(NamedTuple):
    """The first interaction, group and tile of a block."""

    event: int
    stop: int
    chain: int
    segment: int
    segment_tile: int
    value_tile: int


class Hands(NamedTuple):
    """Memory of one worker."""

    folded: Array  # (W,) what the user's attribute values add to its row
    held: Array  # (4 + C, most links) strength and accumulators of each link
    rates: Array  # (6, most links) squared strength times learning rate, by kind of gradient
    sum: Array  # (G,)
    ts_s: Array  # (lanes,) of the occurrences being processed, one per lane
    label: Array  # (lanes,)
    kind: Array  # (lanes,)
    at: Array  # (lanes,) their indices in the block, -1 for a uniform item


class Work(NamedTuple):
    """All arguments of a worker."""

    m: StepContext
    c: InteractionColumns
    s: Scratch
    out: Predictions
    order: Order
    room: Room
    hands: Hands


# flags in `kind`
CLOSES, COUNTS, REMEMBERS, CONTROLS, TREATED, CLICKS = 1, 2, 4, 8, 16, 32
HEAD = 64  # the exposure head is 1
OUTCOME = 256  # multiplies the index of the outcome
