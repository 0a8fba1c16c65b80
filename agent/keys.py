"""Opens the node's key where it lives, makes new ones, and authenticates with it. Blocks."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from agent.channel import trusting
from agent.evidence import Prover, SoftwareProver, TpmProver
from agent.settings import AgentSettings
from agent.store import Identity, KeyFile
from agent.tlskey import SoftwareTlsKey, TlsKey, TpmTlsKey, self_test
from agent.tpm import Tpm
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tls import HTTP_1_1


def machine_tpm(settings: AgentSettings) -> AbstractContextManager[Tpm | None]:
    """The machine's TPM, open; `None` where the settings say to do without. Raises `Fault(TPM_UNAVAILABLE)`."""
    return nullcontext() if settings.attestation == "none" else Tpm(settings.tcti)


def tpm_for(file: KeyFile, settings: AgentSettings) -> AbstractContextManager[Tpm | None]:
    """The TPM that a stored key needs, open; `None` for a software key. Raises `Fault(TPM_UNAVAILABLE)`."""
    return nullcontext() if file.kind == "software" else Tpm(settings.tcti)


def stored_key(file: KeyFile, tpm: Tpm | None) -> TlsKey:
    """Raises `Fault(TLS_KEY_UNUSABLE)`."""
    if file.kind == "software":
        return SoftwareTlsKey.parse(file.pem)
    if tpm is None:
        raise Fault(Reason.TLS_KEY_UNUSABLE, "the key is in a TPM, and none is open", field="tls_key")
    return TpmTlsKey(tpm, tpm.read_tls_key(file.pem))


def new_prover(settings: AgentSettings, tpm: Tpm | None) -> Prover:
    """A prover with a new TLS key. One in the TPM has done a handshake already: a key that cannot is found here, not
    after the authority certified it. Raises `Fault(TPM_UNAVAILABLE | TLS_KEY_UNUSABLE)`."""
    if tpm is None:
        return SoftwareProver(SoftwareTlsKey.generate())
    key = TpmTlsKey(tpm, tpm.create_tls_key())
    self_test(key)
    return TpmProver(tpm, key, ek=settings.ek, event_log=settings.event_log)


@contextmanager
def telling_why(key: TlsKey) -> Iterator[None]:
    """OpenSSL tells of a signature that was not made as of any failed handshake: raise what the key knows of it."""
    try:
        yield
    except Fault as fault:
        raise getattr(key, "fault", None) or fault from None


def client_context(identity: Identity, key: TlsKey, protocols: tuple[str, ...] = HTTP_1_1) -> ssl.SSLContext:
    """TLS 1.3 with the node's certificate, trusting its root alone. `protocols` are told as ALPN."""
    context = trusting(identity.root, protocols)
    key.install(context, identity.issued.chain[:-1])
    return context
