"""A small authority for the agent's tests: the enrolment protocol from the other side, judged by tpm2-pytss and openssl
through `cryptography`, not by our own verifier. It misbehaves on request."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import hmac
import json
import secrets
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tpm2_pytss.types import TPM2B_PUBLIC, TPMS_ATTEST, TPMT_PUBLIC, TPMT_SIGNATURE
from tpm2_pytss.utils import make_credential

from foundation.faults import Fault, problem
from foundation.reasons import Reason
from foundation.wire.enrolment import (
    Begin,
    Challenge,
    Complete,
    Evidence,
    Issued,
    PcrSelection,
    Token,
    proof,
    qualifying_data,
)

_NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)


@dataclass
class _Session:
    raw: bytes
    begin: Begin
    secret: bytes
    nonce: bytes


@dataclass
class SmallAuthority:
    """What it saw is in the lists; what it does wrong is set by the flags."""

    folder: Path
    node: str = "edge-1"
    lose_answers: int = 0  # do the work, then drop the connection
    present_root: bool = True
    claimed_spki: bytes = b""
    issue_for_other_key: bool = False
    refuse: Reason | None = None
    refuse_complete: Reason | None = None
    pcrs: PcrSelection = field(default_factory=lambda: PcrSelection("sha256", tuple(range(8))))
    requests: list[tuple[str, bytes]] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    sessions: dict[bytes, _Session] = field(default_factory=dict)
    results: dict[bytes, bytes] = field(default_factory=dict)
    names: tuple[str, ...] = ("127.0.0.1",)  # in the server's certificate
    impatient: bool = False  # hang up on a first connection that says nothing at once
    connections: int = 0

    def __post_init__(self) -> None:
        self.root_key, self.issuer_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.root = _certificate("Root", self.root_key.public_key(), "Root", self.root_key, ca=True)
        self.issuer = _certificate("Issuing", self.issuer_key.public_key(), "Root", self.root_key, ca=True)
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(name)) for name in self.names])
        server = _certificate("server", server_key.public_key(), "Issuing", self.issuer_key, san=names)
        self.server_spki = hashlib.sha256(_spki(server_key.public_key())).digest()
        chain = [server, self.issuer, *([self.root] if self.present_root else [])]
        pem = server_key.private_bytes(
            Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ) + b"".join(each.public_bytes(Encoding.PEM) for each in chain)
        self.server_pem = self.folder / f"server-{secrets.token_hex(4)}.pem"
        self.server_pem.write_bytes(pem)
        self.token = Token(hashlib.sha256(_der(self.root)).digest(), secrets.token_bytes(16), secrets.token_bytes(32))

    @contextlib.contextmanager
    def serving(self, *, mutual: bool = False) -> Iterator[str]:
        """`host:port` of a listener; with `mutual` it requires a client certificate of this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.server_pem)
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=_der(self.root))
        server = _Server(("127.0.0.1", 0), _Handler)
        server.authority, server.context = self, context
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def answer(self, path: str, raw: bytes) -> bytes:
        self.requests.append((path, raw))
        if self.refuse:
            raise Fault(self.refuse, "as the test asked")
        purpose, step = path.removeprefix("/v1/").split("/")
        return self._begin(purpose, raw) if step == "begin" else self._complete(purpose, raw)

    def _begin(self, purpose: str, raw: bytes) -> bytes:
        begin = Begin.parse(raw)
        assert begin.purpose == purpose
        secret, session = secrets.token_bytes(32), secrets.token_bytes(16)
        blob = encrypted = b""
        if begin.attestation == "tpm" and purpose == "enrol":
            ek, ak = _public(begin.ek_public), _public(begin.ak_public)
            credential, seed = make_credential(ek, secret, ak.get_name())
            blob, encrypted = credential.marshal(), seed.marshal()
        self.sessions[session] = _Session(raw, begin, secret if blob else b"", secrets.token_bytes(32))
        claimed = self.claimed_spki or self.server_spki
        return Challenge(session, self.sessions[session].nonce, 60, blob, encrypted, self.pcrs, claimed).encode()

    def _complete(self, purpose: str, raw: bytes) -> bytes:
        if self.refuse_complete:
            raise Fault(self.refuse_complete)
        digest = hashlib.sha256(raw).digest()
        if digest not in self.results:
            complete = Complete.parse(raw)
            session = self.sessions.pop(complete.session, None)
            if session is None:
                raise Fault(Reason.SESSION_UNKNOWN)
            spki = self._judge(purpose, complete, session)
            self.results[digest] = self._issue(spki, session.begin).encode()
        if self.lose_answers:
            self.lose_answers -= 1
            raise ConnectionAbortedError
        return self.results[digest]

    def _judge(self, purpose: str, complete: Complete, session: _Session) -> bytes:
        evidence = Evidence.parse(complete.evidence)
        self.evidence.append(evidence)
        csr = x509.load_der_x509_csr(evidence.csr)
        assert csr.is_signature_valid
        expected = proof(session.secret, complete.session, session.raw, complete.evidence) if session.secret else b""
        assert hmac.compare_digest(expected, complete.proof)

        def qualifying(kind: str) -> bytes:
            return qualifying_data(kind, purpose, complete.session, session.nonce, session.raw, self.server_spki)

        key = csr.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        if session.begin.attestation == "none":
            key.verify(evidence.possession, qualifying("possession"), ec.ECDSA(hashes.SHA256()))
            assert _spki(key) == session.begin.tls_public
            return _spki(key)
        ak = _public(session.begin.ak_public)
        tls = _public(session.begin.tls_public)
        assert tls.to_der() == _spki(key)
        certified = _verified(ak, evidence.certify_attest, evidence.certify_signature, qualifying("certify"))
        certify = certified.attested.certify
        assert bytes(certify.name) == bytes(tls.get_name())
        quoted = _verified(ak, evidence.quote_attest, evidence.quote_signature, qualifying("quote"))
        quote = quoted.attested.quote
        assert bytes(quote.pcrDigest) == hashlib.sha256(b"".join(evidence.pcr_values)).digest()
        assert len(evidence.pcr_values) == len(self.pcrs.indices)
        return _spki(key)

    def _issue(self, spki: bytes, begin: Begin) -> Issued:
        if self.issue_for_other_key:
            spki = _spki(ec.generate_private_key(ec.SECP256R1()).public_key())
        spiffe_id = f"spiffe://test/node/{begin.node or self.node}"
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)])
        key = serialization.load_der_public_key(spki)
        leaf = _certificate("", key, "Issuing", self.issuer_key, san=san)
        not_after = int(leaf.not_valid_after_utc.timestamp())
        attestation = "none" if begin.attestation == "none" else "virtual"
        chain = tuple(_der(each) for each in (leaf, self.issuer, self.root))
        return Issued(spiffe_id, chain, not_after, not_after - 1200, attestation, not_after)


class _Server(ThreadingHTTPServer):
    authority: SmallAuthority
    context: ssl.SSLContext
    daemon_threads = True

    def finish_request(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError), self.context.wrap_socket(request, server_side=True) as tls:
            self.authority.connections += 1
            if self.authority.impatient and self.authority.connections == 1:
                return
            self.RequestHandlerClass(tls, client_address, self)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            self._reply(200, "application/json", self.server.authority.answer(self.path, raw))
        except Fault as fault:
            self._reply(fault.reason.status, "application/problem+json", json.dumps(problem(fault)).encode())
        except ConnectionAbortedError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _reply(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _public(raw: bytes) -> Any:
    area, size = TPMT_PUBLIC.unmarshal(raw)
    assert size == len(raw)
    return TPM2B_PUBLIC(publicArea=area)


def _verified(ak: Any, attest: bytes, signature: bytes, qualifying: bytes) -> Any:
    TPMT_SIGNATURE.unmarshal(signature)[0].verify_signature(ak, attest)
    parsed, size = TPMS_ATTEST.unmarshal(attest)
    assert size == len(attest)
    assert bytes(parsed.extraData) == qualifying
    assert parsed.magic == 0xFF544347
    return parsed


def _certificate(
    subject: str,
    key: Any,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = False,
    san: x509.SubjectAlternativeName | None = None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOW - datetime.timedelta(minutes=5))
        .not_valid_after(_NOW + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    if ca:
        builder = builder.add_extension(x509.KeyUsage(*[False] * 5, True, True, False, False), critical=True)
    if san:
        builder = builder.add_extension(san, critical=not subject)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else [])


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
