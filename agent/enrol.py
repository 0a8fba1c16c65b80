"""Enrolment: from a token to a certificate whose key is in this machine's TPM."""

from __future__ import annotations

import asyncio
from contextlib import closing

from agent.channel import Channel, find_root, trusting
from agent.exchange import Report, deliver, propose
from agent.keys import machine_tpm, new_prover
from agent.settings import Address, AgentSettings
from agent.store import Identity, NodeStore, Pending
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import Token

# The authority's TLS key changed between the messages, or it forgot the session: a new exchange mends both.
_BEGIN_AGAIN = (Reason.SERVER_KEY_CHANGED, Reason.SESSION_UNKNOWN)


async def enrol(settings: AgentSettings, token: Token, store: NodeStore, clock: Clock, report: Report) -> Identity:
    """The identity that the authority issued, stored. An enrolment whose answer was lost is taken up first. Raises
    `Fault`: the authority's reason, or `SERVER_UNTRUSTED`, `SERVER_UNREACHABLE`, `TPM_UNAVAILABLE`,
    `TLS_KEY_UNUSABLE`, `EK_CERTIFICATE_MISSING`, `OVERLOADED`."""
    with store.exclusively():
        pending = store.pending()
        if pending and pending.purpose == "enrol":
            report("asking again for the answer that was lost")
            try:
                return await _deliver(pending, settings, store, clock, report)
            except Fault as fault:
                if store.pending():  # no answer yet: the authority may still have issued
                    raise
                report(f"the authority no longer takes it ({fault.reason.code}): beginning anew")
        try:
            return await _exchange(settings, token, store, clock, report)
        except Fault as fault:
            if fault.reason not in _BEGIN_AGAIN:
                raise
            report(f"beginning again: {fault.reason.meaning}")
            return await _exchange(settings, token, store, clock, report)


async def _exchange(settings: AgentSettings, token: Token, store: NodeStore, clock: Clock, report: Report) -> Identity:
    pending = await asyncio.to_thread(_propose, settings, token, report)
    store.save_pending(pending)
    return await _deliver(pending, settings, store, clock, report)


def _propose(settings: AgentSettings, token: Token, report: Report) -> Pending:
    if settings.authority is None:
        raise Fault(Reason.SETTING_INVALID, "say where the authority is, as host:port", field="agent.authority")
    report(f"looking for the token's root at {settings.authority}")
    root = find_root(settings.authority, token.root_sha256, settings.timeout)
    report("making keys")
    channel = Channel(settings.authority, trusting(root), settings.timeout)
    with closing(channel), machine_tpm(settings) as tpm:
        prover = new_prover(settings, tpm)
        message = propose(channel, prover, "enrol", settings.node, token.encode(), report)
        return Pending("enrol", str(settings.authority), root, message, prover.key_file(), prover.key.spki)


async def _deliver(
    pending: Pending, settings: AgentSettings, store: NodeStore, clock: Clock, report: Report
) -> Identity:
    report("asking for the certificate")
    address = Address.parse(pending.authority, "pending.authority")
    with closing(Channel(address, trusting(pending.root), settings.timeout)) as channel:
        return await deliver(channel, pending, store, clock)
