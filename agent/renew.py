"""Renewal: a new key and a fresh quote for a new certificate, over mutual TLS with the present one."""

from __future__ import annotations

import asyncio
from contextlib import closing, nullcontext

from agent.channel import Channel
from agent.exchange import Report, deliver, propose
from agent.keys import client_context, new_prover, stored_key, telling_why, tpm_for
from agent.settings import Address, AgentSettings
from agent.store import Identity, NodeStore, Pending
from agent.tpm import Tpm
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason


def is_due(identity: Identity, clock: Clock) -> bool:
    """Whether the authority asked for renewal by now."""
    return clock.now() >= identity.issued.renew_after


async def renew(
    settings: AgentSettings, store: NodeStore, clock: Clock, report: Report, shared: Tpm | None = None
) -> Identity:
    """The renewed identity, stored. A renewal whose answer was lost is taken up first. `shared` is the TPM where it is
    open already: not every one can be opened twice. Raises `Fault`: as `enrol`, and `NOT_ENROLLED`."""
    with store.exclusively():
        identity = store.identity()
        opened = nullcontext(shared) if shared else await asyncio.to_thread(tpm_for, identity.key, settings)
        with opened as tpm:
            key = await asyncio.to_thread(stored_key, identity.key, tpm)
            channel = Channel(_address(settings), client_context(identity, key), settings.timeout)
            with closing(channel), telling_why(key):
                pending = store.pending()
                if pending and pending.purpose == "renew":
                    report("asking again for the answer that was lost")
                    try:
                        return await deliver(channel, pending, store, clock)
                    except Fault as fault:
                        if store.pending():  # no answer yet: the authority may still have issued
                            raise
                        report(f"the authority no longer takes it ({fault.reason.code}): beginning anew")
                pending = await asyncio.to_thread(_propose, settings, identity, tpm, channel, report)
                store.save_pending(pending)
                report("asking for the certificate")
                return await deliver(channel, pending, store, clock)


def _propose(settings: AgentSettings, identity: Identity, tpm: Tpm | None, channel: Channel, report: Report) -> Pending:
    report("making a new key")
    prover = new_prover(settings, tpm)
    message = propose(channel, prover, "renew", SpiffeId.parse(identity.issued.spiffe_id).name, "", report)
    return Pending("renew", identity.root, message, prover.key_file(), prover.key.spki)


def _address(settings: AgentSettings) -> Address:
    if settings.renewal is None:
        raise Fault(Reason.SETTING_INVALID, "say where the authority's API is, as host:port", field="agent.renewal")
    return settings.renewal
