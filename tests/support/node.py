"""A node that speaks the enrolment protocol message by message, so that a test can bend any of them.

Its TPM is swtpm, driven by the agent's own code; `Honest` follows the protocol, tests replace what they attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.evidence import Exchange, Prover, SoftwareProver, TpmProver
from agent.tlskey import SoftwareTlsKey, TpmTlsKey
from agent.tpm import Tpm
from foundation.identifiers import Kind, SpiffeId
from foundation.ports import Caller
from foundation.wire.enrolment import Begin, Challenge, Complete, Evidence, Issued, Token, proof
from pki.enrol.origin import Origin
from tests.support.installation import TRUST_DOMAIN, Installation
from tests.support.swtpm import EmulatedTpm

SERVER_KEY = b"\x01" * 32
HERE = Origin("192.0.2.1", SERVER_KEY)
BendBegin = Callable[[Begin], Begin]
BendEvidence = Callable[[Evidence], Evidence]


def _same_begin(message: Begin) -> Begin:
    return message


def _same_evidence(message: Evidence) -> Evidence:
    return message


@dataclass
class Node:
    """A node with its prover. `server_key` is the SPKI hash that it believes to see."""

    prover: Prover
    name: str = "edge-1"
    origin: Origin = HERE

    def begin(self, token: Token | None, bend: BendBegin = _same_begin) -> bytes:
        return bend(self.prover.begin("enrol", self.name, token.encode() if token else "")).encode()

    def begin_renewal(self, bend: BendBegin = _same_begin) -> bytes:
        return bend(self.prover.begin("renew", self.name, "")).encode()

    def complete(
        self, first: bytes, challenge: bytes, bend: BendEvidence = _same_evidence, *, secret: bytes | None = None
    ) -> bytes:
        asked = Challenge.parse(challenge)
        purpose = Begin.parse(first).purpose
        evidence = bend(self.prover.evidence(Exchange(purpose, first, asked, self.origin.server_spki_sha256))).encode()
        freed = self.prover.activated_secret(asked) if secret is None else secret
        proven = proof(freed, asked.session, first, evidence) if freed else b""
        return Complete(asked.session, evidence, proven).encode()

    async def enrol(self, site: Installation, token: Token | None, bend: BendEvidence = _same_evidence) -> Issued:
        first = self.begin(token)
        challenge = await site.service.enrolment.begin(first, self.origin)
        second = self.complete(first, challenge, bend)
        return Issued.parse(await site.service.enrolment.complete(second, self.origin))

    async def renew(self, site: Installation, caller: Caller, bend: BendEvidence = _same_evidence) -> Issued:
        first = self.begin_renewal()
        challenge = await site.service.renewal.begin(first, caller, self.origin)
        second = self.complete(first, challenge, bend)
        return Issued.parse(await site.service.renewal.complete(second, caller, self.origin))


@contextmanager
def tpm_node(device: EmulatedTpm, name: str = "edge-1") -> Iterator[Node]:
    """A node with this TPM."""
    with Tpm(device.tcti) as tpm:
        yield Node(new_prover(tpm, device.event_log), name)


def new_prover(tpm: Tpm, event_log: Path) -> TpmProver:
    """A prover with a new TLS key in this TPM."""
    return TpmProver(tpm, TpmTlsKey(tpm, tpm.create_tls_key()), ek="", event_log=event_log)


def software_node(name: str = "edge-1") -> Node:
    """A node without a TPM."""
    return Node(SoftwareProver(SoftwareTlsKey.generate()), name)


def caller_of(issued: Issued, serial: str | None = None) -> Caller:
    """The caller that holds the certificate in `issued`."""
    from cryptography import x509

    leaf = x509.load_der_x509_certificate(issued.chain[0])
    return Caller(SpiffeId.parse(issued.spiffe_id), (), "certificate", serial or format(leaf.serial_number, "x"))


def node_id(name: str = "edge-1") -> SpiffeId:
    return SpiffeId(TRUST_DOMAIN, Kind.NODE, name)
