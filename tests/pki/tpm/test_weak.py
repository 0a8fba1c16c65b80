"""Weak keys are found, and sound ones are not taken for weak."""

from __future__ import annotations

import hashlib
import math
import random

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.weak import Blocklist, check_key, check_rsa, has_close_primes, has_roca_fingerprint
from tests.support.weak_keys import close_primes, roca_primes, sound_prime

SOUND = sound_prime(1) * sound_prime(2)


def weakness(modulus: int, exponent: int = 65537, blocklist: Blocklist = Blocklist()) -> str:  # noqa: B008  # a value
    with pytest.raises(Fault) as caught:
        check_rsa(modulus, exponent, "key", blocklist)
    assert caught.value.reason is Reason.WEAK_KEY
    return caught.value.detail


def test_sound_keys_pass() -> None:
    check_rsa(SOUND, 65537, "key")
    for _ in range(3):
        check_key(rsa.generate_private_key(65537, 2048).public_key(), "key")
    for curve in (ec.SECP256R1(), ec.SECP384R1()):
        check_key(ec.generate_private_key(curve).public_key(), "key")


def test_the_fingerprint_of_roca_is_found() -> None:
    for seed in range(3):
        assert "ROCA" in weakness(math.prod(roca_primes(seed)))


def test_random_moduli_have_no_fingerprint() -> None:
    draw = random.Random(7)  # the same numbers each time
    assert not any(has_roca_fingerprint(draw.getrandbits(2048) | 1) for _ in range(20_000))


def test_small_and_even_exponents_are_found() -> None:
    for exponent in (1, 3, 17, 65536, 65538):
        assert "exponent" in weakness(SOUND, exponent)


def test_small_factors_are_found() -> None:
    for factor in (3, 5, 4093):
        assert "factor" in weakness(factor * SOUND)


def test_close_primes_are_found() -> None:
    modulus = math.prod(close_primes(5))
    assert "close" in weakness(modulus)
    assert not has_close_primes(SOUND)
    assert has_close_primes(101 * 103)
    assert has_close_primes(101 * 101)


def test_short_moduli_are_found() -> None:
    assert "2048" in weakness(sound_prime(1, 512) * sound_prime(2, 512))


def test_a_key_of_the_blocklist_is_found() -> None:
    entry = hashlib.sha1(f"Modulus={SOUND:X}\n".encode(), usedforsecurity=False).hexdigest()[-20:]
    blocklist = Blocklist.parse(f"# openssl-blacklist\n\n{entry}\n")
    assert "blocklist" in weakness(SOUND, blocklist=blocklist)
    check_rsa(sound_prime(4) * sound_prime(5), 65537, "key", blocklist)
    with pytest.raises(Fault) as caught:
        Blocklist.parse("not a digest")
    assert caught.value.reason is Reason.SETTING_INVALID


def test_keys_of_other_kinds_are_refused() -> None:
    for private in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP521R1())):
        with pytest.raises(Fault) as caught:
            check_key(private.public_key(), "key")
        assert caught.value.reason is Reason.WEAK_KEY
