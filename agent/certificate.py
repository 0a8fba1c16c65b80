"""The node's certificate while the agent runs: what tunnels prove themselves with, renewed ahead of time.

Laws held here:
- a renewed certificate is taken up by new connections at once, whoever renewed it (`sallyport node renew` may have);
- renewal begins at a moment drawn from a stretch behind the one that the authority named, so that nodes that enrolled
  together do not renew together; one that fails is tried again, without end and ever more seldom.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Callable

from agent.backoff import pause
from agent.enrol import enrol_again
from agent.keys import client_context, stored_key
from agent.renew import renew
from agent.settings import AgentSettings
from agent.store import Identity, NodeStore
from agent.tlskey import TlsKey
from agent.tpm import Tpm
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.wire.tunnel import PROTOCOL

_log = logging.getLogger("sallyport.agent.certificate")
LOOK_EVERY = 15.0
"""Seconds between two looks at the certificate: clocks jump, and other programs may renew."""
_STRETCH = 0.2  # of the time between the moment that the authority named and the certificate's end


class Certificate:
    """The identity that is in use. `changed` is told of each that follows."""

    def __init__(
        self,
        settings: AgentSettings,
        store: NodeStore,
        identity: Identity,
        tpm: Tpm | None,
        changed: Callable[[], None],
    ) -> None:
        self.identity = identity
        self._settings = settings
        self._store = store
        self._tpm = tpm
        self._changed = changed
        self._key: TlsKey | None = None
        self._context: ssl.SSLContext | None = None
        self._making = asyncio.Lock()
        self._for_calls: tuple[Identity, ssl.SSLContext] | None = None
        self._for_calls_guard = threading.Lock()

    @property
    def id(self) -> SpiffeId:
        return SpiffeId.parse(self.identity.issued.spiffe_id)

    @property
    def trust_domain(self) -> str:
        return self.id.trust_domain

    async def context(self) -> ssl.SSLContext:
        """For a dial now. Raises `Fault(TPM_UNAVAILABLE | TLS_KEY_UNUSABLE)`."""
        async with self._making:
            while self._context is None:
                identity = self.identity
                key, context = await asyncio.to_thread(_proving, identity, self._tpm)
                if identity is self.identity:
                    self._key, self._context = key, context
            return self._context

    def for_calls(self) -> ssl.SSLContext:
        """For calls of the authority's API now. Blocks. Raises as `context`."""
        with self._for_calls_guard:
            made = self._for_calls
            identity = self.identity
            if made is None or made[0] is not identity:
                key = stored_key(identity.key, self._tpm)
                self._for_calls = made = identity, client_context(identity, key)
            return made[1]

    def explain(self, fault: Fault) -> Fault:
        """OpenSSL tells of a signature that was not made as of any failed handshake: what the key knows of it."""
        return getattr(self._key, "fault", None) or fault

    def use(self, identity: Identity) -> None:
        """From now on `identity`, where it is another than before."""
        if identity.issued.chain[0] != self.identity.issued.chain[0]:
            self.identity, self._key, self._context = identity, None, None
            self._changed()

    async def renew(self, clock: Clock) -> None:
        """Renew; one that ended, while the authority was away, is replaced by enrolling again, where there is a TPM to
        do that by. Raises `Fault`."""
        has_ended = clock.now() >= self.identity.issued.not_after
        by_tpm = self._tpm is not None and self._settings.authority is not None
        obtain = enrol_again if has_ended and by_tpm else renew
        self.use(await obtain(self._settings, self._store, clock, _log.info, self._tpm))
        _log.info("the certificate was renewed", extra={"not_after": self.identity.issued.not_after})

    def look(self) -> None:
        """Take up what another program renewed. Raises `Fault`."""
        self.use(self._store.identity())


class Renewal:
    """Renews `certificate` when it is due. `fault` is why the last attempt came to nothing."""

    def __init__(self, certificate: Certificate, clock: Clock, draw: Callable[[], float]) -> None:
        self.fault: Fault | None = None
        self._certificate = certificate
        self._clock = clock
        self._draw = draw

    async def run(self) -> None:
        """Until cancelled."""
        failures, share = 0, self._draw()
        identity = self._certificate.identity
        while True:
            try:
                self._certificate.look()
                if self._clock.now() >= due(self._certificate.identity, share):
                    await self._certificate.renew(self._clock)
                self.fault, failures = None, 0
            except Fault as fault:
                _log.warning("the certificate is not renewed: %s", fault, extra={"internal": fault.internal})
                self.fault, failures = fault, failures + 1
            if identity is not self._certificate.identity:
                identity, share = self._certificate.identity, self._draw()
            await self._clock.sleep(LOOK_EVERY if not failures else LOOK_EVERY + pause(failures, self._draw()))


def due(identity: Identity, share: float) -> float:
    """When to renew (seconds since the Unix epoch); `share`, from 0 to 1, is how far into the stretch."""
    issued = identity.issued
    return issued.renew_after + share * _STRETCH * max(issued.not_after - issued.renew_after, 0)


def _proving(identity: Identity, tpm: Tpm | None) -> tuple[TlsKey, ssl.SSLContext]:
    key = stored_key(identity.key, tpm)
    return key, client_context(identity, key, (PROTOCOL,))
