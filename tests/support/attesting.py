"""Nodes that re-attest, message by message, so that a test can bend any of them."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deploy.demo.measured_boot import event_log
from deploy.demo.tpm_maker import TpmMaker
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass
from foundation.ports import Caller
from foundation.wire.enrolment import PcrSelection
from foundation.wire.measurements import RUNTIME_PCR
from foundation.wire.reattestation import Next, Push, qualifying_data
from pki.entries import Attested, Counters, Expected
from pki.issue import IssueRequest
from pki.profile import ProfileName
from tests.support.installation import TRUST_DOMAIN, Installation
from tests.support.node import HERE
from tests.support.soft_tpm import SHA256, SoftTpm, name_of, selection, signature

MAKER = TpmMaker.create()


@dataclass
class AttestingNode:
    """A node with a TPM in name only, enrolled with its AK. `next` is the last NEXT; `log` holds the entries of its
    kernel's runtime log, and `sent` is how many of them were accepted."""

    site: Installation
    caller: Caller
    tpm: SoftTpm = field(default_factory=lambda: SoftTpm(MAKER))
    next: Next | None = None
    log: list[bytes] = field(default_factory=list)
    sent: int = 0
    whole: bool = True

    async def enrol(self) -> None:
        """Have a certificate, by the authority's own pipeline; what is left out is enrolment's messages."""
        await self.site.authority.inventory.add(Expected(self.caller.id, tier=2), "test")
        await self.renew()

    async def renew(self, **changes: Any) -> None:
        """Have a new certificate, as after a passed attestation."""
        clock, reset, restart, _safe = self.tpm.clock
        area = self.tpm.ak_area
        ek = hashlib.sha256(self.caller.id.name.encode()).digest()
        until = self.site.clock.now() + 3600
        counters = Counters(reset, restart, clock)
        attested = Attested(AttestationClass.VIRTUAL, until, ek, area, name_of(area), counters)
        spki = self.tpm.tls.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        issued = await self.site.authority.issue(
            IssueRequest(self.caller.id, ProfileName.NODE, spki, "test", attested, **changes)
        )
        self.caller = replace(self.caller, serial=issued.serial)

    async def ask(self) -> Next:
        self.next = await self.send(Push())
        return self.next

    async def send(self, message: Push, caller: Caller | None = None) -> Next:
        return Next.parse(await self.site.service.attesting.push(message.encode(), caller or self.caller, HERE))

    async def push(self, **changes: Any) -> Next:
        """One round as an honest node does it, `changes` to whole fields of the message."""
        self.next = await self.send(self.message(**changes))
        self.sent, self.whole = len(self.log), False
        return self.next

    def message(self, **changes: Any) -> Push:
        asked = self.next
        assert asked is not None
        values = self.values(asked.pcrs)
        quote = changes.pop("quote", None) or self.quote(self.qualifying(asked.nonce), asked.pcrs)
        since = 0 if self.whole else self.sent
        fields = {
            "quote_attest": quote,
            "quote_signature": signature(self.tpm.ak, quote),
            "pcr_values": values,
            "event_log": event_log(self.tpm.events, ("sha1", "sha256")) if self.whole else b"",
            "measured_from": since if asked.measured else 0,
            "measurements": b"".join(self.log[since:]) if asked.measured else b"",
        }
        return Push(**{**fields, **changes})

    def qualifying(self, nonce: bytes, **changes: Any) -> bytes:
        said = {
            "identity": str(self.caller.id),
            "serial": self.caller.serial,
            "authority": self.site.authority.root_sha256,
            "nonce": nonce,
        }
        return qualifying_data(**{**said, **changes})

    def quote(self, extra: bytes, pcrs: PcrSelection, **changes: Any) -> bytes:
        picked = changes.pop("selection", selection((SHA256, pcrs.indices)))
        return self.tpm.quote(extra, selection=picked, values=self.values(pcrs), **changes)

    def values(self, pcrs: PcrSelection) -> tuple[bytes, ...]:
        held = dict(zip(range(24), self.tpm.values(PcrSelection(pcrs.bank, tuple(range(24)))), strict=True))
        held[RUNTIME_PCR] = pcr_10(self.log)
        return tuple(held[n] for n in pcrs.indices)

    def tick(self, seconds: float = 60.0) -> None:
        """Time passes, for the authority and in the TPM."""
        self.site.clock.advance(seconds)
        clock, reset, restart, safe = self.tpm.clock
        self.tpm.clock = (clock + int(seconds * 1000), reset, restart, safe)

    def reset(self) -> None:
        """The machine is reset, in order: everything that was measured is measured anew."""
        clock, reset, _restart, _safe = self.tpm.clock
        self.tpm.clock = (clock + 1, reset + 1, 0, 1)
        self.log, self.sent, self.whole, self.next = self.log[:1], 0, True, None


async def attesting_node(site: Installation, name: str = "edge-1") -> AttestingNode:
    """An enrolled node that has not begun its rounds."""
    node = AttestingNode(site, Caller(SpiffeId(TRUST_DOMAIN, Kind.NODE, name), (), "certificate"))
    await node.enrol()
    return node


def ima_entry(path: bytes, digest: bytes, *, sig: bytes | None = None, violation: bool = False, pcr: int = 10) -> bytes:
    """One entry of binary_runtime_measurements, packed by hand as the kernel does (ima_fs.c, ima_template_lib.c)."""
    fields = [b"sha256:\x00" + (bytes(len(digest)) if violation else digest), path + b"\x00"]
    name = b"ima-ng"
    if sig is not None:
        fields, name = [*fields, sig], b"ima-sig"
    data = b"".join(struct.pack("<I", len(each)) + each for each in fields)
    template_digest = bytes(20) if violation else hashlib.sha1(data, usedforsecurity=False).digest()
    head = struct.pack("<I", pcr) + template_digest + struct.pack("<I", len(name)) + name
    return head + struct.pack("<I", len(data)) + data


def pcr_10(log: list[bytes]) -> bytes:
    """What a kernel since 5.8 extends into the SHA-256 bank, computed apart from `pki.tpm.ima`."""
    value = bytes(32)
    for entry in log:
        name_size = struct.unpack_from("<I", entry, 24)[0]
        data = entry[28 + name_size + 4 :]
        extends = b"\xff" * 32 if entry[4:24] == bytes(20) else hashlib.sha256(data).digest()
        value = hashlib.sha256(value + extends).digest()
    return value
