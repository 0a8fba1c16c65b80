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
    gateways reach this one's tunnels; empty: they do not."""

    enabled: bool = True
    streams: int = STREAMS
    silence: float = 45.0
    answer: float = 10.0
    relay: str = ""

    @classmethod
    def parse(cls, fields: Fields) -> BrokerSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            enabled=fields.flag("enabled", True),
            streams=fields.integer("streams", STREAMS, least=1, most=1 << 16),
            silence=fields.duration("silence", "45s"),
            answer=fields.duration("answer", "10s"),
            relay=fields.text("relay", "", max_length=300),
        )
        fields.finish()
        return settings
