"""Requests of nodes to a control plane, where everything goes wrong: links, gateways, the authority, clocks.

While it does, trespassers try what policy forbids, over and over. After every fault two things hold: none of them was
ever served, and the node that may be served is served again, with nobody's help.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from deploy.demo.tpm_maker import TpmMaker
from tests.support.commands import CommandServer
from tests.support.netns.calls import HUNG_UP, SERVED, Trespasser, Trespassers, trying
from tests.support.netns.faults import cut, delayed, lossy, narrow, rewound, stopped, unplugged
from tests.support.netns.fleet import Fleet, NodeMachine, fleet
from tests.support.netns.requesting import trespassers_at
from tests.support.processes import wait_until

MINUTE = 60


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tpm_maker: TpmMaker, commands: CommandServer) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("fleet"), tpm_maker, commands) as made:
        yield made


@pytest.fixture(scope="module")
def node(site: Fleet) -> NodeMachine:
    """A node that is served whenever anything is."""
    return site.add_node("node-a", "node-a")


@pytest.fixture(scope="module")
def trespassers(site: Fleet, node: NodeMachine) -> Iterator[Trespassers]:
    with Trespassers(*trespassers_at(site, node)) as trying_all_the_time:
        yield trying_all_the_time


@pytest.fixture(autouse=True)
def _safe_and_back(site: Fleet, node: NodeMachine, trespassers: Trespassers) -> Iterator[None]:
    """What holds after every scenario."""
    yield
    site.serves(node)
    trespassers.are_refused()


def test_who_succeeds_at_what_nobody_may_do_is_noticed(site: Fleet, node: NodeMachine) -> None:
    allowed = Trespasser("somebody who may", lambda: node.ask(site.gateways[0]))
    with pytest.raises(AssertionError, match=r"served: .*somebody who may"), trying(allowed):
        pass


def test_a_revocation_cuts_on_every_gateway(site: Fleet) -> None:
    node = site.add_node("cut", "node-b")
    watches = [node.watch(gateway) for gateway in site.gateways]
    assert site.revoke(node).json["gateways"]["unacknowledged"] == []
    assert [watch.ending() for watch in watches] == ["cut", "cut"]
    site.refuses(node, "identity_revoked")


def test_a_killed_gateway_costs_only_what_it_carried(site: Fleet, node: NodeMachine) -> None:
    first, second = site.gateways
    lost, kept = node.watch(first), node.watch(second)
    first.kill()
    assert lost.ending() == "cut"
    assert node.is_served(second)
    assert not node.is_served(first)
    revoked = site.add_node("cut-meanwhile", "node-b", by=[second])
    watch = revoked.watch(second)
    site.revoke(revoked)
    assert watch.ending() == "cut"
    first.start()
    site.serves(node, [first])
    site.refuses(revoked, "identity_revoked")
    site.write()
    assert kept.line()["result"]["events"], "the other gateway's stream never noticed"


def test_a_killed_worker_is_replaced(site: Fleet, node: NodeMachine) -> None:
    gateway = site.gateways[1]
    before = gateway.gateway.workers
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(gateway.gateway.workers - before) == len(before), "other workers")
    site.serves(node, [gateway])


def test_a_stopped_gateway_is_told_of_and_follows_once_it_goes_on(site: Fleet) -> None:
    first, second = site.gateways
    node = site.add_node("cut-late", "node-b")
    watches = {gateway.name: node.watch(gateway) for gateway in site.gateways}
    with stopped(first.process):
        reach = site.revoke(node).json["gateways"]
        assert [row["id"].rpartition("/")[2] for row in reach["unacknowledged"]] == [first.name]
        assert watches[second.name].ending() == "cut"
    assert watches[first.name].ending() == "cut"
    site.refuses(node, "identity_revoked")


def test_without_the_authority_gateways_serve_until_their_facts_are_stale(site: Fleet, node: NodeMachine) -> None:
    revoked = site.add_node("unheard-of", "node-b")
    with cut(site.network, site.network["authority"]):
        reach = site.revoke(revoked).json["gateways"]
        assert len(reach["unacknowledged"]) == 2
        assert [node.ask(gateway) for gateway in site.gateways] == [SERVED, SERVED]
        open_still = revoked.watch(site.gateways[0])
        site.let_pass(31)
        assert open_still.ending() == "cut", "streams end with the facts that they rest on"
        for each in (node, revoked):
            site.refuses(each, "staleness_exceeded")
    site.serves(node)
    site.refuses(revoked, "identity_revoked")


def test_a_gateway_that_is_killed_without_its_authority_has_forgotten_nothing(site: Fleet, node: NodeMachine) -> None:
    gateway = site.gateways[0]
    revoked = site.add_node("remembered", "node-b")
    site.revoke(revoked)
    site.refuses(revoked, "identity_revoked")
    with cut(site.network, site.network["authority"]):
        gateway.kill()
        gateway.start()
        site.serves(node, [gateway])
        site.refuses(revoked, "identity_revoked", [gateway])


def test_a_killed_authority_comes_back_with_all_that_it_said(site: Fleet, node: NodeMachine) -> None:
    revoked = site.add_node("on-record", "node-b")
    site.revoke(revoked)
    site.kill_authority()
    site.refuses(revoked, "identity_revoked")
    site.serves(node)
    site.start_authority()
    assert "identity_revoked" in revoked.run("renew", expect=1).err
    heard_again = site.add_node("new", "node-b")
    site.revoke(heard_again)
    site.refuses(heard_again, "identity_revoked")


def test_a_killed_control_plane_is_found_again(site: Fleet, node: NodeMachine) -> None:
    watch = node.watch(site.gateways[0])
    site.store.kill()
    assert watch.ending() == "cut"
    assert not node.is_served(site.gateways[0])
    site.start_store()


def test_a_link_that_loses_packets_costs_time_and_nothing_else(site: Fleet, node: NodeMachine) -> None:
    revoked = site.add_node("cut-with-loss", "node-b")
    watch = revoked.watch(site.gateways[0])
    with lossy(site.network, site.network["gw-1"], 20), lossy(site.network, node.host, 10):
        site.serves(node)
        site.revoke(revoked)
        assert watch.ending() == "cut"
        site.refuses(revoked, "identity_revoked")


def test_a_narrow_and_slow_link_costs_time_and_nothing_else(site: Fleet, node: NodeMachine) -> None:
    revoked = site.add_node("cut-slowly", "node-b")
    watch = revoked.watch(site.gateways[0])
    far = site.network["gw-1"]
    with delayed(site.network, far, 0.1, site.folder), narrow(site.network, far, "512kbit"):
        site.serves(node)
        site.revoke(revoked)
        assert watch.ending() == "cut"
        site.refuses(revoked, "identity_revoked")


def test_a_pulled_link_ends_what_it_carried_and_nothing_more(site: Fleet, node: NodeMachine) -> None:
    with unplugged(site.network, site.network["gw-2"]):
        assert node.is_served(site.gateways[0])
        assert not node.is_served(site.gateways[1])
    with cut(site.network, site.network["store"]):
        assert not node.is_served(site.gateways[0])
    with cut(site.network, node.host, site.network["gw-1"]):
        assert node.is_served(site.gateways[1])
        assert not node.is_served(site.gateways[0])


def test_a_clock_that_is_set_back_brings_no_trust_back(site: Fleet, node: NodeMachine) -> None:
    """The certificate of `expired` ends an hour after its issue, that of `node` an hour after its renewal. Where the
    wall clock is right, TLS refuses the one; where it is set back, TLS lets it pass, and trust time refuses it."""
    expired = site.add_node("expired", "node-b")
    gateway, others = site.gateways[0], site.gateways[1:]
    site.let_pass(40 * MINUTE)
    node.run("renew")
    site.serves(node)
    site.let_pass(40 * MINUTE)
    site.refuses(expired, HUNG_UP)
    for each in site.gateways:  # facts of eighty minutes ago would be used by none
        each.hears()
    gateway.keeps_trust_time()
    with trying(Trespasser("an expired node", lambda: expired.ask(gateway))):
        with rewound(gateway.clock, 35 * MINUTE):
            site.refuses(expired, "certificate_expired", [gateway])
            site.serves(node, [gateway])
            # Again when it starts anew, with only its own disk to tell it the time.
            with cut(site.network, site.network["authority"]):
                gateway.kill()
                gateway.start()
                site.serves(node, [gateway, *others])
                assert expired.ask(gateway) == "certificate_expired"
        with rewound(site.clocks["authority"], 35 * MINUTE):
            assert "certificate_expired" in expired.run("renew", expect=1).err
    site.refuses(expired, HUNG_UP)


def test_a_copied_disk_is_worth_nothing_without_its_tpm(site: Fleet, node: NodeMachine) -> None:
    thief = site.copy_disk(node, "node-c")
    for words in (("call", "GET", "/version"), ("renew",)):
        assert "tls_key_unusable" in thief.run(*words, expect=1).err
    assert [thief.ask(gateway) for gateway in site.gateways] == ["tls_key_unusable"] * 2
    token = node.node.token()
    told = thief.run("enrol", "--token-file", str(token), expect=1).err
    assert told.split(":")[0] in {"ek_changed", "enrolment_refused"}
    assert node.is_served(site.gateways[0]), "its owner is served on"


def test_a_revoked_node_comes_back_under_no_name(site: Fleet) -> None:
    revoked = site.add_node("leaver", "node-c")
    unused = revoked.node.token()
    site.revoke(revoked)
    site.refuses(revoked, "identity_revoked")
    told = [revoked.run("enrol", "--token-file", str(unused), expect=1).err, revoked.run("renew", expect=1).err]
    other = site.same_tpm("leaver-again", revoked)
    told.append(other.enrol(expect=1).err)
    site.kill_authority()
    site.start_authority()
    told += [revoked.run("renew", expect=1).err, other.enrol(expect=1).err]
    found = [each.split(":")[0] for each in told]
    assert found[1:] == ["identity_revoked", "ek_taken", "identity_revoked", "ek_taken"]
    assert found[0] in {"inventory_state", "token_used", "enrolment_refused"}
    site.refuses(revoked, "identity_revoked")
