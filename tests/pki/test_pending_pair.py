"""Key and certificate as files: what is there after each step at which a run may stop."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from foundation.faults import Fault
from foundation.tls import KeyPair
from pki.pending_pair import PendingPair


@pytest.fixture
def pair(tmp_path: Path) -> KeyPair:
    return KeyPair(tmp_path / "ada.pem", tmp_path / "ada.key")


def chain_for(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate of this key, of nobody's authority: that is for the TLS connection to know."""
    name, start = x509.Name([]), datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + datetime.timedelta(hours=8))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def key_in(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def test_the_key_is_on_disk_and_closed_before_anybody_is_asked(pair: KeyPair) -> None:
    pending = PendingPair.open(pair)
    (file,) = pair.key.parent.iterdir()
    assert file.name == "ada.key.pending"
    assert file.stat().st_mode & 0o777 == 0o600
    request = x509.load_der_x509_csr(pending.request())
    assert request.public_key() == key_in(file).public_key()
    assert request.is_signature_valid
    assert list(request.subject) == []


def test_a_lost_answer_is_asked_for_again_with_the_same_key(pair: KeyPair) -> None:
    assert PendingPair.open(pair).key.private_numbers() == PendingPair.open(pair).key.private_numbers()


def test_the_pair_in_place_fits(pair: KeyPair, tmp_path: Path) -> None:
    pair.key.write_bytes(b"old")
    pending = PendingPair.open(pair)
    chain = chain_for(pending.key)
    until = pending.keep(chain)
    assert until == x509.load_pem_x509_certificate(chain).not_valid_after_utc
    assert x509.load_pem_x509_certificate(pair.certificate.read_bytes()).public_key() == key_in(pair.key).public_key()
    assert pair.key.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.pending"))


@pytest.mark.parametrize("answer", ["garbage", "another key's"])
def test_an_answer_for_another_key_replaces_nothing(pair: KeyPair, answer: str) -> None:
    pair.certificate.write_bytes(b"old certificate")
    pair.key.write_bytes(b"old key")
    other = chain_for(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(Fault) as caught:
        PendingPair.open(pair).keep(other if answer == "another key's" else b"garbage")
    assert caught.value.field == "answer.pem"
    assert (pair.certificate.read_bytes(), pair.key.read_bytes()) == (b"old certificate", b"old key")


def test_stopped_between_the_two_files(pair: KeyPair) -> None:
    pending = PendingPair.open(pair)
    pair.certificate.write_bytes(chain_for(pending.key))
    pair.key.write_bytes(b"old key")
    following = PendingPair.open(pair)
    assert key_in(pair.key).private_numbers() == pending.key.private_numbers()
    assert following.key.private_numbers() != pending.key.private_numbers()


def test_a_pending_file_that_is_no_key_is_told(pair: KeyPair) -> None:
    waiting = pair.key.with_name("ada.key.pending")
    waiting.write_bytes(b"not a key")
    waiting.chmod(0o600)
    with pytest.raises(Fault) as caught:
        PendingPair.open(pair)
    assert caught.value.field == str(waiting)
