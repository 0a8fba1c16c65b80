"""This process's own identity: its certificate for callers and for those it calls, and how a gateway's renews itself.

A gateway's key is made on its machine and stays there. The node's program (`sallyport node`) enrols and renews it, as a
process of its own, and leaves key and chain as PEM; we read them anew when they change.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tls import HTTP_1_1, KeyPair, client_context, server_context
from foundation.wire.attestation import certified_attestation

CHECKED_EVERY = 30.0
RENEWAL_SECONDS = 120.0
_MAX_TOLD = 2000
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Contexts:
    proven: ssl.SSLContext
    data_plane: ssl.SSLContext
    strangers: ssl.SSLContext
    client: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What was read, and what was made of it."""

    read: bytes
    root: bytes
    leaf: x509.Certificate
    authorities: tuple[x509.Certificate, ...]
    contexts: _Contexts

    def differ_from(self, before: _Loaded | None) -> tuple[str, ...]:
        one, other = (self.read, self.root), (before.read, before.root) if before else (b"", b"")
        return tuple(name for name, new, old in zip(("certificate", "root"), one, other, strict=True) if new != old)


class Certificates:
    """The TLS contexts of one certificate (`pair`) under one root (PEM file). Each property is asked for every
    connection; after `load` it gives the new one, and `generation` is one more."""

    def __init__(self, pair: KeyPair, root: Path, protocols: tuple[str, ...] = HTTP_1_1) -> None:
        """`protocols` are what the data plane's listener offers by ALPN (RFC 7301), the best first."""
        self.pair = pair
        self.root = root
        self._protocols = protocols
        self.generation = 0
        self.changed: Callable[[], None] = _nothing  # called when others were loaded
        self._loaded: _Loaded | None = None
        self.leaf: x509.Certificate | None = None
        self.authorities: tuple[x509.Certificate, ...] = ()
        """The CAs that stand behind the leaf in what we present, and the root."""

    def load(self) -> tuple[str, ...]:
        """Read certificate, key and root anew; which of them are others, `certificate` and `root`. Raises
        `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`; then what was loaded stays."""
        found = self._judge()
        if found is None:
            return ()
        others = found.differ_from(self._loaded)
        self._loaded = found
        self.leaf, self.authorities = found.leaf, found.authorities
        self.generation += 1
        self.changed()
        return others

    def differs(self) -> tuple[str, ...]:
        """What `load` would say now, or raise."""
        found = self._judge()
        return found.differ_from(self._loaded) if found else ()

    def _judge(self) -> _Loaded | None:
        """What is on disk; None where that is what was loaded."""
        try:
            read, root = self.pair.certificate.read_bytes(), self.root.read_bytes()
            leaf, *chain = x509.load_pem_x509_certificates(read)
            read += self.calling.certificate.read_bytes()
            chain += x509.load_pem_x509_certificates(root)
        except (OSError, ValueError) as error:
            raise Fault(Reason.FILE_UNREADABLE, "no certificate and root", field=str(self.pair.certificate)) from error
        if self._loaded is not None and (read, root) == (self._loaded.read, self._loaded.root):
            return None
        contexts = _Contexts(
            proven=server_context(self.pair, client_roots=root),
            data_plane=server_context(self.pair, client_roots=root, protocols=self._protocols),
            # Strangers know the root by its hash alone: they are shown it.
            strangers=server_context(self.pair, client_roots=None, present=root),
            client=client_context(root, pair=self.calling),
        )
        return _Loaded(read, root, leaf, tuple(chain), contexts)

    @property
    def calling(self) -> KeyPair:
        """What is proven to those we call: a pair of its own beside the other where that is for servers alone, as on an
        authority's machine."""
        beside = self.pair.certificate.with_name("calling.pem")
        return KeyPair(beside, beside.with_suffix(".key")) if beside.exists() else self.pair

    def proven(self) -> ssl.SSLContext:
        """For a listener whose callers prove a certificate."""
        return self._contexts.proven

    def data_plane(self) -> ssl.SSLContext:
        """For the listener that forwards; its callers prove a certificate too."""
        return self._contexts.data_plane

    def strangers(self) -> ssl.SSLContext:
        """For the listener whose callers have none yet."""
        return self._contexts.strangers

    def client(self) -> ssl.SSLContext:
        """For calls to others."""
        return self._contexts.client

    @property
    def _contexts(self) -> _Contexts:
        if self._loaded is None:
            raise Fault(Reason.NOT_ENROLLED, field=str(self.pair.certificate))
        return self._loaded.contexts

    @property
    def spiffe_id(self) -> str:
        """The SPIFFE ID in the certificate; empty where none is loaded."""
        if self.leaf is None:
            return ""
        names = self.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return next(iter(names.get_values_for_type(x509.UniformResourceIdentifier)), "")

    def expired(self, now: float) -> bool:
        """Whether nobody believes this certificate any more."""
        return self.leaf is None or now >= self.leaf.not_valid_after_utc.timestamp()


def _nothing() -> None:
    pass


class Renewal:
    """Renews a gateway's certificate ahead of its end, and loads what somebody else renewed."""

    def __init__(self, certificates: Certificates, command: Sequence[str], clock: Clock) -> None:
        self._certificates = certificates
        self._command = command
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled. What fails is logged and tried again: the certificate that is there serves on."""
        while True:
            await self._clock.sleep(_pause(self._certificates.leaf))
            try:
                self._certificates.load()
                if is_due(self._certificates.leaf, self._clock.now()):
                    await agent(*self._command)
                    self._certificates.load()
            except Fault as fault:
                _LOG.warning("the gateway's certificate is not renewed: %s", fault)


def is_due(leaf: x509.Certificate | None, now: float) -> bool:
    """Whether to ask the node's program, which knows the moment that the authority chose: from the middle of the time
    that certificate and attestation have."""
    if leaf is None:
        return True
    begins, ends = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    attested_until = certified_attestation(leaf).attested_until
    if attested_until:
        ends = min(ends, attested_until)
    return now >= begins + (ends - begins) / 2


def _pause(leaf: x509.Certificate | None) -> float:
    if leaf is None:
        return CHECKED_EVERY
    life = (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds()
    return min(CHECKED_EVERY, life / 20)


async def agent(*words: str) -> str:
    """What `sallyport node …` printed. Raises `Fault` with the reason and the detail that it told when it failed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "sallyport", "node", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(RENEWAL_SECONDS):
            out, told = await process.communicate()
    except TimeoutError:
        raise Fault(Reason.SERVER_UNREACHABLE, "the node's program does not end", field=words[0]) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise _fault(told.decode("utf-8", "replace")[:_MAX_TOLD], words[0])
    return out.decode("utf-8", "replace")


def _fault(told: str, word: str) -> Fault:
    """The fault in what a command says: its code and meaning on the first line, its detail on the second."""
    first, _, rest = told.partition("\n")
    detail = rest.partition("\n")[0].strip()
    try:
        return Fault(Reason.from_code(first.partition(":")[0].strip()), detail, field=f"sallyport node {word}")
    except KeyError:
        return Fault(Reason.INTERNAL, " ".join(told.split()), field=f"sallyport node {word}")
