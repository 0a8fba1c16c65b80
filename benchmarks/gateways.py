"""Gateways with processes of their own, which follow one authority's feed: `sallyport join`, then `sallyport serve`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.generator import Generator
from benchmarks.site import DOMAIN, MANY, Site, command, serving
from benchmarks.tunnels import Fleet, TunnelHolder
from deploy.demo.free_ports import free_ports

_LISTENERS = ("gateway", "api", "health")


@dataclass(frozen=True, slots=True)
class Apart:
    """An authority and its gateways, all serving. `holders` hold tunnels, one to each gateway."""

    authority: Site
    gateways: tuple[Site, ...]
    holders: tuple[TunnelHolder, ...]


@contextmanager
def apart(stands: Fleet, count: int, redis: Path | None = None) -> Iterator[Apart]:
    """`count` gateways for the fleet of `stands`, whose site becomes an authority alone. With the socket of a server
    (`redis`) they have one worker each and relay streams to each other."""
    site = stands.site
    site.set("sallyport", role="authority")
    site.set("enrolment", without_tpm=["gateway/*"])
    with ExitStack() as stack:
        authority = stack.enter_context(serving(site))
        gateways, holders = [], []
        for number in range(1, count + 1):
            made = _joined(authority, f"gw-{number}")
            if redis is not None:
                _relay(made, redis)
            gateway = stack.enter_context(serving(made))
            generator = _generator(stands.generator, gateway)
            gateways.append(gateway)
            holders.append(stack.enter_context(TunnelHolder.to(generator, gateway.gateway)))
        yield Apart(authority, tuple(gateways), tuple(holders))


def _joined(authority: Site, name: str) -> Site:
    """A gateway that has its certificate, and does not serve yet."""
    folder = authority.folder / name
    made = Site(folder, dict(zip(_LISTENERS, free_ports(len(_LISTENERS)), strict=True)))
    folder.mkdir(mode=0o700)
    kind, socket, token = ("--kind", "gateway"), ("--socket", str(authority.state / "sallyport.sock")), folder / "token"
    command(["inventory", "add", name, *kind, *socket])
    command(["inventory", "update", name, *kind, "--label", "names=localhost,127.0.0.1", *socket])
    command(["token", "create", name, *kind, "--output", str(token), *socket])
    words = ["join", name, "--trust-domain", DOMAIN, "--directory", str(made.state), "--host", "127.0.0.1"]
    words += ["--enrolment", f"127.0.0.1:{authority.ports['enrolment']}"]
    words += ["--api", f"127.0.0.1:{authority.ports['api']}", "--token-file", str(token)]
    words += ["--policy-key", str(authority.state / "authority" / "policy.pub")]
    for listener, port in made.ports.items():
        words += [f"--{listener}-port", str(port)]
    command(words)
    made.set("gateway.listener", source_handshakes=MANY, source_burst=MANY, connections_per_identity=10_000)
    made.set("gateway.overload", lag="2s", exchanges=100_000)
    made.set("policy", decision_timeout="5s")
    return made


def _relay(gateway: Site, redis: Path) -> None:
    gateway.set("gateway", workers=1)
    gateway.set("gateway.broker", relay=f"127.0.0.1:{gateway.ports['gateway']}")
    gateway.set("hotstate.redis", url=f"unix://{redis}")


def _generator(generator: Generator, gateway: Site) -> Generator:
    """The same, which trusts the certificate of `gateway` instead."""
    text = (gateway.state / "identity" / "tls.pem").read_text()
    leaf = gateway.folder / "leaf.pem"
    leaf.write_text(text[text.index("-----BEGIN CERTIFICATE-----") :])
    return replace(generator, server=leaf)
