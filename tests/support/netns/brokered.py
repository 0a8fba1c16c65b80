"""Nodes that speak with each other through gateways: routes and grants for an echo of node-b, and who uses it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from deploy.demo.tpm_maker import TpmMaker
from tests.support.commands import CommandServer
from tests.support.netns.agents import LOOPBACK, AgentMachine, Port
from tests.support.netns.calls import HUNG_UP, SERVED, UNREACHABLE, Trespasser
from tests.support.netns.fleet import Fleet, fleet
from tests.support.netns.network import Host
from tests.support.netns.services import Echo, echoes

SERVICE = 7000
ECHO, ECHO_UDP = Port(15000, "echo", "node-b"), Port(15001, "echo-udp", "node-b", "udp")
UNGRANTED, UNOFFERED = Port(15002, "ungranted", "node-b"), Port(15003, "unoffered", "node-b")
LEAVING = Port(15004, "echo", "leaving")
PORTS = (ECHO, ECHO_UDP, UNGRANTED, UNOFFERED, LEAVING)
OFFERS = {"echo": f"tcp://{LOOPBACK}:{SERVICE}", "echo-udp": f"udp://{LOOPBACK}:{SERVICE}"}
_ROUTES = """
  - {name: echo, type: stream, service: echo, kinds: [node]}
  - {name: echo-udp, type: stream, service: echo-udp, protocol: udp, kinds: [node]}
  - {name: ungranted, type: stream, service: echo, kinds: [node]}
  - {name: unoffered, type: stream, service: other, kinds: [node]}
"""
_GRANTS = """
  - {id: echo, role: edge-agent, route: echo, expires: 2027-12-31}
  - {id: echo-udp, role: edge-agent, route: echo-udp, expires: 2027-12-31}
  - {id: unoffered, role: edge-agent, route: unoffered, expires: 2027-12-31}
"""


@contextlib.contextmanager
def brokering_fleet(folder: Path, maker: TpmMaker, commands: CommandServer, redis: Path) -> Iterator[Fleet]:
    """One whose policy has these routes, and says where nodes live."""
    with fleet(folder, maker, commands, redis) as made:
        made.authority.add_policy(routes=_ROUTES, grants=_GRANTS)
        made.name_networks()
        made.publish()
        yield made


@contextlib.contextmanager
def serving_node(site: Fleet) -> Iterator[tuple[AgentMachine, Echo]]:
    """node-b, and its service, which listens on every address: nothing but firewalls keeps others from it."""
    agent = AgentMachine(site, site.add_node("node-b", "node-b"), offers=OFFERS)
    with Echo(site.network["node-b"], SERVICE) as echo, running(agent):
        yield agent, echo


@contextlib.contextmanager
def calling_node(site: Fleet) -> Iterator[AgentMachine]:
    """node-a, which has all the ports."""
    with running(AgentMachine(site, site.add_node("node-a", "node-a"), PORTS)) as agent:
        yield agent


@contextlib.contextmanager
def running(agent: AgentMachine) -> Iterator[AgentMachine]:
    try:
        agent.start()
        yield agent
    finally:
        agent.stop()


def trespassers_between(a: AgentMachine, b: AgentMachine) -> list[Trespasser]:
    """Who tries to get from `a` to `b` where policy has no way, and where there is no gateway."""
    return [
        Trespasser("a node on a route without a grant", partial(tried, a, UNGRANTED)),
        Trespasser("a node that asks for what is not offered", partial(tried, a, UNOFFERED)),
        *(Trespasser(f"a node at {each} itself", partial(tried_directly, a.host, each)) for each in b.host.addresses),
    ]


def tried(agent: AgentMachine, port: Port) -> str:
    """How a stream by this port ends: its own agent lets the program connect, and hangs up once it was refused."""
    try:
        with agent.talk(port) as talk:
            return SERVED if talk.says(b"let me in") else HUNG_UP
    except OSError:
        return UNREACHABLE


def tried_directly(source: Host, address: str) -> str:
    """From node to node, past all gateways."""
    return SERVED if any(direct(source, address)) else "blocked"


def direct(source: Host, address: str) -> list[bool]:
    """Whether the echo answers there, by TCP and by UDP."""
    return [echoes(source, address, SERVICE, protocol, 0.5) for protocol in ("tcp", "udp")]
