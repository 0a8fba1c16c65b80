"""Attack: weak keys (CVE-2017-15361 ROCA, Debian weak keys CVE-2008-0166, small exponents, close primes).

Refused in the EK, in the AK and in the certificate request. Debian's are known by lists alone, which are the operator's
to give; that such a list is heeded is what is tested.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.endorsement import MakerTrust
from pki.tpm.request import check_request
from pki.tpm.verdict import EnrolledKeys, identify
from pki.tpm.weak import NO_BLOCKLIST, Blocklist
from tests.support import soft_tpm
from tests.support.soft_tpm import NOW, SoftTpm, public_area
from tests.support.weak_keys import close_primes, roca_primes, sound_prime

MAKER = TpmMaker.create()
TRUST = MakerTrust(hardware=(MAKER.root,))
SOUND = (sound_prime(1), sound_prime(2))
DEBIAN = (sound_prime(3), sound_prime(4))


def private_key(primes: tuple[int, int], exponent: int = 65537) -> rsa.RSAPrivateKey:
    p, q = primes
    d = pow(exponent, -1, (p - 1) * (q - 1))
    numbers = rsa.RSAPublicNumbers(exponent, p * q)
    private = rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q), numbers
    )
    return private.private_key(unsafe_skip_rsa_key_validation=True)


def small_exponent_primes() -> tuple[int, int]:
    found = [n for n in (sound_prime(seed) for seed in range(5, 12)) if n % 3 != 1]
    return found[0], found[1]


WEAK: dict[str, Callable[[], rsa.RSAPrivateKey]] = {
    "ROCA": lambda: private_key(roca_primes(1)),
    "close": lambda: private_key(close_primes(5)),
    "exponent": lambda: private_key(small_exponent_primes(), 3),
    "blocklist": lambda: private_key(DEBIAN),
}
BLOCKLIST = Blocklist.parse(
    hashlib.sha1(f"Modulus={DEBIAN[0] * DEBIAN[1]:X}\n".encode(), usedforsecurity=False).hexdigest()[-20:]
)


def refused(weakness: str, act: Callable[[], object]) -> None:
    with pytest.raises(Fault, match=weakness) as caught:
        act()
    assert caught.value.reason is Reason.WEAK_KEY


@pytest.mark.parametrize("weakness", WEAK.keys() - {"exponent"})
def test_a_weak_ek_is_refused(weakness: str) -> None:
    tpm = SoftTpm(MAKER, ek=WEAK[weakness]())
    refused(weakness, lambda: identify(tpm.begin(), TRUST, NOW, BLOCKLIST))


def test_an_ek_with_a_small_exponent_is_refused() -> None:
    """Its template has an exponent of its own, so it fails before."""
    tpm = SoftTpm(MAKER, ek=WEAK["exponent"]())
    with pytest.raises(Fault) as caught:
        identify(tpm.begin(), TRUST, NOW)
    assert caught.value.reason is Reason.EK_TEMPLATE_REFUSED


@pytest.mark.parametrize("weakness", WEAK)
def test_a_weak_ak_is_refused(weakness: str) -> None:
    tpm = SoftTpm(MAKER, ak=WEAK[weakness]())
    refused(weakness, lambda: identify(tpm.begin(), TRUST, NOW, BLOCKLIST))
    if weakness != "blocklist":
        refused(weakness, lambda: EnrolledKeys.parse(tpm.ak_area, tpm.tls_area))


@pytest.mark.parametrize("weakness", WEAK)
def test_a_request_for_a_weak_key_is_refused(weakness: str) -> None:
    key = WEAK[weakness]()
    raw = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    blocklist = BLOCKLIST if weakness == "blocklist" else NO_BLOCKLIST
    refused(weakness, lambda: check_request(raw, spki, "csr", blocklist))


def test_sound_rsa_keys_pass() -> None:
    identify(SoftTpm(MAKER, ek=private_key(SOUND), ak=private_key(DEBIAN)).begin(), TRUST, NOW)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_points_off_the_curve_are_refused(curve: ec.EllipticCurve) -> None:
    area = public_area(ec.generate_private_key(curve).public_key(), soft_tpm.AK)
    tls = SoftTpm(MAKER).tls_area
    zero = soft_tpm.sized(bytes((curve.key_size + 7) // 8))
    for bent in (area[:-1] + bytes([area[-1] ^ 1]), area[: -2 * len(zero)] + zero + zero):
        refused("curve", lambda bent=bent: EnrolledKeys.parse(bent, tls))
