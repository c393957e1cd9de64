"""A table that gives each of its keys a value and shows no key: an oblivious key-value store, by peeling alone.

The construction of invertible and garbled Bloom filters (Goodrich and Mitzenmacher, Allerton 2011; Garimella, Pinkas,
Rosulek, Trieu and Yanai, CRYPTO 2021) with five slots a key, one in each fifth of the table. A key's value is the sum
(⊕) of its slots. To encode, keys are removed one by one, each from a slot that no other key left has; then, in reverse,
each key's slot is set to what its value needs. Slots that are nobody's stay random.

If the values are uniform, so is the whole table: each step sets one slot to a uniform value minus what is fixed
already. Then nobody can tell from it which keys it has.

**How many slots are enough.** Peeling is stuck if and only if some t ≥ 2 keys are left of which every slot is shared.
With m slots in a fifth, t given keys share all theirs in one fifth with probability

    t! [x^t] (e^x - x)^m / m^t  ≤  t! (e^x - x)^m / (x·m)^t      for any x > 0

(every slot holds none, or two or more: the exponential generating function), the five are independent, and over all
sets of t keys the expected number of such is at most Σ_t C(n, t) (that)^5: :func:`failure_log2`, where two or three
keys count with exactly 1/m and 1/m^2 (all in one slot). With 1.8 n slots the term t = 2 decides. Fewer slots would do
(1.43 n in the limit, and 1.23 n with a dense part that is solved by elimination), but have no bound so plain.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedlearn.crypto.cuckoo import STATISTICAL, log_choose, log_factorial, log_sum
from fedlearn.crypto.draws import Draws
from fedlearn.kernels import psi as kernel
from fedlearn.kernels.threads import CORES, ranges, spread

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
F64 = NDArray[np.float64]

_EXPANSION = 1.8
_STEP = 1 << 20  # terms summed at once
_GRID = np.geomspace(1e-6, 8.0, 4000)
_LOADS = _GRID * np.expm1(_GRID) / (np.exp(_GRID) - _GRID)  # of which t/m each x is the best


def failure_log2(keys: int, segment: int) -> float:
    """Logarithm to base 2 of the bound on the probability that keys cannot be encoded.

    Args:
        keys: n, in a table of five times ``segment`` slots.
        segment: m.
    """
    total = -math.inf
    for start in range(2, keys + 1, _STEP):
        t = np.arange(start, min(start + _STEP, keys + 1), dtype=np.float64)
        x = np.interp(t / segment, _LOADS, _GRID)  # any x gives a bound
        shared = log_factorial(t) + segment * np.log(np.exp(x) - x) - t * np.log(x * segment)
        shared = np.where(t < 4, (1 - t) * math.log(segment), np.minimum(shared, 0.0))
        total = np.logaddexp(total, log_sum(log_choose(keys, t) + kernel.SPREAD * shared))
    return float(total / math.log(2))


@lru_cache
def segment_for(keys: int) -> int:
    """Slots of a fifth of the table, with which ``keys`` keys fail with probability 2^-STATISTICAL at most."""
    segment = math.ceil(_EXPANSION * keys / kernel.SPREAD) + 1
    while failure_log2(keys, segment) > -STATISTICAL:
        segment += segment // 8 + 1
    return segment


def encode(codes: U32, values: U64, segment: int) -> U64 | None:
    """The table.

    Args:
        codes: uint32 (4, n, 4), from :func:`fedlearn.crypto.oprf.codes`; they give n items three keys each.
        values: uint64 (n, 3), uniform, of each.
        segment: from :func:`segment_for`.

    Returns:
        uint64 (5 · segment,), or None if peeling is stuck.
    """
    order, owner = np.empty(values.size, np.int32), np.empty(values.size, np.int32)
    if kernel.peel(codes, segment, order, owner) < values.size:
        return None
    table = Draws().words(kernel.SPREAD * segment)
    kernel.fill(codes, segment, order, owner, values.reshape(-1), table)
    return table


def decode(codes: U32, thirds: U8, segment: int, table: U64) -> U64:
    """The value of one key of each item; of a key that was not encoded, what is there.

    Args:
        codes: uint32 (4, n, 4), of n items.
        thirds: uint8 (n,), which of an item's keys: 0, 1 or 2.
        segment: as in :func:`encode`.
        table: uint64 (5 · segment,).

    Returns:
        uint64 (n,).
    """
    out = np.zeros(len(thirds), np.uint64)
    spread(
        lambda part: kernel.look_up(codes, thirds, segment, table, part.start, part.stop, out),
        ranges(len(out), CORES),
    )
    return out
