"""Faults drawn by lot, several at once, for as long as one likes: `make scenarios-long`.

    python -m tests.support.netns.chaos --minutes 10 --seed 7

Each round breaks some parts, lets that last, mends them, and then holds what holds after every fault: no trespasser was
ever served, and requests and brokered streams are served again, with nobody's help. A round that fails ends the run;
its seed and its number say how to have the same faults again, though not at the same moments.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

from deploy.demo.tpm_maker import TpmMaker
from tests.support.commands import CommandServer
from tests.support.netns.agents import AgentMachine
from tests.support.netns.brokered import (
    ECHO,
    ECHO_UDP,
    brokering_fleet,
    calling_node,
    serving_node,
    trespassers_between,
)
from tests.support.netns.calls import Trespassers
from tests.support.netns.faults import cut, delayed, lossy, narrow, rewound, stopped, unplugged
from tests.support.netns.fleet import Fleet, GatewayMachine, NodeMachine
from tests.support.netns.network import Host
from tests.support.netns.requesting import trespassers_at
from tests.support.processes import wait_until
from tests.support.redis import RedisServer, redis_server

Fault = Callable[[], AbstractContextManager[None]]
LONGEST = 8.0  # seconds that a round's faults last
MOST = 3  # at once


class Stage:
    """What is broken and mended."""

    def __init__(self, site: Fleet, redis: RedisServer, a: AgentMachine, b: AgentMachine, node: NodeMachine) -> None:
        self.site, self.redis, self.a, self.b, self.node = site, redis, a, b, node

    def faults(self, lots: random.Random) -> Mapping[str, Sequence[tuple[str, Fault]]]:
        """Those there are, by what they befall: of each thing one at a time."""
        found: dict[str, list[tuple[str, Fault]]] = {}
        for host in self.site.network.hosts.values():
            found[f"link of {host.name}"] = self._of_link(host, lots)
        for gateway in self.site.gateways:
            found[gateway.name] = self._of_gateway(gateway, lots)
        for name, agent in (("agent a", self.a), ("agent b", self.b)):
            found[name] = [
                ("killed", partial(killed, agent.kill, agent.launch)),
                ("stopped", partial(_stopped, agent)),
                ("its clock set back", partial(rewound, agent.clock, lots.randrange(1, 3000))),
            ]
        site, redis = self.site, self.redis
        found["authority"] = [
            ("killed", partial(killed, site.kill_authority, site.start_authority)),
            ("its clock set back", partial(rewound, site.clocks["authority"], lots.randrange(1, 3000))),
        ]
        found["control plane"] = [("killed", partial(killed, site.store.kill, site.start_store))]
        found["Redis"] = [("killed", partial(killed, redis.kill, redis.start))]
        return found

    def is_served(self) -> None:
        """Wait until everything that may be had is to be had."""
        self.site.serves(self.node)
        for agent in (self.a, self.b):
            agent.comes_up()
        for port in (ECHO, ECHO_UDP):
            wait_until(partial(self.a.reaches, port), f"{port.route} to be there again")

    def _of_link(self, host: Host, lots: random.Random) -> list[tuple[str, Fault]]:
        net, folder = self.site.network, self.site.folder
        return [
            ("cut", partial(cut, net, host)),
            ("unplugged", partial(unplugged, net, host)),
            ("lossy", partial(lossy, net, host, lots.randrange(5, 40))),
            ("slow", partial(delayed, net, host, lots.uniform(0.02, 0.3), folder)),
            ("narrow", partial(narrow, net, host, f"{lots.randrange(128, 2048)}kbit")),
        ]

    def _of_gateway(self, gateway: GatewayMachine, lots: random.Random) -> list[tuple[str, Fault]]:
        return [
            ("killed", partial(killed, gateway.kill, gateway.start)),
            ("frozen", gateway.frozen),
            ("its clock set back", partial(rewound, gateway.clock, lots.randrange(1, 3000))),
        ]


@contextlib.contextmanager
def killed(kill: Callable[[], None], start: Callable[[], None]) -> Iterator[None]:
    """It is gone for as long as the block lasts."""
    kill()
    try:
        yield
    finally:
        start()


@contextlib.contextmanager
def _stopped(agent: AgentMachine) -> Iterator[None]:
    assert agent.process is not None
    with stopped(agent.process):
        yield


def play(stage: Stage, trespassers: Trespassers, lots: random.Random, number: int) -> None:
    """One round."""
    there = stage.faults(lots)
    befallen = lots.sample(sorted(there), lots.randint(1, MOST))
    drawn = [(what, *lots.choice(there[what])) for what in befallen]
    tell(f"round {number}: " + ", ".join(f"{what} {how}" for what, how, _ in drawn))
    began = time.monotonic()
    with ExitStack() as stack:
        for _, _, fault in drawn:
            stack.enter_context(fault())
        time.sleep(lots.uniform(0.5, LONGEST))  # no condition is waited for: this is how long it lasts
    mended = time.monotonic()
    stage.is_served()
    trespassers.are_refused()
    tell(f"  lasted {mended - began:.1f} s, all served again {time.monotonic() - mended:.1f} s later")


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Break a fleet by lot, and see that it is safe and comes back.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if asked.seed is None else asked.seed
    tell(f"seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="chaos"))
    tell(f"logs in {folder}")
    maker, until = TpmMaker.create(), time.monotonic() + asked.minutes * 60
    with (
        CommandServer() as commands,
        redis_server() as redis,
        brokering_fleet(folder, maker, commands, redis.socket) as site,
        serving_node(site) as (b, _),
        calling_node(site) as a,
    ):
        node = site.add_node("requests", "node-c")
        stage = Stage(site, redis, a, b, node)
        with Trespassers(*trespassers_at(site, node), *trespassers_between(a, b)) as trespassers:
            number = 0
            while time.monotonic() < until:
                number += 1
                play(stage, trespassers, random.Random(seed * 1_000_003 + number), number)
    tell(f"{number} rounds, nothing that nobody may do was done, and everything came back")


if __name__ == "__main__":
    main()
