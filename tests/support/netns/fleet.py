"""A whole Sallyport with each of its machines in a network namespace of its own, every one with its own wall clock.

    node-a  node-b  node-c   gw-1  gw-2   authority   store
       └───────┴───────┴───────┴──┬──┴────────┴─────────┘
                                router

Programs are those that users start, with the settings that users write. gw-1 is reached by IPv4, gw-2 by IPv6.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from deploy.demo.emulated_tpm import manufacture
from deploy.demo.tpm_maker import TpmMaker
from tests.support.commands import CommandServer, Done
from tests.support.netns.calls import SERVED, Call, outcome
from tests.support.netns.clocks import WallClock, build_library
from tests.support.netns.network import Host, Network, network
from tests.support.peers import Etcd
from tests.support.processes import PATIENCE, Running, wait_until
from tests.support.split import Gateway, only_authority
from tests.support.system import Client, Node, OpenAnswer, System

NODES, GATEWAYS = ("node-a", "node-b", "node-c"), ("gw-1", "gw-2")
PUT = json.dumps({"key": "bmV0bnM=", "value": "aGVsbG8="}).encode()
PATH_PATIENCE = 3.0  # seconds until one call gives up on the network


FRESH = 15.0  # seconds: heartbeats come every five
VERSION, WRITE = Call(), Call("POST", "/v3/kv/put", PUT)


class GatewayMachine:
    """A gateway on its host."""

    def __init__(self, host: Host, gateway: Gateway, clock: WallClock) -> None:
        self.host, self.gateway, self.clock = host, gateway, clock

    @property
    def name(self) -> str:
        return self.gateway.name

    def start(self) -> None:
        """Until it is ready."""
        with self.host.inside():
            self.gateway.start()

    @property
    def process(self) -> Running:
        assert self.gateway.process is not None
        return self.gateway.process

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP to the main process and its workers: its connections stand, and it says nothing."""
        pids = [self.process.pid, *self.gateway.workers]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def enforces(self, revision: int) -> bool:
        return bool(self.gateway.shown()["numbers"]["policy"] == revision)

    def hears(self) -> None:
        """Wait until the authority's word has come by this time: a link that was pulled before is dialled again in
        moments, not at once."""
        wait_until(lambda: self.gateway.shown()["heartbeat_age_seconds"] < FRESH, f"{self.name} to hear the authority")

    def keeps_trust_time(self) -> None:
        """Wait until its disk knows what time it is by now."""
        now, path = time.time() + self.clock.ahead, self.gateway.state / "trust-time"
        wait_until(lambda: path.exists() and float(path.read_text()) >= now, f"{self.name} to keep the time")

    def kill(self) -> None:
        """SIGKILL to the main process and to all of its workers, as when the machine loses its power."""
        self.gateway.kill()
        self.host.end_inside()


class NodeMachine:
    """A node on its host, with its TPM there, which one thread at a time may use: `turn`."""

    def __init__(self, host: Host, node: Node, turn: threading.Lock | None = None) -> None:
        self.host, self.node, self.turn = host, node, turn or threading.Lock()

    @property
    def name(self) -> str:
        return self.node.name

    def enrol(self, expect: int = 0) -> Done:
        with self.turn, self.host.inside():
            return self.node.enrol(expect)

    def run(self, *words: str, expect: int = 0) -> Done:
        """`sallyport node …` on this machine."""
        with self.turn, self.host.inside():
            return self.node.run(*words, expect=expect)

    def connect(self, to: GatewayMachine) -> Client:
        return self.connect_to(to.gateway.host, to.gateway.ports["gateway"])

    def connect_to(self, host: str, port: int) -> Client:
        with self.turn, self.host.inside():
            return self.node.connect_to(host, port, PATH_PATIENCE)

    def ask(self, to: GatewayMachine, call: Call = VERSION) -> str:
        """How one call ends: `served`, `unreachable`, or the reason of its refusal."""
        return outcome(lambda: self.connect(to), call)

    def is_served(self, by: GatewayMachine) -> bool:
        return self.ask(by) == SERVED

    def is_refused(self, by: GatewayMachine, reason: str) -> bool:
        return self.ask(by) == reason

    def watch(self, to: GatewayMachine) -> OpenAnswer:
        """A stream that stays open."""
        return self.connect(to).watch("bmV0bnM=")


class Fleet:
    """What runs, and on which machines. `redis` is the socket of a Redis server that the gateways share; without it
    they broker alone. Use `fleet`."""

    def __init__(
        self,
        net: Network,
        folder: Path,
        commands: CommandServer,
        maker: TpmMaker,
        library: Path,
        redis: Path | None = None,
    ) -> None:
        self.network, self.folder, self.maker, self.redis = net, folder, maker, redis
        self.clocks = {name: WallClock(folder / "clocks" / name, library) for name in (*NODES, *GATEWAYS, "authority")}
        host = net["authority"]
        self.store = Etcd(folder, net["store"].ipv4)
        self.authority = System(
            folder / "authority",
            self.store.url,
            commands,
            maker,
            listens=host.ipv4,
            host=host.ipv4,
            environment=self.clocks["authority"].environment,
        )
        self.gateways: list[GatewayMachine] = []
        self._stack = contextlib.ExitStack()

    # --- its beginning ------------------------------------------------------------------------------

    def start(self) -> None:
        self.start_store()
        self.authority.initialise()
        only_authority(self.authority)
        self.start_authority()
        for name in GATEWAYS:
            self.gateways.append(self._add_gateway(name))

    def start_store(self) -> None:
        """The control plane, until it answers."""
        with self.network["store"].inside():
            self.store.start()

    def start_authority(self) -> None:
        """Until it is ready."""
        with self.network["authority"].inside():
            self.authority.start()

    def kill_authority(self) -> None:
        self.authority.kill()
        self.network["authority"].end_inside()

    def _add_gateway(self, name: str) -> GatewayMachine:
        host, clock = self.network[name], self.clocks[name]
        address = host.ipv6 if name == "gw-2" else host.ipv4
        made = GatewayMachine(host, Gateway(self.authority, name, address, address, clock.environment), clock)
        token = made.gateway.admit()
        with host.inside():
            made.gateway.join(token)
        made.gateway.edit('expired_after = "1h"', 'expired_after = "30s"')
        made.gateway.edit("workers = 0 ", "workers = 2 ")
        if self.redis is not None:
            made.gateway.append(f'[hotstate.redis]\nurl = "unix://{self.redis}"')
            made.gateway.append(self._broker_section(made.gateway))
        made.start()
        return made

    def _broker_section(self, gateway: Gateway) -> str:
        api = f"{self.authority.host}:{self.authority.ports['api']}"
        return f'[gateway.broker]\nrelay = "{gateway.address}"\nauthority = "{api}"\nsilence = "5s"'

    # --- its nodes ----------------------------------------------------------------------------------

    def expect_node(self, name: str, on: str) -> NodeMachine:
        """A node with a TPM of its own, in the inventory; it has not enrolled."""
        host = self.network[on]
        with host.inside():
            device = self._stack.enter_context(manufacture(self.folder / f"tpm-{name}", self.maker))
        return NodeMachine(host, self.authority.add_node(name, device))

    def add_node(self, name: str, on: str, by: Sequence[GatewayMachine] = ()) -> NodeMachine:
        """A node that has enrolled and is served by these gateways, by all when none is named."""
        node = self.expect_node(name, on)
        node.enrol()
        self.serves(node, by)
        return node

    def same_tpm(self, name: str, node: NodeMachine) -> NodeMachine:
        """The machine of `node` under another name, which the inventory expects."""
        return NodeMachine(node.host, self.authority.add_node(name, node.node.device), node.turn)

    def name_networks(self) -> None:
        """The policy says in which networks nodes live: agents keep their firewalls by them. Nothing is published."""
        subnets = [subnet for name in NODES for subnet in self.network[name].subnets]
        listed = ", ".join(f'"{subnet}"' for subnet in subnets)
        segments = self.authority.workspace / "segments.yaml"
        text, reaches = segments.read_text(), "    reaches: [edge]\n"
        assert reaches in text
        segments.write_text(text.replace(reaches, f"{reaches}    networks: [{listed}]\n"))

    def publish(self) -> None:
        """A revision of the workspace as it is, in force at every gateway."""
        revision = self.authority.publish()
        for gateway in self.gateways:
            wait_until(partial(gateway.enforces, revision), f"revision {revision} at {gateway.name}")

    def renumber_policy(self) -> int:
        """The newest revision once more, under the next number, which it gives."""
        authority = self.authority
        newest = authority.folder / f"revision-{authority.revision}.bundle"
        authority.revision += 1
        authority.operate("policy", "publish", str(authority.renumbered(newest, authority.revision)))
        return authority.revision

    def write(self) -> None:
        """Change, on its own machine, what watches look at."""
        with self.network["store"].inside():
            request = urllib.request.Request(f"{self.authority.control_plane}/v3/kv/put", PUT)  # noqa: S310  # ours
            urllib.request.urlopen(request, timeout=PATIENCE).close()  # noqa: S310

    def copy_disk(self, victim: NodeMachine, on: str) -> NodeMachine:
        """Everything that `victim` has on disk, on another machine, with that machine's own TPM."""
        host = self.network[on]
        with host.inside():
            device = self._stack.enter_context(manufacture(self.folder / f"tpm-thief-of-{victim.name}", self.maker))
        thief = Node(self.authority, f"thief-of-{victim.name}", device)
        sockets = shutil.ignore_patterns("*.sock")
        shutil.copytree(victim.node.settings.directory, thief.settings.directory, ignore=sockets)
        self.gateways[0].gateway.serves(thief)
        return NodeMachine(host, thief)

    def revoke(self, node: NodeMachine) -> Done:
        """Said at the authority. Which gateways have heard of it is in the answer."""
        return self.authority.operate("inventory", "revoke", node.name, "--reason", "key_compromise", "--json")

    # --- what is waited for -------------------------------------------------------------------------

    def serves(self, node: NodeMachine, by: Sequence[GatewayMachine] = ()) -> None:
        """Wait until `node` is served by these gateways, all of them when none is named."""
        for gateway in by or self.gateways:
            wait_until(partial(node.is_served, gateway), f"{node.name} to be served by {gateway.name}")

    def refuses(self, node: NodeMachine, reason: str, by: Sequence[GatewayMachine] = ()) -> None:
        """Wait until `node` is refused for `reason` by these gateways."""
        for gateway in by or self.gateways:
            what = f"{node.name} to be refused by {gateway.name}: {reason}"
            wait_until(partial(node.is_refused, gateway, reason), what)

    def let_pass(self, seconds: int) -> None:
        """So much time passes at once, everywhere: no machine's clock comes to differ from another's."""
        for clock in self.clocks.values():
            clock.set(clock.ahead + seconds)

    def close(self) -> None:
        for gateway in self.gateways:
            if gateway.gateway.process is not None:
                gateway.gateway.process.terminate()
        if self.authority.process is not None:
            self.authority.stop()
        self.store.stop()
        self._stack.close()


@contextlib.contextmanager
def fleet(folder: Path, maker: TpmMaker, commands: CommandServer, redis: Path | None = None) -> Iterator[Fleet]:
    """A running one: authority, two gateways, a control plane; nodes are the tests' business."""
    with network(*NODES, *GATEWAYS, "authority", "store") as net:
        made = Fleet(net, folder, commands, maker, build_library(folder), redis)
        try:
            made.start()
            yield made
        finally:
            made.close()
