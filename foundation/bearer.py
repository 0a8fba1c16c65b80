"""JWTs of operators (RFC 7519), accepted only together with the client certificate that they are bound to (RFC 8705).

Laws held here:
- the key is one of a local file (RFC 7517), found by the token's `kid` among its own issuer's keys alone; nothing in a
  token ever leads to a key (`jku`, `x5u`, `x5c`, `jwk` are refused), and no key is fetched;
- the algorithm is the key's, not the token's, and is asymmetric: an HMAC key or `none` cannot be configured;
- `iss`, `sub`, `aud`, `exp`, `iat` and `cnf` are required. `sub` is the certificate's SPIFFE ID: the token adds no
  identity, it says with which roles this operator acts, within what the settings leave to its issuer.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from foundation.faults import Fault
from foundation.fields import Fields, strict_json
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason

ALGORITHMS = ("ES256", "ES384", "EdDSA", "PS256", "RS256")
MAX_TOKEN_BYTES = 8 * 1024
MAX_JWKS_BYTES = 256 * 1024
MAX_LIFETIME = 12 * 3600
SKEW_SECONDS = 30
ISSUER_ROLES = ("viewer", "operator", "security")  # break-glass is never an identity provider's to give
_LEADS_TO_A_KEY = frozenset({"jku", "x5u", "x5c", "jwk", "x5t", "x5t#S256", "crit"})
_REQUIRED = ["iss", "sub", "aud", "exp", "iat"]


@dataclass(frozen=True, slots=True)
class JwtIssuer:
    """An identity provider. `jwks_file` holds its public keys; `roles` are those that it may give."""

    issuer: str
    audience: str
    jwks_file: Path
    roles: tuple[str, ...] = ("viewer", "operator")

    @classmethod
    def parse(cls, fields: Fields) -> JwtIssuer:
        """One entry of the list `jwt_issuers`. Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        issuer = cls(
            issuer=fields.text("issuer", max_length=512),
            audience=fields.text("audience", max_length=512),
            jwks_file=Path(fields.text("jwks_file")),
            roles=fields.texts("roles", ("viewer", "operator"), most=len(ISSUER_ROLES)),
        )
        if not set(issuer.roles) <= set(ISSUER_ROLES):
            raise fields.fault("roles", f"expected some of {', '.join(ISSUER_ROLES)}")
        fields.finish()
        return issuer


class BearerVerifier:
    """Verifies JWTs by the keys of the configured issuers."""

    def __init__(self, issuers: tuple[JwtIssuer, ...]) -> None:
        """Raises `Fault(FILE_UNREADABLE | SETTING_INVALID)` for a key file that cannot be used."""
        self._issuers = {issuer.issuer: issuer for issuer in issuers}
        self._keys = {issuer.issuer: _keys(issuer.jwks_file) for issuer in issuers}

    def roles(self, token: str, identity: SpiffeId, leaf: bytes, now: float) -> tuple[str, ...]:
        """The roles that `token` gives to `identity`, whose client certificate is `leaf`. Raises
        `Fault(JWT_INVALID | TOKEN_NOT_BOUND)`."""
        issuer, key = self._issuer_and_key(token)
        claims = _verified(token, key, issuer)
        _check_times(claims, now)
        if claims["sub"] != str(identity):
            raise _invalid("`sub` is not the client certificate's SPIFFE ID")
        if not _is_bound(claims, leaf):
            raise Fault(Reason.TOKEN_NOT_BOUND, field="authorization")
        roles = claims.get("roles")
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise _invalid("`roles` is not a list of strings")
        return tuple(role for role in issuer.roles if role in roles)

    def _issuer_and_key(self, token: str) -> tuple[JwtIssuer, jwt.PyJWK]:
        header, claims = _unverified(token)
        if _LEADS_TO_A_KEY & header.keys():
            raise _invalid("a token may not say where its key is")
        issuer = self._issuers.get(str(claims.get("iss")))
        if issuer is None:
            raise _invalid("`iss` is not an issuer of the settings")
        key = self._keys[issuer.issuer].get(str(header.get("kid")))
        if key is None or header.get("alg") != key.algorithm_name:
            raise _invalid("its issuer has no such key for this algorithm")
        return issuer, key


def certificate_thumbprint(leaf: bytes) -> str:
    """`x5t#S256` of a DER certificate (RFC 8705 §3.1)."""
    return base64.urlsafe_b64encode(hashlib.sha256(leaf).digest()).rstrip(b"=").decode()


def _unverified(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    if len(token) > MAX_TOKEN_BYTES:
        raise _invalid("it is too long")
    try:
        read = jwt.decode_complete(token, options={"verify_signature": False})
    except jwt.InvalidTokenError:
        raise _invalid("it does not parse") from None
    return read["header"], read["payload"]


def _verified(token: str, key: jwt.PyJWK, issuer: JwtIssuer) -> dict[str, Any]:
    # Times are compared by `_check_times`, with the injected clock.
    own_times: Any = {"require": _REQUIRED, "verify_exp": False, "verify_nbf": False, "verify_iat": False}
    try:
        return jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm_name],
            audience=issuer.audience,
            issuer=issuer.issuer,
            options=own_times,
        )
    except jwt.InvalidTokenError as error:
        raise _invalid(type(error).__name__) from None


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    issued, expires, begins = claims["iat"], claims["exp"], claims.get("nbf", claims["iat"])
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in (issued, expires, begins)):
        raise _invalid("its times are not whole seconds")
    if expires - issued > MAX_LIFETIME:
        raise _invalid(f"it lives longer than {MAX_LIFETIME} seconds")
    if not max(issued, begins) - SKEW_SECONDS <= now < expires:
        raise _invalid("it is not valid now")


def _is_bound(claims: Mapping[str, Any], leaf: bytes) -> bool:
    confirmation = claims.get("cnf")
    named = confirmation.get("x5t#S256") if isinstance(confirmation, Mapping) else None
    return isinstance(named, str) and hmac.compare_digest(named.encode(), certificate_thumbprint(leaf).encode())


def _keys(path: Path) -> dict[str, jwt.PyJWK]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error
    if len(raw) > MAX_JWKS_BYTES:
        raise Fault(Reason.FILE_UNREADABLE, f"larger than {MAX_JWKS_BYTES} bytes", field=str(path))
    found = strict_json(raw, str(path), Reason.SETTING_INVALID)
    entries = found.get("keys") if isinstance(found, dict) else None
    keys = [_key(entry, path) for entry in entries] if isinstance(entries, list) else []
    if not keys or len({key.key_id for key in keys}) != len(keys):
        raise Fault(Reason.SETTING_INVALID, "expected a JWK set (RFC 7517 §5), each key with its kid", field=str(path))
    return {str(key.key_id): key for key in keys}


def _key(entry: Any, path: Path) -> jwt.PyJWK:
    try:
        key = jwt.PyJWK(entry)
    except (jwt.PyJWTError, AttributeError, TypeError, ValueError):
        raise Fault(Reason.SETTING_INVALID, "a key does not parse", field=str(path)) from None
    if key.algorithm_name not in ALGORITHMS or not isinstance(key.key_id, str) or _is_private_or_short(entry, key):
        wanted = f"expected public keys with a kid, for {', '.join(ALGORITHMS)}"
        raise Fault(Reason.SETTING_INVALID, wanted, field=str(path))
    return key


def _is_private_or_short(entry: Mapping[str, Any], key: jwt.PyJWK) -> bool:
    return "d" in entry or "k" in entry or (isinstance(key.key, rsa.RSAPublicKey) and key.key.key_size < 2048)


def _invalid(detail: str) -> Fault:
    return Fault(Reason.JWT_INVALID, detail, field="authorization")
