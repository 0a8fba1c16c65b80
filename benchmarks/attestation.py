"""Continuous re-attestation: how many quotes a second and CPU core the server takes.

`quotes_per_s_core` is the whole server side, as in production: a fleet's nodes push one round after the other to
`sallyport serve`, each message on a connection of its own (mutual TLS, for that is how nodes do it), authorised by
policy, verified, and committed to the database; the moved deadlines reach the gateway and its workers. It is the number
of rounds over the CPU seconds that all serving processes ran meanwhile, in their own code and in the kernel; nothing is
taken off. `quotes_verified_per_s_core` is the verification alone, in this process: the message parsed, signature,
nonce, PCRs and counters judged.

The nodes' TPMs are software keys in this process: a TPM's own time is no server's.
"""

from __future__ import annotations

import asyncio
import ssl
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.figure import Figure, at_least
from benchmarks.site import DOMAIN, Site, enlist, initialise, serving
from benchmarks.usage import cpu
from deploy.demo.tpm_maker import TpmMaker
from foundation.tls import client_context
from foundation.wire.enrolment import PcrSelection
from foundation.wire.reattestation import PATH, Next, Push, qualifying_data
from pki.tpm import verdict
from pki.tpm.public import Public
from tests.support.soft_tpm import PCRS, SHA256, SoftTpm, selection, signature

COMMAND = "python -m benchmarks.run attestation"
GOAL = 400.0
AT_ONCE = 16
SETTLE_SECONDS = 0.5
MAKER = TpmMaker.create()


def figures(short: bool) -> Iterator[Figure]:
    nodes, rounds, repetitions = (20, 4, 2) if short else (200, 10, 5)
    alone = [_verified_per_second(200 if short else 2000) for _ in range(repetitions)]
    with tempfile.TemporaryDirectory(prefix="sallyport-bench-") as made:
        site = initialise(Path(made))
        site.set("enrolment", classes=["hardware", "virtual"])
        site.set("enrolment.rate", burst=10_000, per_minute=100_000)
        site.set("enrolment.attestation", interval="1s")
        enlist(site, nodes, ("edge-agent",), certified=nodes, attesting=True)
        with serving(site) as served:
            fleet = [Pushing.read(served, f"edge-{i}") for i in range(nodes)]
            uvloop.run(_each(fleet, 2))  # the nonces, and what is slow once
            taken = [_taken_per_second(served, fleet, rounds) for _ in range(repetitions)]
    yield at_least("quotes_per_s_core", statistics.median(taken), "quotes/s", GOAL, COMMAND, taken)
    yield at_least("quotes_verified_per_s_core", statistics.median(alone), "quotes/s", GOAL, COMMAND, alone)


@dataclass
class Pushing:
    """A node that has a certificate, and pushes."""

    identity: str
    serial: str
    root_sha256: bytes
    port: int
    context: ssl.SSLContext
    tpm: SoftTpm
    next: Next | None = None
    values: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.values = self.tpm.values(PCRS)

    @classmethod
    def read(cls, site: Site, name: str) -> Pushing:
        """The node of this name as `benchmarks.fleet` made it."""
        root, pair = site.root.read_bytes(), site.clients / f"{name}.pem"
        context = client_context(root)
        context.load_cert_chain(pair)
        leaf = x509.load_pem_x509_certificate(pair.read_bytes())
        digest = x509.load_pem_x509_certificate(root).fingerprint(hashes.SHA256())
        key = serialization.load_pem_private_key((site.clients / f"{name}.ak").read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("an AK is an ECC key here")
        identity, serial = f"spiffe://{DOMAIN}/node/{name}", format(leaf.serial_number, "x")
        return cls(identity, serial, digest, site.ports["api"], context, SoftTpm(MAKER, ak=key))

    def message(self) -> Push:
        """Evidence over the nonce that it holds; a question where it holds none."""
        if self.next is None:
            return Push()
        clock, *others = self.tpm.clock
        self.tpm.clock = (clock + 1000, *others)  # type: ignore[assignment]
        nonce, pcrs = self.next.nonce, self.next.pcrs
        over = qualifying_data(self.identity, self.serial, self.root_sha256, nonce)
        return evidence(self.tpm, over, pcrs, self.values)

    async def push(self) -> None:
        """One message over a connection of its own."""
        body = self.message().encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        reader, writer = await asyncio.open_connection("localhost", self.port, ssl=self.context)
        try:
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            status = await reader.readline()
            headers = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line[15:]) for line in headers.split(b"\r\n") if line.lower().startswith(b"content-length")
            )
            answer = await reader.readexactly(length)
        finally:
            writer.close()
        if b" 200 " not in status:
            raise RuntimeError(f"{self.identity}: {answer.decode()}")
        self.next = Next.parse(answer)


def evidence(tpm: SoftTpm, over: bytes, pcrs: PcrSelection, values: tuple[bytes, ...]) -> Push:
    """A quote as it is every minute: nothing has changed."""
    quote = tpm.quote(over, selection=selection((SHA256, pcrs.indices)), values=values)
    return Push(quote, signature(tpm.ak, quote), values)


async def _each(fleet: Sequence[Pushing], rounds: int) -> None:
    """Every node's rounds, some nodes at a time."""
    free = asyncio.Semaphore(AT_ONCE)

    async def push(node: Pushing) -> None:
        async with free:
            await node.push()

    for _ in range(rounds):
        async with asyncio.TaskGroup() as group:
            for node in fleet:
                group.create_task(push(node))


def _taken_per_second(site: Site, fleet: Sequence[Pushing], rounds: int) -> float:
    passed = site.metric("sallyport_attestations_total")
    before = cpu([site.pid])
    uvloop.run(_each(fleet, rounds))
    time.sleep(SETTLE_SECONDS)  # what follows the last answer
    spent = cpu([site.pid]).since(before).total
    counted = site.metric("sallyport_attestations_total") - passed
    if counted != len(fleet) * rounds:
        raise RuntimeError(f"{counted:g} of {len(fleet) * rounds} rounds passed")
    return counted / spent


def _verified_per_second(count: int) -> float:
    """One verification after the other, by the CPU's time."""
    tpm, over = SoftTpm(MAKER), b"q" * 32
    raw = evidence(tpm, over, PCRS, tpm.values(PCRS)).encode()
    ak = Public.parse(tpm.ak_area, "ak")
    known = _verify(ak, raw, over, verdict.Accepted(None))
    accepted = verdict.Accepted(known.counters, known.boot, known.runtime)
    began = time.process_time()
    for _ in range(count):
        _verify(ak, raw, over, accepted)
    return count / (time.process_time() - began)


def _verify(ak: Public, raw: bytes, over: bytes, accepted: verdict.Accepted) -> verdict.Again:
    message = Push.parse(raw)
    quote, _ = verdict.authenticate(ak, message, (over,))
    return verdict.verify_again(ak, quote, message, PCRS, accepted, None, reference_required=False)
