"""Settings of the section `api`: where operators, gateways and renewing nodes reach the authority."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foundation.bearer import JwtIssuer
from foundation.fields import Fields

DEFAULT_PORT = 7444
DEFAULT_SOCKET = "/run/sallyport/sallyport.sock"
MAX_ISSUERS = 8


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """`host` and `port` of the listener that asks for client certificates; `socket` is the Unix socket for the machine's
    root. `jwt_issuers` are identity providers whose JWTs, bound to a client certificate, name operators' roles."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    socket: Path = Path(DEFAULT_SOCKET)
    jwt_issuers: tuple[JwtIssuer, ...] = ()

    @classmethod
    def parse(cls, fields: Fields) -> ApiSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            host=fields.text("host", "127.0.0.1", max_length=255),
            port=fields.integer("port", DEFAULT_PORT, most=65535),
            socket=Path(fields.text("socket", DEFAULT_SOCKET)),
            jwt_issuers=fields.each("jwt_issuers", JwtIssuer.parse, most=MAX_ISSUERS, optional=True),
        )
        fields.finish()
        return settings
