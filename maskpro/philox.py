"""Random words from counters: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

# Philox4x32's multipliers, and the steps of its key.
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
LAST_WORD = 2**32 - 1
_ROUNDS = 10


def philox4x32(counter: Sequence[Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Four random 32-bit words for each counter (four words) and a key (two words): Philox4x32-10.

    Words are integers, or int64 tensors of torch that broadcast; their products wrap around.
    """
    a, b, c, d = counter
    for first, second in _round_keys(key):
        low, high = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        # The mask drops the sign that torch's shift fills in.
        a, b, c, d = (
            (high >> 32 & LAST_WORD) ^ b ^ first,
            high & LAST_WORD,
            (low >> 32 & LAST_WORD) ^ d ^ second,
            low & LAST_WORD,
        )
    return a, b, c, d


def philox4x32_by_numpy(counter: Sequence[Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """The same for uint32 arrays that broadcast to `[B, N]`, by few operations: their number is the cost."""
    shape = np.broadcast_shapes(*(np.shape(word) for word in counter))
    even, odd = (np.empty((2, *shape), dtype=np.uint32) for _ in range(2))
    even[0], odd[0], even[1], odd[1] = counter
    multipliers = np.array(MULTIPLIERS, dtype=np.uint64)[:, None, None]
    product = np.empty((2, *shape), dtype=np.uint64)
    halves = product.view(np.uint32).reshape(2, *shape, 2)[::-1]
    low, high = (halves[..., place] for place in ((0, 1) if sys.byteorder == "little" else (1, 0)))
    for keys in _round_keys_as_arrays(key):
        np.multiply(even, multipliers, product)
        np.bitwise_xor(high, odd, even)
        np.bitwise_xor(even, keys, even)
        np.copyto(odd, low)
    return even[0], odd[0], even[1], odd[1]


def _round_keys(key: tuple[int, int]) -> list[tuple[int, int]]:
    first, second = key
    return [
        ((first + step * KEY_STEPS[0]) & LAST_WORD, (second + step * KEY_STEPS[1]) & LAST_WORD) for step in range(_ROUNDS)
    ]


@lru_cache(maxsize=64)
def _round_keys_as_arrays(key: tuple[int, int]) -> list[np.ndarray]:
    return list(np.array(_round_keys(key), dtype=np.uint32)[:, :, None, None])
