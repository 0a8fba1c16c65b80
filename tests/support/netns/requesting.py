"""Who tries what nobody may do at gateways and at the authority."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from foundation.tls import client_context
from tests.support.certificates import SmallAuthority
from tests.support.netns.calls import Call, Trespasser, outcome
from tests.support.netns.fleet import PATH_PATIENCE, VERSION, WRITE, Fleet, GatewayMachine, NodeMachine
from tests.support.system import Client

_INVENTORY = Call("GET", "/v1/inventory")


def trespassers_at(site: Fleet, node: NodeMachine) -> list[Trespasser]:
    """A revoked node, one without the grant, and a stranger, at every gateway; a node at the authority's API."""
    revoked = site.add_node("revoked", "node-c")
    site.revoke(revoked)
    site.refuses(revoked, "identity_revoked")
    ask_as_a_stranger = _stranger(site, node)
    found = [Trespasser("a node at the authority's API", partial(_ask_the_authority, site, node))]
    for gateway in site.gateways:
        found += [
            Trespasser(f"a revoked node at {gateway.name}", partial(revoked.ask, gateway)),
            Trespasser(f"a node without the grant at {gateway.name}", partial(node.ask, gateway, WRITE)),
            Trespasser(f"a stranger at {gateway.name}", partial(ask_as_a_stranger, gateway)),
        ]
    return found


def _stranger(site: Fleet, node: NodeMachine) -> Callable[[GatewayMachine], str]:
    """Somebody with a certificate for `node`, by another authority."""
    pair = SmallAuthority(site.folder).client(node.node.id)

    def ask(gateway: GatewayMachine) -> str:
        address = gateway.gateway.address
        with node.host.inside():
            context = client_context(site.authority.root, pair=pair)
            return outcome(lambda: Client(context, address.port, address.host, PATH_PATIENCE), VERSION)

    return ask


def _ask_the_authority(site: Fleet, node: NodeMachine) -> str:
    authority = site.authority
    return outcome(lambda: node.connect_to(authority.host, authority.ports["api"]), _INVENTORY)
