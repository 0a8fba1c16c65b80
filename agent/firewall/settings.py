"""What a machine says of its firewall."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.firewall.nft import NFT
from agent.firewall.wall import MAX_EXCEPTIONS, MAX_NETWORKS, Network, Wall, parsed
from foundation.faults import Fault
from foundation.fields import Fields

_BRIEFEST, _LONGEST = 1.0, 3600.0


@dataclass(frozen=True, slots=True)
class FirewallSettings:
    """Section `[agent.firewall]`. `interval`, in seconds: how often the table is compared with what it should be.
    `allow`: addresses inside the nodes' networks that are let through both ways, such as name servers. `networks`: of
    nodes, beside those that policy names. `nft`: the tool."""

    enabled: bool = True
    interval: float = 10.0
    allow: tuple[Network, ...] = ()
    networks: tuple[Network, ...] = ()
    nft: Path = NFT

    @classmethod
    def parse(cls, fields: Fields) -> FirewallSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        interval = fields.duration("interval", "10s")
        if not _BRIEFEST <= interval <= _LONGEST:
            raise fields.fault("interval", "expected 1s to 1h")
        settings = cls(
            enabled=fields.flag("enabled", True),
            interval=interval,
            allow=_networks(fields, "allow", MAX_EXCEPTIONS),
            networks=_networks(fields, "networks", MAX_NETWORKS),
            nft=Path(fields.text("nft", str(NFT))),
        )
        fields.finish()
        try:
            Wall(settings.networks, allow=settings.allow)
        except Fault as fault:
            raise fields.fault("networks", fault.detail) from None
        return settings


def _networks(fields: Fields, name: str, most: int) -> tuple[Network, ...]:
    try:
        return parsed(fields.texts(name, (), most=most))
    except Fault as fault:
        raise fields.fault(name, fault.detail) from None
