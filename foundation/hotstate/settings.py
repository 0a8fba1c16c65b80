"""Settings of the section `hotstate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from foundation.fields import Fields

_SCHEMES = ("unix", "redis", "rediss")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PORT = 6379


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """The Redis server that several gateways share: by a Unix socket (`path`), or by TCP (`host` and `port`), with TLS
    unless it is this machine. The password stands in a file (0600), which is read for each connection.

    timeout: how long one call may take in all, in seconds. connections: how many this process opens at most.
    namespace: what keys begin with, one of its own for each trust domain that shares the server.
    """

    path: Path | None = None
    host: str = ""
    port: int = _PORT
    tls: bool = False
    database: int = 0
    user: str = ""
    password_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    namespace: str = "sallyport"
    timeout: float = 0.5
    connections: int = 8

    @classmethod
    def parse(cls, fields: Fields) -> RedisSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        url = _checked_url(fields)
        settings = cls(
            path=Path(url.path) if url.scheme == "unix" else None,
            host=url.hostname or "",
            port=url.port or _PORT,
            tls=url.scheme == "rediss",
            database=fields.integer("database", 0, most=1023),
            user=fields.text("user", "", max_length=128),
            password_file=_path(fields, "password_file"),
            ca=_path(fields, "ca"),
            certificate=_path(fields, "certificate"),
            key=_path(fields, "key"),
            namespace=fields.text("namespace", "sallyport", max_length=64),
            timeout=fields.duration("timeout", "500ms"),
            connections=fields.integer("connections", 8, least=1, most=64),
        )
        fields.finish()
        if (settings.certificate is None) != (settings.key is None):
            raise fields.fault("certificate", "name both certificate and key, or none")
        if settings.tls and settings.ca is None:
            raise fields.fault("ca", "name the CA that the server's certificate must chain to")
        if not 0 < settings.timeout <= 10:
            raise fields.fault("timeout", "expected more than 0 and at most 10s")
        if settings.user and settings.password_file is None:
            raise fields.fault("user", "a user needs a password_file")
        return settings

    @property
    def place(self) -> str:
        """Where the server is, to be shown."""
        return str(self.path) if self.path is not None else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class HotStateSettings:
    """In this process: how many entries and bytes it may hold. Or, with `redis`, at a server."""

    max_entries: int = 200_000
    max_bytes: int = 256 << 20
    redis: RedisSettings | None = None

    @classmethod
    def parse(cls, fields: Fields) -> HotStateSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            max_entries=fields.integer("max_entries", 200_000, least=1),
            max_bytes=fields.size("max_size", "256MiB"),
            redis=RedisSettings.parse(fields.section("redis")) if fields.has("redis") else None,
        )
        fields.finish()
        return settings


def _checked_url(fields: Fields) -> SplitResult:
    text = fields.text("url", max_length=512)
    try:
        url = urlsplit(text)
        is_whole = bool(url.path) and not url.netloc if url.scheme == "unix" else bool(url.hostname and url.port != 0)
    except ValueError:
        is_whole = False
    if not is_whole or url.scheme not in _SCHEMES or url.query or url.fragment:
        raise fields.fault("url", "expected unix:///path, rediss://host:port or redis://localhost:port")
    if "@" in url.netloc:
        raise fields.fault("url", "a password does not stand in settings: name a password_file")
    if url.scheme != "unix" and url.path not in ("", "/"):
        raise fields.fault("url", "the database's number is the setting `database`")
    if url.scheme == "redis" and url.hostname not in _LOOPBACK:
        raise fields.fault("url", "only a server on this machine is reached without TLS: use rediss://")
    return url


def _path(fields: Fields, name: str) -> Path | None:
    return Path(fields.text(name)) if fields.has(name) else None
