"""Section `[gateway.broker]`: how much of tunnels and streams a gateway takes."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.fields import Fields
from foundation.wire.tunnel import STREAMS


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Times in seconds. enabled: whether nodes may hold tunnels here. streams: those that one node may have open over
    one tunnel, and that may lead to it. silence: how long a tunnel may be silent; agents ask for a sign of life more
    often than that. answer: how long the target may take to answer. relay: the address (`host:port`) at which other
    gateways reach this one's tunnels; empty: they do not. authority: the address (`host:port`) of the authority's API,
    to which nodes may get through their tunnels; empty: they go there themselves."""

    enabled: bool = True
    streams: int = STREAMS
    silence: float = 45.0
    answer: float = 10.0
    relay: str = ""
    authority: str = ""

    @classmethod
    def parse(cls, fields: Fields) -> BrokerSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            enabled=fields.flag("enabled", True),
            streams=fields.integer("streams", STREAMS, least=1, most=1 << 16),
            silence=fields.duration("silence", "45s"),
            answer=fields.duration("answer", "10s"),
            relay=_address(fields, "relay"),
            authority=_address(fields, "authority"),
        )
        fields.finish()
        return settings


def _address(fields: Fields, name: str) -> str:
    """`host:port`, or empty. Raises `Fault(SETTING_INVALID)`."""
    text = fields.text(name, "", max_length=300)
    host, _, port = text.rpartition(":")
    if text and (not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536):
        raise fields.fault(name, "expected host:port")
    return text
