"""All that `sallyport agent run` is told: the section `[agent]` with its tables, each read by its part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from agent.attest import AttestationSettings
from agent.bundle import BundleSettings
from agent.firewall.settings import FirewallSettings
from agent.health import HealthSettings
from agent.local import LocalSettings
from agent.outbox import OutboxSettings
from agent.port import MOST_PORTS, PortSettings
from agent.services import Service, ServingSettings, parse_offers
from agent.settings import Address, AgentSettings, agent_fields, agent_section
from agent.supervised import ServiceSettings as Supervised
from agent.supervised import parse_services as parse_supervised
from agent.tunnel import TunnelSettings
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.wire.streams import AUTHORITY_ROUTE

_AUTHORITY = "authority.sock"  # in the node's folder
_LIVE = frozenset({"gateways", "ports", "offers"})


@dataclass(frozen=True)
class RunSettings:
    """`node` is what the one-shot commands read too. `drain` is how long open streams may go on once the agent was told
    to stop, in seconds. With `through_tunnels` the agent calls the authority over its tunnels, so that nothing else
    leaves the node; its gateways then have to name the authority (`[gateway.broker] authority`)."""

    node: AgentSettings = field(default_factory=AgentSettings)
    gateways: tuple[Address, ...] = ()
    drain: float = 10.0
    ports: tuple[PortSettings, ...] = ()
    offers: Mapping[str, Service] = field(default_factory=dict)
    tunnel: TunnelSettings = field(default_factory=TunnelSettings)
    serving: ServingSettings = field(default_factory=ServingSettings)
    reattestation: AttestationSettings = field(default_factory=AttestationSettings)
    bundle: BundleSettings = field(default_factory=BundleSettings)
    outbox: OutboxSettings = field(default_factory=OutboxSettings)
    local: LocalSettings = field(default_factory=LocalSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    firewall: FirewallSettings = field(default_factory=FirewallSettings)
    supervised: tuple[Supervised, ...] = ()

    @classmethod
    def parse(cls, fields: Fields) -> RunSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)` naming the setting."""
        node = AgentSettings.read(fields)
        ports = fields.each("port", PortSettings.parse, most=MOST_PORTS, optional=True)
        if fields.flag("through_tunnels", False) and node.renewal is not None:
            own = node.directory / _AUTHORITY
            node = replace(node, renewal=replace(node.renewal, via=own))
            ports += (PortSettings(f"unix:{own}", AUTHORITY_ROUTE, "authority", connections=8),)
        settings = cls(
            node=replace(node, gateways=()),
            gateways=node.gateways or ((node.gateway,) if node.gateway else ()),
            drain=fields.duration("drain", "10s"),
            ports=ports,
            offers=parse_offers(fields),
            tunnel=TunnelSettings.parse(fields.section("tunnel", optional=True)),
            serving=ServingSettings.parse(fields.section("serving", optional=True)),
            reattestation=AttestationSettings.parse(fields.section("reattestation", optional=True)),
            bundle=BundleSettings.parse(fields.section("bundle", optional=True)),
            outbox=OutboxSettings.parse(fields.section("outbox", optional=True)),
            local=LocalSettings.parse(fields.section("local", optional=True)),
            health=HealthSettings.parse(fields.section("health", optional=True)),
            firewall=FirewallSettings.parse(fields.section("firewall", optional=True)),
            supervised=parse_supervised(fields),
        )
        fields.finish()
        return settings

    @classmethod
    def load(cls, path: Path) -> RunSettings:
        """Raises `Fault(FILE_UNREADABLE | SETTING_INVALID | SETTING_UNKNOWN)`."""
        return cls.parse(agent_fields(agent_section(path)))


def check_live(old: RunSettings, new: RunSettings) -> None:
    """That all that differs can change while the agent runs. Raises `Fault(SETTING_FIXED)` naming what cannot."""
    for each in fields(RunSettings):
        if each.name not in _LIVE and getattr(old, each.name) != getattr(new, each.name):
            raise Fault(Reason.SETTING_FIXED, "restart the agent to change it", field=f"agent.{each.name}")
