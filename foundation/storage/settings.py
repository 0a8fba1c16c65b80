"""Settings of the section `storage`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from foundation.fields import Fields

DEFAULT_URL = "sqlite:////var/lib/sallyport/sallyport.db"
DRIVERS = ("sqlite", "postgresql+asyncpg")


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """Where the database is. `url` names a driver of `DRIVERS` and holds no password: that is read from
    `password_file` (0600). `wait` is how long, in seconds, one caller waits for another's transaction."""

    url: str = DEFAULT_URL
    password_file: Path | None = None
    wait: float = 10.0
    connections: int = 8

    @classmethod
    def parse(cls, fields: Fields) -> StorageSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            url=_checked_url(fields),
            password_file=Path(fields.text("password_file")) if fields.has("password_file") else None,
            wait=fields.duration("wait", "10s"),
            connections=fields.integer("connections", 8, least=1, most=64),
        )
        fields.finish()
        return settings

    @property
    def parsed_url(self) -> URL:
        return make_url(self.url)


def _checked_url(fields: Fields) -> str:
    text = fields.text("url", DEFAULT_URL)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise fields.fault("url", "expected sqlite:///path or postgresql+asyncpg://host/name") from None
    if url.drivername not in DRIVERS:
        raise fields.fault("url", f"expected one of the drivers {', '.join(DRIVERS)}")
    if url.password is not None:
        raise fields.fault("url", "a password does not stand in settings: name a password_file")
    return text
