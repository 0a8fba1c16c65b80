"""TLS connections to an authority. Blocking: call off the event loop.

Laws held here:
- a node that knows only its root's hash sends nothing, not even an HTTP request, to a server it has not verified: it
  finds its root in the chain that the server presents, verifies that chain up to this root alone, and hangs up unless
  all of it holds. Every later connection trusts that root alone from the start;
- the key that the server proved is known with each answer, for it is bound into what the TPM signs;
- answers are bounded in bytes and time.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import verification

from agent.settings import Address
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.tls import HTTP_1_1, client_context, spki_sha256
from foundation.wire.enrolment import MAX_BEGIN_BYTES

JSON = "application/json"
_MAX_PROBLEM_BYTES = 64 * 1024
_ENCODING_DER = 2  # as `_ssl` has it: OpenSSL's X509_FILETYPE_ASN1


def trusting(root: bytes, protocols: tuple[str, ...] = HTTP_1_1) -> ssl.SSLContext:
    """A client's context that trusts this root (DER) alone."""
    return client_context(ssl.DER_cert_to_PEM_cert(root).encode(), protocols=protocols)


class Channel:
    """A verified connection, opened at the first message and again after a loss."""

    def __init__(self, address: Address, context: ssl.SSLContext, timeout: float) -> None:
        self._address = address
        self._http = _Connection(address, context, timeout)
        self.server_spki_sha256 = b""
        """SHA-256 of the SubjectPublicKeyInfo of the server that answered last."""

    @classmethod
    def pinned(cls, address: Address, root_sha256: bytes, timeout: float) -> tuple[Channel, bytes]:
        """An open channel to the server at `address` and the DER of its root, whose SHA-256 is all that is known.
        Raises `Fault(SERVER_UNTRUSTED | SERVER_UNREACHABLE)`; then nothing was sent."""
        connection = _connect_to_anybody(address, timeout)
        try:
            root = _verified_root(_presented_chain(connection), root_sha256, address)
            channel = cls(address, trusting(root), timeout)
            channel._use(connection)
        except BaseException:
            connection.close()
            raise
        return channel, root

    def post(self, path: str, body: bytes) -> bytes:
        """The body of a success to a JSON message; raises as `ask`."""
        return self.ask("POST", path, body)

    def ask(
        self, method: str, path: str, body: bytes = b"", content_type: str = JSON, most: int = MAX_BEGIN_BYTES
    ) -> bytes:
        """The body of a success, `most` bytes at most. Raises `Fault` with the server's own reason when it refuses;
        `SERVER_UNTRUSTED` when it is not ours, and then nothing was sent; `SERVER_UNREACHABLE` when the answer is lost,
        and then it may have acted or not."""
        if self._http.sock is not None and _has_gone(self._http.sock):
            self._http.close()  # making keys may take a TPM longer than a server waits for the first message
        if self._http.sock is None:
            self._connect()
        try:
            self._http.request(method, path, body or None, {"Content-Type": content_type} if body else {})
            response = self._http.getresponse()
            answer = response.read(most + 1)
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            raise _unreachable(self._address, error) from error
        if len(answer) > most:
            self._http.close()
            raise Fault(Reason.MESSAGE_TOO_LARGE, f"{self._address} answers more than {most} bytes")
        if response.status != http.client.OK:
            raise refusal(response.status, answer)
        return answer

    def close(self) -> None:
        self._http.close()

    def _connect(self) -> None:
        try:
            self._http.connect()
        except OSError as error:
            self._http.close()
            raise _unreachable(self._address, error) from error
        self._use(self._http.sock)

    def _use(self, connection: ssl.SSLSocket) -> None:
        self._http.sock = connection
        leaf = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
        self.server_spki_sha256 = spki_sha256(leaf)


class _Connection(http.client.HTTPSConnection):
    """An HTTPS connection to `address`, over its Unix socket where it has one."""

    def __init__(self, address: Address, context: ssl.SSLContext, timeout: float) -> None:
        super().__init__(address.host, address.port, timeout=timeout, context=context)
        self._via = address.via
        self._tls = context

    def connect(self) -> None:
        """See `http.client.HTTPConnection.connect`."""
        if self._via is None:
            super().connect()
            return
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            plain.settimeout(self.timeout)
            plain.connect(str(self._via))
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


class Refusal(Fault):
    """A server's refusal, in its own words. `decision` names the decision for `sallyport explain`, where it has one."""

    def __init__(self, reason: Reason, detail: str, field: str = "", decision: str = "") -> None:
        super().__init__(reason, detail, field=field)
        self.decision = decision


def refusal(status: int, body: bytes) -> Refusal:
    """What a problem+json (RFC 9457) says. One that is not ours is `INTERNAL`."""
    try:
        fields = Fields.from_json(body, "problem", Reason.MESSAGE_MALFORMED, max_bytes=_MAX_PROBLEM_BYTES)
        reason = Reason.from_code(fields.text("reason", max_length=64))
        return Refusal(reason, *(fields.text(name, "") for name in ("detail", "field", "decision")))
    except (Fault, KeyError):
        return Refusal(Reason.INTERNAL, f"the server answers {status} without a reason of ours")


def _connect_to_anybody(address: Address, timeout: float) -> ssl.SSLSocket:
    """A connection whose other side has proven the key of the leaf that it presents (RFC 8446 §4.4.3), and nothing
    more. Raises `Fault(SERVER_UNREACHABLE)`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # `_verified_root` does it, before a byte is sent
    context.set_alpn_protocols(list(HTTP_1_1))
    try:
        plain = socket.create_connection((address.host, address.port), timeout=timeout)
        try:
            return context.wrap_socket(plain, server_hostname=address.host)
        except BaseException:
            plain.close()
            raise
    except OSError as error:
        raise _unreachable(address, error) from error


def _verified_root(chain: tuple[bytes, ...], root_sha256: bytes, address: Address) -> bytes:
    """The DER in `chain` with this hash, to which its first certificate leads for the purpose and the name of a server
    (RFC 5280 §6, RFC 9525). Raises `Fault(SERVER_UNTRUSTED)`."""
    root = next((der for der in chain if hmac.compare_digest(hashlib.sha256(der).digest(), root_sha256)), None)
    if root is None:
        raise Fault(Reason.SERVER_UNTRUSTED, f"{address} does not present the token's root", field="authority")
    try:
        leaf, *others = (x509.load_der_x509_certificate(der) for der in chain if der != root)
        store = verification.Store([x509.load_der_x509_certificate(root)])
        verifier = verification.PolicyBuilder().store(store).build_server_verifier(_server_name(address.host))
        verifier.verify(leaf, others)
    except (ValueError, UnsupportedAlgorithm, verification.VerificationError) as error:
        raise Fault(Reason.SERVER_UNTRUSTED, f"{address}: {error}", field="authority") from None
    return root


def _server_name(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _has_gone(connection: ssl.SSLSocket) -> bool:
    """Whether the other side has ended the connection, or says something that nobody asked for."""
    patience = connection.gettimeout()
    connection.settimeout(0)
    try:
        connection.recv(1)
    except ssl.SSLWantReadError:  # nothing but session tickets, if that
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(patience)
    return True


def _presented_chain(tls: ssl.SSLSocket) -> tuple[bytes, ...]:
    """The DER certificates as sent (RFC 8446 §4.4.2), verified by nobody."""
    connection: Any = tls
    if hasattr(connection, "get_unverified_chain"):  # Python 3.13
        return tuple(connection.get_unverified_chain())
    return tuple(item.public_bytes(_ENCODING_DER) for item in connection._sslobj.get_unverified_chain() or ())


def _unreachable(address: Address, error: Exception) -> Fault:
    if isinstance(error, ssl.SSLCertVerificationError):
        return Fault(Reason.SERVER_UNTRUSTED, f"{address}: {error.verify_message}")
    return Fault(Reason.SERVER_UNREACHABLE, f"{address}: {error.__class__.__name__}", internal=str(error))
