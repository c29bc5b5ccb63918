"""The law of learning, one event after the other, compiled.

With g_u = p_u + sum_a x_a / sqrt(n_u) over the user's attribute values a, and g_i alike,

    s = global + b_u + sum_a b_a / sqrt(n_u) + b_i + sum_c b_c / sqrt(n_i) + g_u . g_i

and e = s - y (identity) or sigmoid(s) - y (logit), which is dL/ds of half the squared error or of
the log loss. Every parameter then takes one step of Adagrad (Duchi et al. 2011) with one
accumulator a row (row-wise, as in Mudigere et al. 2022): G += mean(grad^2); x -= lr grad / sqrt(G).

No fast-math: the bits are promised. Nothing here looks beyond its event, so how a stream is cut
into batches cannot matter. The kernels hold no Python object and release the GIL.

Alphabet: D factors, Y outcomes; d, o one of them; j an event, k a link, f a feature row.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Array = NDArray[Any]
USER, ITEM, FEATURE = 0, 1, 2  # rows of the rates and the salt of a new row's vector
TRIES = 8  # draws per negative; a user who saw nearly all items gets fewer negatives
F = TypeVar("F", bound=Callable[..., Any])


def compiled(law: F, inline: str = "never") -> F:
    """Return the law compiled, without the GIL, and kept on disk where a folder can be written.

    The numpy error model leaves out checks for division by zero, which cannot happen here: the
    accumulators start above 0. With them the loop takes twice the time.
    """
    how: dict[str, Any] = {"nogil": True, "error_model": "numpy", "inline": inline}
    try:
        made = numba.njit(cache=True, **how)(law)
    except RuntimeError as exc:  # numba found no folder that it may write
        log.warning("compiling at each start, for lack of a cache (set NUMBA_CACHE_DIR): %s", exc)
        made = numba.njit(**how)(law)
    return cast(F, made)


def inlined(law: F) -> F:
    """Return the law compiled into its callers: a call would count references of its arrays."""
    return compiled(law, "always")


@compiled
def mix(key: np.uint64) -> np.uint64:
    """Return 64 well-mixed bits of a counter (splitmix64, Steele et al. 2014)."""
    z = key + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
def create(
    table: Array,
    row: int,
    salt: int,
    seed: np.uint64,
    spread: np.float32,
    start: Array,
    D: int,
    Y: int,
) -> None:
    """Make the row exist: a small vector drawn from (seed, salt, row), accumulators at start."""
    base = mix(mix(seed + np.uint64(salt)) ^ np.uint64(row))
    for d in range(D):
        bits = mix(base + np.uint64(d))
        total = np.uint64(0)  # four uniforms of 16 bits: near enough to a normal
        for k in range(4):
            total += (bits >> np.uint64(16 * k)) & np.uint64(0xFFFF)
        unit = np.float32(total) / np.float32(65535.0) - np.float32(2.0)
        table[row, d] = unit * np.float32(1.7320508) * spread
    for o in range(Y):
        table[row, D + Y + o] = start[0]
    table[row, D + 2 * Y] = start[1]


@compiled
def ensure(
    table: Array,
    rows: Array,
    salt: int,
    seed: np.uint64,
    spread: np.float32,
    start: Array,
    D: int,
    Y: int,
) -> None:
    """Make every named row exist."""
    for j in range(rows.size):
        if table[rows[j], D + 2 * Y] == 0:
            create(table, rows[j], salt, seed, spread, start, D, Y)


@compiled
def seen(ring: Array, item: np.int32) -> bool:
    """Tell whether the item is among the user's remembered ones."""
    for k in range(1, min(ring[0], ring.size - 1) + 1):
        if ring[k] == item:
            return True
    return False


@compiled
def draw(
    user: Array,
    item: Array,
    outcome: Array,
    label: Array,
    known: Array,
    key: Array,
    history: Array,
    sampled: Array,
    negatives: int,
    mark_user: Array,
    mark_item: Array,
    out_user: Array,
    out_item: Array,
    out_outcome: Array,
    out_label: Array,
    out_source: Array,
    users: Array,
    items: Array,
) -> tuple[int, int, int]:
    """Write the events with their negatives, remember what was seen, and name the rows touched.

    A negative follows its click with label 0 and source -1. Returns how many interactions, users
    and items were written; the marks are 0 again.
    """
    n = nu = ni = 0
    for j in range(user.size):
        u, i = user[j], item[j]
        ring = history[u]
        ring[1 + ring[0] % (ring.size - 1)] = i
        ring[0] += 1
        if ring[0] == 2 * (ring.size - 1):  # only the place and "full" matter
            ring[0] = ring.size - 1
        count = 1
        out_user[n], out_item[n], out_outcome[n] = u, i, outcome[j]
        out_label[n], out_source[n] = label[j], j
        if sampled[outcome[j]] and known[j] > 0:
            counter = key[j]
            for _ in range(negatives):
                for _ in range(TRIES):
                    counter = mix(counter)
                    other = np.int32(counter % np.uint64(known[j]))
                    if not seen(ring, other):
                        m = n + count
                        out_user[m], out_item[m], out_outcome[m] = u, other, outcome[j]
                        out_label[m], out_source[m] = 0, -1
                        count += 1
                        break
        if mark_user[u] == 0:
            mark_user[u] = 1
            users[nu] = u
            nu += 1
        for m in range(n, n + count):
            if mark_item[out_item[m]] == 0:
                mark_item[out_item[m]] = 1
                items[ni] = out_item[m]
                ni += 1
        n += count
    for j in range(nu):
        mark_user[users[j]] = 0
    for j in range(ni):
        mark_item[items[j]] = 0
    return n, nu, ni


@compiled
def baseline(
    outcome: Array,
    label: Array,
    count: Array,
    total: Array,
    middle: Array,
    logit: Array,
    out: Array,
) -> None:
    """Write the global term that each interaction sees, and count its label afterwards."""
    for j in range(outcome.size):
        o = outcome[j]
        mean = (total[o] + middle[o]) / (count[o] + 1.0)
        out[j] = np.log(mean / (1.0 - mean)) if logit[o] else mean
        count[o] += 1.0
        total[o] += label[j]


@inlined
def linked(links: Array, row: int) -> int:
    """Return how many attribute values the row is linked to."""
    n = 0
    while n < links.shape[1] and links[row, n] != 0:
        n += 1
    return n


@inlined
def gather(
    out: Array,
    table: Array,
    row: int,
    features: Array,
    links: Array,
    n: int,
    weight: np.float32,
    o: int,
    D: int,
) -> np.float32:
    """Write the composed vector to out and return the composed bias."""
    bias: np.float32 = table[row, D + o]
    for d in range(D):
        out[d] = table[row, d]
    for k in range(n):
        f = links[row, k] - 1
        bias += weight * features[f, D + o]
        for d in range(D):
            out[d] += weight * features[f, d]
    return bias


@inlined
def square(x: Array, D: int) -> np.float32:
    """Return the mean of squares, in four sums that do not wait for each other."""
    a = b = c = e = np.float32(0)
    tail = D - D % 4
    for d in range(0, tail, 4):
        a += x[d] * x[d]
        b += x[d + 1] * x[d + 1]
        c += x[d + 2] * x[d + 2]
        e += x[d + 3] * x[d + 3]
    for d in range(tail, D):
        a += x[d] * x[d]
    return ((a + b) + (c + e)) / np.float32(D)


@inlined
def product(x: Array, y: Array, D: int) -> np.float32:
    """Return the inner product, in four sums that do not wait for each other."""
    a = b = c = e = np.float32(0)
    tail = D - D % 4
    for d in range(0, tail, 4):
        a += x[d] * y[d]
        b += x[d + 1] * y[d + 1]
        c += x[d + 2] * y[d + 2]
        e += x[d + 3] * y[d + 3]
    for d in range(tail, D):
        a += x[d] * y[d]
    return (a + b) + (c + e)


@inlined
def descend(
    table: Array,
    row: int,
    error: np.float32,
    weight: np.float32,
    other: Array,
    size: np.float32,
    lr_bias: np.float32,
    lr_factor: np.float32,
    o: int,
    D: int,
    Y: int,
) -> None:
    """Take one Adagrad step on a row that enters the score with `weight`, against `other`."""
    g = error * weight
    bias_sum = table[row, D + Y + o] + g * g
    vector_sum = table[row, D + 2 * Y] + g * g * size
    step = lr_factor * g / np.sqrt(vector_sum)
    for d in range(D):
        table[row, d] -= step * other[d]
    table[row, D + o] -= lr_bias * g / np.sqrt(bias_sum)
    table[row, D + Y + o] = bias_sum
    table[row, D + 2 * Y] = vector_sum


@compiled
def learn(
    user: Array,
    item: Array,
    outcome: Array,
    label: Array,
    source: Array,
    base: Array,
    users: Array,
    items: Array,
    features: Array,
    user_links: Array,
    item_links: Array,
    logit: Array,
    low: Array,
    high: Array,
    rates: Array,
    D: int,
    Y: int,
    prediction: Array,
) -> None:
    """Learn the interactions in order; write each event's prediction before it was learned."""
    gu = np.empty(D, np.float32)
    gi = np.empty(D, np.float32)
    one = np.float32(1)
    user_bits, item_bits = users.view(np.uint32), items.view(np.uint32)
    lr_ub, lr_uf = rates[USER, 0], rates[USER, 1]
    lr_ib, lr_if = rates[ITEM, 0], rates[ITEM, 1]
    lr_fb, lr_ff = rates[FEATURE, 0], rates[FEATURE, 1]
    for j in range(user.size):
        u, i, o = user[j], item[j], outcome[j]
        nu, ni = linked(user_links, u), linked(item_links, i)
        wu = one / np.sqrt(np.float32(max(nu, 1)))
        wi = one / np.sqrt(np.float32(max(ni, 1)))
        bu = gather(gu, users, u, features, user_links, nu, wu, o, D)
        bi = gather(gi, items, i, features, item_links, ni, wi, o, D)
        score = base[j] + bu + bi + product(gu, gi, D)
        uu, ii = square(gu, D), square(gi, D)
        if logit[o]:
            score = one / (one + np.exp(-score))
        error = score - label[j]
        if source[j] >= 0:
            prediction[source[j]] = min(max(score, low[o]), high[o])
            user_bits[u, D + 2 * Y + 1] += np.uint32(1)
            item_bits[i, D + 2 * Y + 1] += np.uint32(1)
        descend(users, u, error, one, gi, ii, lr_ub, lr_uf, o, D, Y)
        descend(items, i, error, one, gu, uu, lr_ib, lr_if, o, D, Y)
        for k in range(nu):
            f = user_links[u, k] - 1
            descend(features, f, error, wu, gi, ii, lr_fb, lr_ff, o, D, Y)
        for k in range(ni):
            f = item_links[i, k] - 1
            descend(features, f, error, wi, gu, uu, lr_fb, lr_ff, o, D, Y)


@compiled
def compose(
    rows: Array,
    table: Array,
    features: Array,
    links: Array,
    D: int,
    Y: int,
    bias: Array,
    vector: Array,
) -> None:
    """Write the rows as they enter the score: their own part plus their attributes'."""
    for j in range(rows.size):
        row = rows[j]
        for d in range(D):
            vector[j, d] = table[row, d]
        for o in range(Y):
            bias[j, o] = table[row, D + o]
        n = linked(links, row)
        weight = np.float32(1) / np.sqrt(np.float32(max(n, 1)))
        for k in range(n):
            f = links[row, k] - 1
            for o in range(Y):
                bias[j, o] += weight * features[f, D + o]
            for d in range(D):
                vector[j, d] += weight * features[f, d]
