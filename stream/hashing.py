"""Compiled hashing of byte ranges: 64 bits for tables, two lanes of it where no bytes are kept."""

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled, inlined

PRIME = np.uint64(0x9E3779B97F4A7C15)
_C1 = np.uint64(0xFF51AFD7ED558CCD)
_C2 = np.uint64(0xC4CEB9FE1A85EC53)
_S33 = np.uint64(33)
_S29 = np.uint64(29)
_S32 = np.uint64(32)
_EIGHT = np.uint64(8)


@inlined
def mix(x: np.uint64) -> np.uint64:
    """Return x with every input bit spread over every output bit (murmur3's finaliser)."""
    x ^= x >> _S33
    x *= _C1
    x ^= x >> _S33
    x *= _C2
    x ^= x >> _S33
    return x


@compiled
def hash_bytes(data, at, length, seed):  # type: ignore[no-untyped-def]
    """Return 64 bits of data[at:at+length] under a seed; eight bytes a round."""
    h = mix(seed ^ (np.uint64(length) * PRIME))
    i = 0
    while i + 8 <= length:
        word = np.uint64(0)
        for b in range(8):
            word |= np.uint64(data[at + i + b]) << (np.uint64(b) * _EIGHT)
        h = mix((h ^ word) * PRIME)
        i += 8
    if i < length:
        word = np.uint64(0)
        b = 0
        while i < length:
            word |= np.uint64(data[at + i]) << (np.uint64(b) * _EIGHT)
            i += 1
            b += 1
        h = mix((h ^ word) * PRIME)
    return h


@compiled
def _hash_many(data, at, length, seed, out):  # type: ignore[no-untyped-def]
    for n in range(len(at)):
        out[n] = hash_bytes(data, at[n], length[n], seed) if length[n] else np.uint64(0)


def hash_many(
    data: NDArray[np.uint8], at: NDArray[np.int64], length: NDArray[np.int32], seed: np.uint64
) -> NDArray[np.uint64]:
    """Return 64 bits of each byte range (N,); 0 for an empty one."""
    out = np.empty(len(at), np.uint64)
    _hash_many(data, at, length, seed, out)
    return out
