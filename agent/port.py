"""What a local port is told, and what it says when it refuses."""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.channel import Refusal
from agent.settings import Address
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import check_name
from foundation.wire.streams import PROTOCOLS, StreamRequest

_log = logging.getLogger("sallyport.agent.ports")
_UNIX = "unix:"
_LOG_EVERY = 10.0
MOST_PORTS = 256


@dataclass(frozen=True, slots=True)
class PortSettings:
    """One of `[[agent.port]]`. `listen` is `host:port` or `unix:/path`; `connections` how many there may be at once,
    of UDP how many programs. `idle` ends what a program of UDP has not used for so many seconds."""

    listen: str
    route: str
    target: str
    protocol: str = "tcp"
    connections: int = 256
    idle: float = 60.0

    @classmethod
    def parse(cls, fields: Fields) -> PortSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        port = cls(
            fields.text("listen", max_length=300),
            _name(fields, "route"),
            _name(fields, "target"),
            fields.one_of("protocol", PROTOCOLS, "tcp"),
            fields.integer("connections", 256, least=1, most=4096),
            fields.duration("idle", "60s"),
        )
        allow_remote = fields.flag("allow_remote", False)
        if not port.idle:
            raise fields.fault("idle", "expected a duration above zero")
        if port.path is not None:
            if port.protocol == "udp":
                raise fields.fault("listen", "a Unix socket is of protocol tcp")
        elif not allow_remote and not _is_loopback(Address.parse(port.listen, f"{fields.path}.listen").host):
            raise fields.fault("listen", "others could use it: listen on loopback, or say `allow_remote = true`")
        fields.finish()
        return port

    @property
    def path(self) -> Path | None:
        """Where it is a Unix socket."""
        return Path(self.listen.removeprefix(_UNIX)) if self.listen.startswith(_UNIX) else None

    @property
    def address(self) -> Address:
        """Where it is none."""
        return Address.parse(self.listen, "agent.port.listen")

    @property
    def request(self) -> StreamRequest:
        return StreamRequest(self.route, self.target, self.protocol)


class Refusals:
    """Counts refusals of one port, and says in the log now and then why."""

    def __init__(self, listen: str, request: StreamRequest, clock: Clock) -> None:
        self.count = 0
        self._listen = listen
        self._request = request
        self._clock = clock
        self._quiet_until = 0.0

    def tell(self, fault: Fault) -> None:
        self.count += 1
        now = self._clock.monotonic()
        if now < self._quiet_until:
            return
        self._quiet_until = now + _LOG_EVERY
        _log.warning(
            "%s: no stream to %s over %s: %s",
            self._listen,
            self._request.target,
            self._request.route,
            fault,
            extra={"decision": fault.decision if isinstance(fault, Refusal) else "", "refused": self.count},
        )


def described(settings: PortSettings) -> dict[str, Any]:
    """Which port it is, for people and programs."""
    return {name: getattr(settings, name) for name in ("listen", "protocol", "route", "target")}


def _name(fields: Fields, name: str) -> str:
    return check_name(fields.text(name, max_length=63), field=f"{fields.path}.{name}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
