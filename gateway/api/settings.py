"""Settings of the section `api`: where operators, gateways and renewing nodes reach us."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foundation.bearer import JwtIssuer
from foundation.fields import Fields


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """`host` and `port` of the mTLS listener; `socket` is the Unix socket for this machine's root; `issuers` are the
    identity providers whose JWTs may name roles (RFC 8705: each token bound to the client's certificate)."""

    host: str = "0.0.0.0"  # noqa: S104  # a client certificate is required, and policy decides
    port: int = 8445
    socket: Path = Path("/run/sallyport/sallyport.sock")
    issuers: tuple[JwtIssuer, ...] = ()

    @classmethod
    def parse(cls, fields: Fields) -> ApiSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            host=fields.text("host", "0.0.0.0"),  # noqa: S104  # as above
            port=fields.integer("port", 8445, most=65535),
            socket=Path(fields.text("socket", "/run/sallyport/sallyport.sock")),
            issuers=fields.each("issuers", JwtIssuer.parse, most=16, optional=True),
        )
        fields.finish()
        return settings
