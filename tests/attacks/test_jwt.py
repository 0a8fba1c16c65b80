"""Attack class "JWT": alg none, HS/RS confusion, kid injection, jku/x5u, missing aud/exp, another tenant's key, a token
not bound to the mTLS certificate (RFC 8705)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from foundation.bearer import MAX_LIFETIME, BearerVerifier, JwtIssuer, certificate_thumbprint
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind, SpiffeId
from foundation.reasons import Reason

ADA = SpiffeId("fleet.example", Kind.OPERATOR, "ada")
LEAF = b"a client certificate's DER"
NOW = int(time.time())
HOME, ELSEWHERE = "https://id.example", "https://other-tenant.example"


@dataclass
class Issuer:
    """An identity provider with one EC and one RSA key."""

    name: str
    ec_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    rsa_key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    def configure(self, folder: Path) -> JwtIssuer:
        path = folder / f"{hashlib.sha256(self.name.encode()).hexdigest()[:8]}.json"
        keys = [
            json.loads(ECAlgorithm.to_jwk(self.ec_key.public_key())) | {"kid": "e1", "alg": "ES256"},
            json.loads(RSAAlgorithm.to_jwk(self.rsa_key.public_key())) | {"kid": "r1", "alg": "RS256"},
        ]
        path.write_text(json.dumps({"keys": keys}))
        return JwtIssuer(self.name, "sallyport", path, ("viewer", "operator"))

    def claims(self, **changes: Any) -> dict[str, Any]:
        claims = {
            "iss": self.name,
            "sub": str(ADA),
            "aud": "sallyport",
            "iat": NOW - 5,
            "exp": NOW + 300,
            "roles": ["operator"],
            "cnf": {"x5t#S256": certificate_thumbprint(LEAF)},
        }
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def sign(self, claims: dict[str, Any] | None = None, **header: Any) -> str:
        return jwt.encode(claims or self.claims(), self.ec_key, "ES256", {"kid": "e1", **header})


@pytest.fixture(scope="module")
def home() -> Issuer:
    return Issuer(HOME)


@pytest.fixture(scope="module")
def elsewhere() -> Issuer:
    return Issuer(ELSEWHERE)


@pytest.fixture
def verifier(tmp_path: Path, home: Issuer, elsewhere: Issuer) -> BearerVerifier:
    return BearerVerifier((home.configure(tmp_path), elsewhere.configure(tmp_path)))


def _reason(verifier: BearerVerifier, token: str, leaf: bytes = LEAF, identity: SpiffeId = ADA) -> Reason:
    with pytest.raises(Fault) as caught:
        verifier.roles(token, identity, leaf, NOW)
    return caught.value.reason


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _forge(header: dict[str, Any], claims: dict[str, Any], key: bytes = b"") -> str:
    signed = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(claims).encode())}"
    return f"{signed}.{_b64(hmac.digest(key, signed.encode(), 'sha256') if key else b'')}"


def test_a_good_token_names_roles(verifier: BearerVerifier, home: Issuer) -> None:
    assert verifier.roles(home.sign(), ADA, LEAF, NOW) == ("operator",)
    rs = jwt.encode(home.claims(), home.rsa_key, "RS256", {"kid": "r1"})
    assert verifier.roles(rs, ADA, LEAF, NOW) == ("operator",)


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None])
def test_alg_none(verifier: BearerVerifier, home: Issuer, alg: str | None) -> None:
    assert _reason(verifier, _forge({"alg": alg, "kid": "e1"}, home.claims())) is Reason.JWT_INVALID


@pytest.mark.parametrize("kid", ["e1", "r1"])
@pytest.mark.parametrize("form", [Encoding.PEM, Encoding.DER])
def test_a_public_key_is_no_hmac_secret(verifier: BearerVerifier, home: Issuer, kid: str, form: Encoding) -> None:
    key = home.ec_key if kid == "e1" else home.rsa_key
    public = key.public_key().public_bytes(form, PublicFormat.SubjectPublicKeyInfo)
    assert _reason(verifier, _forge({"alg": "HS256", "kid": kid}, home.claims(), public)) is Reason.JWT_INVALID


@pytest.mark.parametrize("alg", ["RS256", "ES384", "PS256"])
def test_the_algorithm_is_the_keys(verifier: BearerVerifier, home: Issuer, alg: str) -> None:
    header, _, rest = home.sign().partition(".")
    bent = json.loads(base64.urlsafe_b64decode(header + "==")) | {"alg": alg}
    assert _reason(verifier, f"{_b64(json.dumps(bent).encode())}.{rest}") is Reason.JWT_INVALID


@pytest.mark.parametrize("kid", ["../../dev/null", "/dev/null", "' UNION SELECT 'x", "e1\x00", "E1", "", "http://x/"])
def test_kid_leads_nowhere(verifier: BearerVerifier, home: Issuer, kid: str) -> None:
    assert _reason(verifier, _forge({"alg": "HS256", "kid": kid}, home.claims(), b"x")) is Reason.JWT_INVALID
    assert _reason(verifier, home.sign(kid=kid)) is Reason.JWT_INVALID


@pytest.mark.parametrize("name", ["jku", "x5u", "x5c", "jwk", "crit"])
def test_a_token_does_not_bring_its_key(verifier: BearerVerifier, home: Issuer, name: str) -> None:
    """Even one that verifies otherwise: what a token says of its key is never read."""
    brought = {
        "jku": "https://evil.example/keys",
        "x5u": "https://evil.example/cert",
        "x5c": ["MIIB"],
        "jwk": json.loads(ECAlgorithm.to_jwk(home.ec_key.public_key())),
        "crit": ["exp"],
    }
    assert _reason(verifier, home.sign(**{name: brought[name]})) is Reason.JWT_INVALID


@pytest.mark.parametrize("claim", ["iss", "sub", "aud", "exp", "iat"])
def test_missing_claims(verifier: BearerVerifier, home: Issuer, claim: str) -> None:
    assert _reason(verifier, home.sign(home.claims(**{claim: None}))) is Reason.JWT_INVALID


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another"},
        {"aud": ["another"]},
        {"iss": "https://id.example/"},
        {"sub": "spiffe://fleet.example/operator/bob"},
        {"exp": NOW},
        {"exp": NOW - 1},
        {"exp": str(NOW + 300)},
        {"exp": NOW + 0.5},
        {"iat": NOW + 3600, "exp": NOW + 7200},
        {"nbf": NOW + 3600},
        {"exp": NOW + MAX_LIFETIME + 60},
        {"roles": "operator"},
        {"roles": None},
    ],
)
def test_wrong_claims(verifier: BearerVerifier, home: Issuer, changes: dict[str, Any]) -> None:
    assert _reason(verifier, home.sign(home.claims(**changes))) is Reason.JWT_INVALID


def test_another_tenants_key(verifier: BearerVerifier, home: Issuer, elsewhere: Issuer) -> None:
    """Both are configured, with the same kid: each signs for itself alone."""
    assert verifier.roles(elsewhere.sign(), ADA, LEAF, NOW) == ("operator",)
    assert _reason(verifier, elsewhere.sign(home.claims())) is Reason.JWT_INVALID
    assert _reason(verifier, Issuer("https://unknown.example").sign()) is Reason.JWT_INVALID


@pytest.mark.parametrize(
    "confirmation",
    [None, {}, {"x5t#S256": ""}, {"x5t#S256": 1}, {"x5t": certificate_thumbprint(LEAF)}, {"jkt": "x"}, "x"],
)
def test_a_token_without_binding(verifier: BearerVerifier, home: Issuer, confirmation: object) -> None:
    assert _reason(verifier, home.sign(home.claims(cnf=confirmation))) is Reason.TOKEN_NOT_BOUND


def test_a_token_bound_to_another_certificate(verifier: BearerVerifier, home: Issuer) -> None:
    assert _reason(verifier, home.sign(), b"another certificate of the same operator") is Reason.TOKEN_NOT_BOUND


def test_roles_are_those_that_the_settings_leave_to_the_issuer(verifier: BearerVerifier, home: Issuer) -> None:
    asked = ["security", "break-glass", "viewer", "root", "operator"]
    assert verifier.roles(home.sign(home.claims(roles=asked)), ADA, LEAF, NOW) == ("viewer", "operator")


@pytest.mark.parametrize("garbage", ["", ".", "..", "a.b.c", "x" * 10_000, "\x00.\x00.\x00", "é.é.é"])
def test_garbage(verifier: BearerVerifier, garbage: str) -> None:
    assert _reason(verifier, garbage) is Reason.JWT_INVALID


@pytest.mark.parametrize(
    "bend",
    [
        lambda key: {"kty": "oct", "k": "c2VjcmV0", "kid": "s1", "alg": "HS256"},
        lambda key: key | {"d": "AAAA"},
        lambda key: {name: value for name, value in key.items() if name != "kid"},
        lambda key: key | {"alg": "HS256"},
        lambda key: {"kty": "EC"},
        lambda key: 7,
    ],
)
def test_keys_that_cannot_be_configured(tmp_path: Path, home: Issuer, bend: Callable[[Any], Any]) -> None:
    issuer = home.configure(tmp_path)
    good = json.loads(issuer.jwks_file.read_text())["keys"][0]
    issuer.jwks_file.write_text(json.dumps({"keys": [bend(good)]}))
    with pytest.raises(Fault) as caught:
        BearerVerifier((issuer,))
    assert caught.value.reason is Reason.SETTING_INVALID


def test_break_glass_is_not_an_issuers_to_give(tmp_path: Path) -> None:
    given = {"issuer": HOME, "audience": "sallyport", "jwks_file": str(tmp_path), "roles": ["break-glass"]}
    with pytest.raises(Fault) as caught:
        JwtIssuer.parse(Fields(given, "api.issuers", Reason.SETTING_INVALID))
    assert caught.value.field == "api.issuers.roles"
