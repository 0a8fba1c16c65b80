"""The enrolment protocol from the node's side: BEGIN, CHALLENGE, COMPLETE, ISSUED (foundation/wire/enrolment.py).

A lost answer costs nothing: COMPLETE is on disk before it is sent and is repeated verbatim, in this run or the next,
until the authority answers.
"""

from __future__ import annotations

import asyncio
import datetime
import hmac
import itertools
from collections.abc import Callable

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.channel import Channel
from agent.evidence import Exchange, Prover
from agent.store import Identity, NodeStore, Pending
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import Challenge, Complete, Issued, proof

Report = Callable[[str], None]
"""Told what is being done, for people who wait."""

_DELIVERIES = 4
_FIRST_PAUSE_SECONDS = 0.5
_SERVER_FAILED = 500
_LATER = (429, 503)  # rate limited, overloaded, not reached: the same message may succeed


def propose(channel: Channel, prover: Prover, purpose: str, node: str, token: str, report: Report) -> bytes:
    """The raw COMPLETE that answers the authority's challenge. Blocks. Raises `Fault`."""
    # 1. Say who we are. Until here nothing was sent, and the server is verified.
    report("introducing this node")
    first_message = prover.begin(purpose, node, token).encode()
    challenge = Challenge.parse(channel.post(f"/v1/{purpose}/begin", first_message))
    # 2. The authority's idea of its own key is the key we see: nobody relays.
    if not hmac.compare_digest(challenge.server_spki_sha256, channel.server_spki_sha256):
        raise Fault(Reason.SERVER_UNTRUSTED, "the authority's TLS key is not the one that answers here: a relay")
    exchange = Exchange(purpose, first_message, challenge, channel.server_spki_sha256)
    # 3. Certify and quote, bound to this exchange.
    report("signing evidence")
    evidence = prover.evidence(exchange).encode()
    # 4. Activate the credential, and prove it over everything that was said.
    secret = prover.activated_secret(challenge)
    proven = proof(secret, challenge.session, first_message, evidence) if secret else b""
    return Complete(challenge.session, evidence, proven).encode()


async def deliver(channel: Channel, pending: Pending, store: NodeStore, clock: Clock) -> Identity:
    """Send what is pending until it is answered, and keep what was issued. A refusal ends it and is raised; where there
    is no answer, or one for later, it stays pending and the last fault is raised."""
    pause = _FIRST_PAUSE_SECONDS
    for delivery in range(1, _DELIVERIES + 1):
        try:
            answer = await asyncio.to_thread(channel.post, f"/v1/{pending.purpose}/complete", pending.message)
            break
        except Fault as fault:
            if fault.reason.status < _SERVER_FAILED and fault.reason.status not in _LATER:
                store.drop_pending()
            if fault.reason.status not in _LATER or delivery == _DELIVERIES:
                raise
        await clock.sleep(pause)
        pause *= 2
    try:
        identity = Identity(accept(Issued.parse(answer), pending.spki, pending.root), pending.key)
    except Fault:
        store.drop_pending()  # an answer that is of no use now is of no use later
        raise
    store.save(identity)
    return identity


def accept(issued: Issued, spki: bytes, root: bytes) -> Issued:
    """`issued`, when it is what a node may use. Raises `Fault(SERVER_UNTRUSTED)`."""
    try:
        chain = [x509.load_der_x509_certificate(der) for der in issued.chain]
    except ValueError:
        raise _not_ours("a certificate does not parse") from None
    # 1. It ends with the pinned root.
    if len(chain) < 2 or issued.chain[-1] != root:
        raise _not_ours("the chain does not end with the pinned root")
    # 2. Each certificate is signed by the next.
    for certificate, issuer in itertools.pairwise(chain):
        _check_signed(certificate, issuer)
    # 3. It is for our key.
    leaf = chain[0]
    if leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki:
        raise _not_ours("the certificate is for another key")
    # 4. It says what the message says.
    not_after = datetime.datetime.fromtimestamp(issued.not_after, datetime.UTC)
    if _uris(leaf) != [issued.spiffe_id] or leaf.not_valid_after_utc != not_after:
        raise _not_ours("the certificate and the message differ")
    return issued


def _check_signed(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise _not_ours("a certificate is not signed by the next") from None


def _uris(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _not_ours(detail: str) -> Fault:
    return Fault(Reason.SERVER_UNTRUSTED, detail, field="issued.chain")
