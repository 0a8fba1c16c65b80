"""Enrolment: from a token to a certificate whose key is in this machine's TPM."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from contextlib import closing, nullcontext

from agent.channel import Channel, trusting
from agent.exchange import Report, deliver, propose
from agent.keys import machine_tpm, new_prover
from agent.settings import Address, AgentSettings
from agent.store import Identity, NodeStore, Pending
from agent.tpm import Tpm
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.wire.enrolment import Token

# The authority's TLS key changed between the messages, or it forgot the session: a new exchange mends both.
_BEGIN_AGAIN = (Reason.SERVER_KEY_CHANGED, Reason.SESSION_UNKNOWN)


async def enrol(settings: AgentSettings, token: Token, store: NodeStore, clock: Clock, report: Report) -> Identity:
    """The identity that the authority issued, stored. An enrolment whose answer was lost is taken up first. Raises
    `Fault`: the authority's reason, or `SERVER_UNTRUSTED`, `SERVER_UNREACHABLE`, `TPM_UNAVAILABLE`,
    `TLS_KEY_UNUSABLE`, `EK_CERTIFICATE_MISSING`, `OVERLOADED`."""
    address = settings.authority
    if address is None:
        raise Fault(Reason.SETTING_INVALID, "say where the authority is, as host:port", field="agent.authority")
    with store.exclusively():
        pending = store.pending()
        if pending and pending.purpose == "enrol" and _is_root(pending.root, token):
            report("asking again for the answer that was lost")
            try:
                return await _deliver(address, pending, settings, store, clock)
            except Fault as fault:
                if store.pending():  # no answer yet: the authority may still have issued
                    raise
                report(f"the authority no longer takes it ({fault.reason.code}): beginning anew")
        try:
            return await _exchange(address, settings, token, store, clock, report)
        except Fault as fault:
            if fault.reason not in _BEGIN_AGAIN:
                raise
            report(f"beginning again: {fault.reason.meaning}")
            return await _exchange(address, settings, token, store, clock, report)


async def enrol_again(
    settings: AgentSettings, store: NodeStore, clock: Clock, report: Report, shared: Tpm | None = None
) -> Identity:
    """A new certificate for a node whose last one ended while its authority was away: by its TPM alone, which the
    inventory holds, over TLS that chains to the root on disk. `shared` is the TPM where it is open already. Raises
    `Fault` as `enrol`, and `NOT_ENROLLED`."""
    address = settings.authority
    if address is None:
        raise Fault(Reason.SETTING_INVALID, "say where the authority is, as host:port", field="agent.authority")
    with store.exclusively():
        identity, pending = store.identity(), store.pending()
        if pending is None or pending.purpose != "enrol" or pending.root != identity.root:
            pending = await asyncio.to_thread(_propose_again, address, identity, settings, report, shared)
            store.save_pending(pending)
        return await _deliver(address, pending, settings, store, clock)


def _propose_again(
    address: Address, identity: Identity, settings: AgentSettings, report: Report, shared: Tpm | None
) -> Pending:
    report("enrolling again by the TPM")
    name = SpiffeId.parse(identity.issued.spiffe_id).name
    channel = Channel(address, trusting(identity.root), settings.timeout)
    with closing(channel), nullcontext(shared) if shared else machine_tpm(settings) as tpm:
        prover = new_prover(settings, tpm)
        message = propose(channel, prover, "enrol", name, "", report)
        return Pending("enrol", identity.root, message, prover.key_file(), prover.key.spki)


async def _exchange(
    address: Address, settings: AgentSettings, token: Token, store: NodeStore, clock: Clock, report: Report
) -> Identity:
    report(f"looking for the token's root at {address}")
    channel, root = await asyncio.to_thread(Channel.pinned, address, token.root_sha256, settings.timeout)
    with closing(channel):  # both messages go over one connection
        pending = await asyncio.to_thread(_propose, channel, root, settings, token, report)
        store.save_pending(pending)
        report("asking for the certificate")
        return await deliver(channel, pending, store, clock)


def _propose(channel: Channel, root: bytes, settings: AgentSettings, token: Token, report: Report) -> Pending:
    report("making keys")
    with machine_tpm(settings) as tpm:
        prover = new_prover(settings, tpm)
        message = propose(channel, prover, "enrol", settings.node, token.encode(), report)
        return Pending("enrol", root, message, prover.key_file(), prover.key.spki)


async def _deliver(
    address: Address, pending: Pending, settings: AgentSettings, store: NodeStore, clock: Clock
) -> Identity:
    with closing(Channel(address, trusting(pending.root), settings.timeout)) as channel:
        return await deliver(channel, pending, store, clock)


def _is_root(root: bytes, token: Token) -> bool:
    return hmac.compare_digest(hashlib.sha256(root).digest(), token.root_sha256)
