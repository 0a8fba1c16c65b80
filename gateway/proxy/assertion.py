"""How an upstream is told who asks, as its pool in policy says: by our own header fields, by Envoy's
X-Forwarded-Client-Cert, by a signed assertion, or not at all.

Laws held here:
- only we set these fields: whatever a client sends under such a name has been removed (`headers`), pool or no pool;
- an assertion is for one request: it names the caller, the route, the decision and a digest of the request's head, and
  ends after `LIFETIME` seconds;
- its key is made for this alone, on this machine, and never leaves it. It is not the TLS key: a key that signs
  handshakes and texts both can be made to sign the one as the other.

An assertion is a JWT (RFC 7519) in `x-sallyport-assertion`, signed with ES256 (RFC 7518 §3.4):

    iss  the gateway's SPIFFE ID         sub            the caller's SPIFFE ID
    aud  the route's name                jti            the decision's id
    iat, exp                             method, target, head_sha256 (see `head_digest`)
    body_sha256  of an empty body, where the request has none; a body is streamed, so nobody knows its digest before it
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.files import read_secret, write_secret
from foundation.reasons import Reason
from gateway.proxy.http1 import RequestHead
from gateway.proxy.identify import Caller
from policies.model import Permit
from policies.upstreams import IdentityHeader

LIFETIME = 30
PLAIN = (IdentityHeader.SALLYPORT,)
KEY_FILE, PREVIOUS_KEY_FILE = "assertion.pem", "assertion.previous.pem"
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_HALF = 32  # bytes of each half of an ES256 signature


class AssertionKey:
    """The P-256 key that signs assertions. `kid` is its thumbprint (RFC 7638)."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        numbers = key.public_key().public_numbers()
        members = {"crv": "P-256", "kty": "EC", "x": _number(numbers.x), "y": _number(numbers.y)}
        self.kid = _base64url(hashlib.sha256(_json(members)).digest())
        self.public: Mapping[str, str] = {**members, "kid": self.kid, "use": "sig", "alg": "ES256"}
        self._header = _base64url(_json({"alg": "ES256", "kid": self.kid, "typ": "JWT"})) + "."

    @classmethod
    def read(cls, path: Path) -> AssertionKey:
        """Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
        try:
            key = serialization.load_pem_private_key(read_secret(path), None)
        except (ValueError, TypeError) as error:
            raise Fault(Reason.FILE_UNREADABLE, "not a private key in PEM", field=str(path)) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise Fault(Reason.FILE_UNREADABLE, "expected a P-256 key", field=str(path))
        return cls(key)

    @classmethod
    def open(cls, folder: Path) -> AssertionKey:
        """The key in `folder`, which is made where there is none. Raises `Fault`."""
        path = folder / KEY_FILE
        if not path.exists():
            encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            made = ec.generate_private_key(ec.SECP256R1())
            pem = made.private_bytes(encoding, form, serialization.NoEncryption())
            with contextlib.suppress(FileExistsError):  # another process of this gateway made it meanwhile
                write_secret(path, pem, replace=False)
        return cls.read(path)

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A JWT with these claims."""
        text = self._header + _base64url(_json(claims))
        r, s = decode_dss_signature(self._key.sign(text.encode("ascii"), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_base64url(r.to_bytes(_HALF, 'big') + s.to_bytes(_HALF, 'big'))}"


class Assertions:
    """Says to upstreams who asks. `own` gives this gateway's SPIFFE ID."""

    def __init__(self, own: Callable[[], str], key: AssertionKey, clock: Clock) -> None:
        self._own = own
        self._key = key
        self._clock = clock

    def lines(
        self, told: Sequence[IdentityHeader], caller: Caller, permit: Permit, head: RequestHead
    ) -> Iterable[bytes]:
        """The header lines for a request that `permit` allows."""
        for each in told:
            if each is IdentityHeader.SALLYPORT:
                yield caller.line
                yield b"x-sallyport-decision: %b\r\n" % permit.id.encode("ascii")
            elif each is IdentityHeader.XFCC:
                yield b"x-forwarded-client-cert: %b\r\n" % forwarded_client_cert(self._own(), caller).encode("ascii")
            else:
                yield b"x-sallyport-assertion: %b\r\n" % self._assertion(caller, permit, head).encode("ascii")

    def _assertion(self, caller: Caller, permit: Permit, head: RequestHead) -> str:
        asked, now = permit.query.request, int(self._clock.now())
        claims = {
            "iss": self._own(),
            "sub": caller.text,
            "aud": permit.query.route,
            "jti": permit.id,
            "iat": now,
            "exp": now + LIFETIME,
            "method": asked.method,
            "target": asked.target.decode("latin-1"),
            "head_sha256": head_digest(asked.method.encode("ascii"), asked.target, head.authority, head.fields),
        }
        if head.length == 0:
            claims["body_sha256"] = _EMPTY_SHA256
        return self._key.sign(claims)


def forwarded_client_cert(by: str, caller: Caller) -> str:
    """One element in Envoy's grammar, with the certificate's SHA-256 in hex. No value here holds a character that
    would have to be quoted."""
    digest = hashlib.sha256(caller.peer.certificate).hexdigest()
    return f"By={by};Hash={digest};URI={caller.text}"


def head_digest(method: bytes, target: bytes, host: bytes, fields: Iterable[tuple[bytes, bytes]]) -> str:
    """SHA-256 in hex over `method LF target LF host LF`, then over `name: value LF` for each field that the caller sent
    and we pass on: names in lower case, values without white space around them, sorted, `via` left out (proxies add to
    it). An upstream leaves out what a hop sets for itself, too: host, content-length, transfer-encoding, connection,
    upgrade, expect, traceparent, tracestate, x-forwarded-client-cert and x-sallyport-*."""
    lines = sorted(b"%b: %b\n" % (name.lower(), value.strip(b" \t")) for name, value in fields)
    kept = [line for line in lines if not line.startswith(b"via:")]
    return hashlib.sha256(b"%b\n%b\n%b\n%b" % (method, target, host, b"".join(kept))).hexdigest()


def published_keys(folder: Path) -> dict[str, Any]:
    """The JWK set (RFC 7517 §5) that verifies assertions: of the key in use, and of the one before, if it is kept."""
    files = [path for name in (KEY_FILE, PREVIOUS_KEY_FILE) if (path := folder / name).exists()]
    return {"keys": [dict(AssertionKey.read(path).public) for path in files]}


def _number(value: int) -> str:
    return _base64url(value.to_bytes(_HALF, "big"))


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
