"""Compiled hashing of byte ranges: 64 bits for hash tables, 128 bits where the bytes are not kept.

Producers choose the bytes, so the hash is keyed with a secret: SipHash-1-3 (Aumasson and Bernstein,
2012), for which collisions cannot be found without the key. A key of 0 selects the unkeyed hash of
older snapshots, whose stored hashes cannot be recomputed. What is learned does not depend on the
key.
"""

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled, inlined

NO_KEY = np.zeros(2, np.uint64)
KEY_BYTES = 16
PRIME = np.uint64(0x9E3779B97F4A7C15)
_C1 = np.uint64(0xFF51AFD7ED558CCD)
_C2 = np.uint64(0xC4CEB9FE1A85EC53)
_S33 = np.uint64(33)
_S29 = np.uint64(29)
_S32 = np.uint64(32)
_EIGHT = np.uint64(8)


@inlined
def murmur3_finalizer(x: np.uint64) -> np.uint64:
    """Return x with every input bit spread over every output bit (murmur3's finaliser)."""
    x ^= x >> _S33
    x *= _C1
    x ^= x >> _S33
    x *= _C2
    x ^= x >> _S33
    return x


@inlined
def _turned(x, left):  # type: ignore[no-untyped-def]
    """Return x rotated left by `left` bits."""
    return (x << np.uint64(left)) | (x >> np.uint64(64 - left))


@inlined
def _round(a, b, c, d):  # type: ignore[no-untyped-def]
    """Return SipHash's state after one round (SipRound)."""
    a += b
    c += d
    b = _turned(b, 13) ^ a
    d = _turned(d, 16) ^ c
    a = _turned(a, 32) + d
    c += b
    d = _turned(d, 21) ^ a
    b = _turned(b, 17) ^ c
    return a, b, _turned(c, 32), d


@inlined
def _absorbed(data, at, length, k0, k1, wide):  # type: ignore[no-untyped-def]
    """Return SipHash's state after data[at:at+length], one round per 8-byte word.

    `wide` is 0xEE for the 128-bit variant, else 0.
    """
    a, b = k0 ^ np.uint64(0x736F6D6570736575), k1 ^ np.uint64(0x646F72616E646F6D) ^ wide
    c, d = k0 ^ np.uint64(0x6C7967656E657261), k1 ^ np.uint64(0x7465646279746573)
    i = 0
    while i + 8 <= length:
        word = np.uint64(0)
        for n in range(8):
            word |= np.uint64(data[at + i + n]) << (np.uint64(n) * _EIGHT)
        a, b, c, d = _round(a, b, c, d ^ word)
        a ^= word
        i += 8
    word = np.uint64(length) << np.uint64(56)
    n = 0
    while i + n < length:
        word |= np.uint64(data[at + i + n]) << (np.uint64(n) * _EIGHT)
        n += 1
    a, b, c, d = _round(a, b, c, d ^ word)
    return a ^ word, b, c, d


@inlined
def _finished(a, b, c, d):  # type: ignore[no-untyped-def]
    """Return SipHash's state after the three final rounds."""
    for _ in range(3):
        a, b, c, d = _round(a, b, c, d)
    return a, b, c, d


@compiled
def _keyed(data, at, length, k0, k1):  # type: ignore[no-untyped-def]
    """Return SipHash-1-3 of data[at:at+length]."""
    a, b, c, d = _absorbed(data, at, length, k0, k1, np.uint64(0))
    a, b, c, d = _finished(a, b, c ^ np.uint64(0xFF), d)
    return a ^ b ^ c ^ d


@compiled
def _keyed_pair(data, at, length, k0, k1):  # type: ignore[no-untyped-def]
    """Return the 128-bit output of SipHash-1-3, as in the reference code, in two halves."""
    a, b, c, d = _absorbed(data, at, length, k0, k1, np.uint64(0xEE))
    a, b, c, d = _finished(a, b, c ^ np.uint64(0xEE), d)
    first = a ^ b ^ c ^ d
    a, b, c, d = _finished(a, b ^ np.uint64(0xDD), c, d)
    return first, a ^ b ^ c ^ d


@compiled
def hash_bytes(data, at, length, seed, key):  # type: ignore[no-untyped-def]
    """Return a 64-bit hash of data[at:at+length].

    `seed` distinguishes tables, `key` (2,) is the secret key. If the key is 0, the older unkeyed
    hash is used.
    """
    if key[0] | key[1] != np.uint64(0):
        return _keyed(data, at, length, key[0] ^ seed, key[1])
    h = murmur3_finalizer(seed ^ (np.uint64(length) * PRIME))
    i = 0
    while i + 8 <= length:
        word = np.uint64(0)
        for b in range(8):
            word |= np.uint64(data[at + i + b]) << (np.uint64(b) * _EIGHT)
        h = murmur3_finalizer((h ^ word) * PRIME)
        i += 8
    if i < length:
        word = np.uint64(0)
        b = 0
        while i < length:
            word |= np.uint64(data[at + i]) << (np.uint64(b) * _EIGHT)
            i += 1
            b += 1
        h = murmur3_finalizer((h ^ word) * PRIME)
    return h


@compiled
def hash_pair(data, at, length, seeds, key):  # type: ignore[no-untyped-def]
    """Return a 128-bit hash of data[at:at+length] in two halves, under two seeds and a key (2,)."""
    one, other = seeds
    if key[0] | key[1] != np.uint64(0):
        return _keyed_pair(data, at, length, key[0] ^ one, key[1])
    return hash_bytes(data, at, length, one, key), hash_bytes(data, at, length, other, key)


@compiled
def _hash_many(data, at, length, seed, key, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the hash of each byte range, 0 for an empty one."""
    for n in range(len(at)):
        out[n] = hash_bytes(data, at[n], length[n], seed, key) if length[n] else np.uint64(0)


def hash_many(
    data: NDArray[np.uint8],
    at: NDArray[np.int64],
    length: NDArray[np.int32],
    seed: np.uint64,
    key: NDArray[np.uint64] = NO_KEY,
) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each byte range (N,); 0 for an empty one."""
    out = np.empty(len(at), np.uint64)
    _hash_many(data, at, length, seed, key, out)
    return out
