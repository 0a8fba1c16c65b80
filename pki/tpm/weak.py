"""Keys known to be weak, by their public half alone.

- ROCA (CVE-2017-15361): primes of the form k·M + 65537^a mod M leave a fingerprint in the modulus;
- small or even public exponents;
- small factors, and primes so close that Fermat's method finds them (Heninger et al. 2012; Boeck 2023);
- Debian's OpenSSL of 2006-2008 (CVE-2008-0166) is known only by lists of its keys. They are other people's data and not
  shipped: `Blocklist.parse` reads lists in the published openssl-blacklist format, given by the operator. Without one,
  such keys pass; a TPM's keys are not made by OpenSSL, so only a key outside a TPM can be one.

A point that is not on its curve never gets this far: `pki.tpm.public` and cryptography refuse it.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from foundation.faults import Fault
from foundation.reasons import Reason

LEAST_RSA_BITS = 2048
LEAST_EXPONENT = 65537  # NIST SP 800-56B rev. 2 §6.2
FERMAT_STEPS = 64
_GENERATOR = 65537
_TRIAL_LIMIT = 1 << 12
_CURVES = ("secp256r1", "secp384r1")
_BLOCKED = re.compile(r"[0-9a-f]{20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Blocklist:
    """Moduli known to be weak: the last 20 hex digits of the SHA-1 of `Modulus=` and the modulus in upper-case hex."""

    digests: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Blocklist:
        """One entry a line; blank lines and those that begin with # say nothing. Raises `Fault(SETTING_INVALID)`."""
        lines = [line.strip() for line in text.splitlines()]
        entries = frozenset(line for line in lines if line and not line.startswith("#"))
        if not all(map(_BLOCKED.fullmatch, entries)):
            raise Fault(Reason.SETTING_INVALID, "expected 20 hex digits a line", field="blocklist")
        return cls(entries)

    def holds(self, modulus: int) -> bool:
        line = f"Modulus={modulus:X}\n".encode()
        return hashlib.sha1(line, usedforsecurity=False).hexdigest()[-20:] in self.digests


NO_BLOCKLIST = Blocklist()


def check_key(key: object, path: str, blocklist: Blocklist = NO_BLOCKLIST) -> None:
    """Refuse a public key of `cryptography` that is weak, or of a kind whose weakness cannot be judged. Raises
    `Fault(WEAK_KEY)`."""
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        check_rsa(numbers.n, numbers.e, path, blocklist)
    elif not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise Fault(Reason.WEAK_KEY, "neither RSA nor ECC on P-256 or P-384", field=path)


def check_rsa(modulus: int, exponent: int, path: str, blocklist: Blocklist = NO_BLOCKLIST) -> None:
    """Refuse a weak RSA key. Raises `Fault(WEAK_KEY)`, whose detail names the weakness."""
    findings = (
        ("fewer than 2048 bits", modulus.bit_length() < LEAST_RSA_BITS),
        ("a small or even public exponent", exponent < LEAST_EXPONENT or exponent % 2 == 0),
        ("a small factor", math.gcd(modulus, _SMALL_PRODUCT) != 1),
        ("the fingerprint of ROCA (CVE-2017-15361)", has_roca_fingerprint(modulus)),
        ("primes too close to each other", has_close_primes(modulus)),
        ("a key of the blocklist", blocklist.holds(modulus)),
    )
    for weakness, found in findings:
        if found:
            raise Fault(Reason.WEAK_KEY, weakness, field=path)


def has_roca_fingerprint(modulus: int) -> bool:
    """Whether `modulus` is a power of 65537 modulo each of the first odd primes. One sound key in 2^27 is."""
    return all(modulus % prime in powers for prime, powers in _ROCA_POWERS)


def has_close_primes(modulus: int, steps: int = FERMAT_STEPS) -> bool:
    """Fermat's method: a² - n is a square for an a close above √n when the primes lie close."""
    a = math.isqrt(modulus - 1) + 1
    square = a * a - modulus
    for _ in range(steps):
        # Squares have one of 12 residues modulo 64: most candidates need no root.
        if square & 63 in _SQUARES_64 and math.isqrt(square) ** 2 == square:
            return True
        square += 2 * a + 1  # (a + 1)² - n
        a += 1
    return False


def _primes(limit: int) -> list[int]:
    sieve = bytearray([1]) * limit
    for n in range(2, math.isqrt(limit - 1) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, limit, n)))
    return [n for n in range(2, limit) if sieve[n]]


def _powers(prime: int) -> frozenset[int]:
    return frozenset(pow(_GENERATOR, k, prime) for k in range(prime - 1))


_PRIMES = _primes(_TRIAL_LIMIT)
_SMALL_PRODUCT = math.prod(_PRIMES)
_SQUARES_64 = frozenset(n * n % 64 for n in range(64))
# The primes that the smallest affected key's M is made of (512 bits: 3 to 167); larger keys' M contain them all. Where
# 65537 generates the whole group the prime tells nothing.
_ROCA_POWERS = tuple(
    (prime, _powers(prime)) for prime in _PRIMES if 2 < prime <= 167 and len(_powers(prime)) < prime - 1
)
