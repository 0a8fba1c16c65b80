"""RSA moduli as faulty generators make them."""

from __future__ import annotations

import math
import random

_SMALL = [n for n in range(2, 4096) if all(n % d for d in range(2, math.isqrt(n) + 1))]


def sound_prime(seed: int, bits: int = 1024) -> int:
    """A probable prime with its two topmost bits set; the same for the same `seed`."""
    draw = random.Random(seed)  # the same key each time
    while True:
        candidate = draw.getrandbits(bits) | 3 << (bits - 2) | 1
        if _is_prime(candidate):
            return candidate


def roca_primes(seed: int) -> tuple[int, int]:
    """1024 bits each, of the form k·M + (65537^a mod M) with M the product of the primes to 701 (Nemec et al., CCS
    2017, §2.1)."""
    draw = random.Random(seed)  # the same key each time
    return _roca_prime(draw), _roca_prime(draw)


def close_primes(seed: int) -> tuple[int, int]:
    """1024 bits each, the second the next one after the first."""
    p = q = sound_prime(seed)
    while not _is_prime(q := q + 2):
        pass
    return p, q


def _roca_prime(draw: random.Random) -> int:
    m = math.prod(n for n in _SMALL if n <= 701)
    while True:
        candidate = (draw.getrandbits(1024 - m.bit_length()) | 3 << (1022 - m.bit_length())) * m
        candidate += pow(65537, draw.getrandbits(256), m)
        if candidate.bit_length() == 1024 and _is_prime(candidate):
            return candidate


def _is_prime(n: int) -> bool:
    """Fermat to base 2 after trial division: for a random number as good as certain."""
    return all(n % p for p in _SMALL) and pow(2, n - 1, n) == 1
