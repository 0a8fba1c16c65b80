"""What a node says in BEGIN and proves in COMPLETE, by its TPM or, where the authority allows it, by a software key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.store import KeyFile
from agent.tlskey import SoftwareTlsKey, TlsKey, TpmTlsKey, create_csr
from agent.tpm import Tpm
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import MAX_EVENT_LOG_BYTES, Begin, Challenge, Evidence, qualifying_data


@dataclass(frozen=True, slots=True)
class Exchange:
    """What both messages' signatures are bound to: the purpose, the raw BEGIN, its CHALLENGE, and the SHA-256 of the
    server's SubjectPublicKeyInfo as this node saw it."""

    purpose: str
    first_message: bytes
    challenge: Challenge
    server_spki_sha256: bytes

    def qualifying(self, kind: str) -> bytes:
        """The extraData of the structure `kind`."""
        session, nonce = self.challenge.session, self.challenge.nonce
        return qualifying_data(kind, self.purpose, session, nonce, self.first_message, self.server_spki_sha256)


class Prover(Protocol):
    """Proves one node's new TLS key."""

    @property
    def key(self) -> TlsKey: ...

    def key_file(self) -> KeyFile:
        """The TLS key, to be stored."""
        ...

    def begin(self, purpose: str, node: str, token: str) -> Begin:
        """The first message."""
        ...

    def evidence(self, exchange: Exchange) -> Evidence:
        """The second message's evidence."""
        ...

    def activated_secret(self, challenge: Challenge) -> bytes:
        """What the credential holds; empty where there is none to activate (renewal, or no TPM)."""
        ...


class TpmProver:
    """Proves a TLS key by certify and quote."""

    def __init__(self, tpm: Tpm, key: TpmTlsKey, *, ek: str, event_log: Path) -> None:
        self.key = key
        self._tpm = tpm
        self._ek = ek
        self._event_log = event_log

    def key_file(self) -> KeyFile:
        return KeyFile("tpm", self.key.file.pem)

    def begin(self, purpose: str, node: str, token: str) -> Begin:
        ak_public, tls_public = self._tpm.attestation_key(), self.key.file.public
        if purpose == "renew":
            return Begin(purpose, "tpm", node, "", b"", (), b"", ak_public, tls_public)
        endorsement = self._tpm.endorsement_key(self._ek)
        self._ek = endorsement.template  # what the credential will be made for
        return Begin(
            purpose,
            "tpm",
            node,
            token,
            endorsement.certificate,
            endorsement.chain,
            endorsement.public,
            ak_public,
            tls_public,
        )

    def evidence(self, exchange: Exchange) -> Evidence:
        certified = self._tpm.certify(self.key.file, exchange.qualifying("certify"))
        quoted, values = self._tpm.quote(exchange.challenge.pcrs, exchange.qualifying("quote"))
        return Evidence(
            certify_attest=certified.attest,
            certify_signature=certified.signature,
            quote_attest=quoted.attest,
            quote_signature=quoted.signature,
            pcr_values=values,
            event_log=read_event_log(self._event_log),
            csr=create_csr(self.key),
        )

    def activated_secret(self, challenge: Challenge) -> bytes:
        if not challenge.credential_blob:
            return b""
        return self._tpm.activate(self._ek, challenge.credential_blob, challenge.encrypted_secret)


class SoftwareProver:
    """Proves possession of a software key, and nothing about the machine: attestation `none`."""

    def __init__(self, key: SoftwareTlsKey) -> None:
        self.key = key

    def key_file(self) -> KeyFile:
        return KeyFile("software", self.key.pem)

    def begin(self, purpose: str, node: str, token: str) -> Begin:
        return Begin(purpose, "none", node, token, b"", (), b"", b"", self.key.spki)

    def evidence(self, exchange: Exchange) -> Evidence:
        possession = self.key.private_key().sign(exchange.qualifying("possession"), ec.ECDSA(hashes.SHA256()))
        return Evidence(b"", b"", b"", b"", (), b"", create_csr(self.key), possession)

    def activated_secret(self, challenge: Challenge) -> bytes:
        return b""


def read_event_log(path: Path) -> bytes:
    """The firmware's log; empty where the machine has none. Raises `Fault(FILE_UNREADABLE)`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_EVENT_LOG_BYTES + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error
    if len(raw) > MAX_EVENT_LOG_BYTES:
        raise Fault(Reason.MESSAGE_TOO_LARGE, f"the event log exceeds {MAX_EVENT_LOG_BYTES} bytes", field=str(path))
    return raw
