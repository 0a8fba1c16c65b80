"""`sallyport agent run` on nodes in network namespaces: their tunnels, local ports and services."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agent.control import ask
from foundation.faults import Fault
from tests.support.netns.clocks import WallClock
from tests.support.netns.faults import stopped
from tests.support.netns.fleet import Fleet, GatewayMachine, NodeMachine
from tests.support.netns.network import Host
from tests.support.netns.services import Conversation, echoes
from tests.support.processes import Running, wait_until

LOOPBACK = "127.0.0.1"
TABLE = ("inet", "sallyport")  # of nftables: the agent's


@dataclass(frozen=True)
class Port:
    """A local port of a node, and what it leads to."""

    number: int
    route: str
    target: str
    protocol: str = "tcp"


class AgentMachine:
    """A node that has enrolled, and its agent. `offers` are ports of its loopback by the name of their service, as
    `tcp://…` or `udp://…`."""

    def __init__(
        self,
        site: Fleet,
        node: NodeMachine,
        ports: Sequence[Port] = (),
        offers: Mapping[str, str] = MappingProxyType({}),
        gateways: Sequence[GatewayMachine] = (),
    ) -> None:
        """`gateways` is the order in which they are asked for streams; that of the site when left out."""
        self.site, self.node = site, node
        self.process: Running | None = None
        self._write_settings(ports, offers, gateways or site.gateways)

    @property
    def host(self) -> Host:
        return self.node.host

    @property
    def clock(self) -> WallClock:
        """Its machine's."""
        return self.site.clocks[self.host.name]

    @property
    def control(self) -> Path:
        return self.node.node.settings.control

    def launch(self) -> None:
        """Without waiting for anything."""
        words = [sys.executable, "-m", "sallyport", "agent", "run", "--config", str(self.node.node.config)]
        with self.host.inside():
            self.process = Running(words, self.node.node.folder / "agent.log", self.clock.environment)

    def start(self) -> None:
        """Until its tunnels stand, and its firewall."""
        self.launch()
        assert self.process is not None
        self.process.until(self.is_up, "the agent's tunnels")
        self.process.until(self.is_walled, "the agent's firewall")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    # --- how it stands ------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What it says of itself; nothing while it is not there."""
        try:
            return ask(self.control)
        except Fault:
            return {}

    def streams(self) -> dict[str, int]:
        """How many streams each tunnel that stands carries, by the gateway's name."""
        names = {str(gateway.gateway.address): gateway.name for gateway in self.site.gateways}
        rows = self.status().get("tunnels", ())
        return {names[row["gateway"]]: row["streams"] for row in rows if row["up"]}

    def is_up_at(self) -> set[str]:
        """The gateways to which it has a tunnel, by their names."""
        return set(self.streams())

    def told(self) -> str:
        """Its log."""
        assert self.process is not None
        return self.process.told()

    def is_up(self, at: Sequence[GatewayMachine] = ()) -> bool:
        """Whether it has a tunnel to each of these gateways, to all when none is named."""
        return {gateway.name for gateway in at or self.site.gateways} <= self.streams().keys()

    @property
    def attested_until(self) -> float:
        """In seconds since the Unix epoch; 0 while it is not there."""
        return float(self.status().get("attested_until", 0))

    def has_revision(self, number: int) -> bool:
        """Whether it holds this revision, or a later one."""
        return bool(self.status().get("floor", 0) >= number)

    def is_walled(self) -> bool:
        return self.status().get("firewall") == "in_force"

    @contextlib.contextmanager
    def unwalled(self) -> Iterator[None]:
        """Its owner stops the agent and takes the firewall away; when the agent goes on, it mends that."""
        assert self.process is not None
        with stopped(self.process):
            self.host.run("nft", "delete", "table", *TABLE)
            yield
        wait_until(self.has_wall, f"the firewall of {self.node.name} to be mended")

    def has_wall(self) -> bool:
        return " ".join(TABLE) in self.host.run("nft", "list", "tables")

    def comes_up(self, at: Sequence[GatewayMachine] = ()) -> None:
        wait_until(lambda: self.is_up(at), f"the tunnels of {self.node.name}")

    # --- using it -----------------------------------------------------------------------------------

    def talk(self, port: Port) -> Conversation:
        """A connection by its local port. Raises `OSError`."""
        return Conversation(self.host, LOOPBACK, port.number)

    def reaches(self, port: Port) -> bool:
        return echoes(self.host, LOOPBACK, port.number, port.protocol)

    def _write_settings(
        self, ports: Sequence[Port], offers: Mapping[str, str], gateways: Sequence[GatewayMachine]
    ) -> None:
        addresses = ", ".join(f'"{gateway.gateway.address}"' for gateway in gateways)
        lines = [f"gateways = [{addresses}]", "through_tunnels = true"]
        lines += ["[agent.firewall]", 'interval = "1s"']
        lines += ["[agent.tunnel]", 'connect = "3s"', 'ping = "1s"', 'silence = "3s"']
        for port in ports:
            lines += ["[[agent.port]]", f'listen = "{LOOPBACK}:{port.number}"', f'route = "{port.route}"']
            lines += [f'target = "{port.target}"', f'protocol = "{port.protocol}"']
        lines += ["[agent.offers]", *(f'{name} = "{where}"' for name, where in offers.items())]
        config = self.node.node.config
        config.write_text(config.read_text() + "\n".join(lines) + "\n")
