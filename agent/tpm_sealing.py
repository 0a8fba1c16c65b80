"""Sealing to the state in which the machine booted; on the worker thread of `agent.tpm` only, as `agent.tpm_commands`.

A secret is a sealed data object (TPM 2.0 Part 1 §27.5) under the standard ECC storage primary, with PolicyPCR (Part 3
§23.7) as its only authorisation: without `userWithAuth` no password opens it. Another TPM cannot load it, another boot
state does not satisfy its policy. It comes out encrypted for this process (a session salted by the storage key, Part 1
§19), so that who listens on the bus between processor and TPM learns nothing.

Rights to open it do not outlive its PCR values: after an update of what they measure it is lost, and made anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_ECC, TPM2_SE, TPMA_OBJECT, TPMA_SESSION
from tpm2_pytss.types import (
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPM2B_SENSITIVE_DATA,
    TPMS_ECC_PARMS,
    TPMS_KEYEDHASH_PARMS,
    TPMS_SENSITIVE_CREATE,
    TPMT_ECC_SCHEME,
    TPMT_KDF_SCHEME,
    TPMT_KEYEDHASH_SCHEME,
    TPMT_PUBLIC,
    TPMT_SYM_DEF_OBJECT,
    TPMU_PUBLIC_PARMS,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
)

from agent.tpm_commands import is_answer, read_pcrs
from agent.tpm_values import MAX_SEALED_BYTES, SealedSecret
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import PcrSelection

_OF_THIS_TPM = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.NODA
_STORAGE = (
    _OF_THIS_TPM
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.DECRYPT
)
_ENCRYPTED = "aes128cfb"


def seal(esapi: ESAPI, selection: PcrSelection, secret: bytes) -> SealedSecret:
    """`secret`, to be had again by `unseal` while the PCRs of `selection` hold what they hold now. Raises
    `Fault(QUOTE_SELECTION)` when their bank is not active."""
    if len(secret) > MAX_SEALED_BYTES:
        raise ValueError(f"a TPM seals at most {MAX_SEALED_BYTES} bytes")
    read_pcrs(esapi, selection)  # a bank that is not active would seal to nothing
    with _storage_key(esapi) as parent:
        template = _template(_policy(esapi, selection))
        sensitive = TPM2B_SENSITIVE_CREATE(sensitive=TPMS_SENSITIVE_CREATE(data=TPM2B_SENSITIVE_DATA(secret)))
        with _session(esapi, parent, TPM2_SE.HMAC, TPMA_SESSION.DECRYPT) as session:
            private, public, _data, _digest, _ticket = esapi.create(parent, sensitive, template, session2=session)
        return SealedSecret(bytes(public.marshal()), bytes(private.marshal()))


def unseal(esapi: ESAPI, selection: PcrSelection, sealed: SealedSecret) -> bytes:
    """What was sealed. Raises `Fault(BUNDLE_SEALED)` when it was by another TPM, or in another state of its PCRs."""
    with _storage_key(esapi) as parent:
        try:
            return _unseal(esapi, parent, selection, sealed)
        except TSS2_Exception as error:
            if not is_answer(error):
                raise
            raise Fault(Reason.BUNDLE_SEALED, field="bundle", internal=str(error)) from error


def _unseal(esapi: ESAPI, parent: ESYS_TR, selection: PcrSelection, sealed: SealedSecret) -> bytes:
    private, _rest = TPM2B_PRIVATE.unmarshal(sealed.private)
    public, _rest = TPM2B_PUBLIC.unmarshal(sealed.public)
    loaded = esapi.load(parent, private, public)
    try:
        with _session(esapi, parent, TPM2_SE.POLICY, TPMA_SESSION.ENCRYPT) as session:
            esapi.policy_pcr(session, b"", _pcrs(selection))
            data = esapi.unseal(loaded, session1=session)
            return bytes(data)
    finally:
        esapi.flush_context(loaded)


def _policy(esapi: ESAPI, selection: PcrSelection) -> bytes:
    """The digest of PolicyPCR over what the PCRs hold now."""
    session = esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.TRIAL, None, TPM2_ALG.SHA256)
    try:
        esapi.policy_pcr(session, b"", _pcrs(selection))
        digest = esapi.policy_get_digest(session)
        return bytes(digest)
    finally:
        esapi.flush_context(session)


@contextmanager
def _session(esapi: ESAPI, parent: ESYS_TR, kind: TPM2_SE, encrypting: TPMA_SESSION) -> Iterator[ESYS_TR]:
    session = esapi.start_auth_session(parent, ESYS_TR.NONE, kind, _ENCRYPTED, TPM2_ALG.SHA256)
    try:
        esapi.trsess_set_attributes(session, encrypting | TPMA_SESSION.CONTINUESESSION)
        yield session
    finally:
        esapi.flush_context(session)


@contextmanager
def _storage_key(esapi: ESAPI) -> Iterator[ESYS_TR]:
    """The standard ECC storage primary of the owner hierarchy (TCG TPM v2.0 Provisioning Guidance §7.5.1)."""
    parent, _public, _data, _digest, _ticket = esapi.create_primary(None, _storage_template(), ESYS_TR.OWNER)
    try:
        yield parent
    finally:
        esapi.flush_context(parent)


def _storage_template() -> TPM2B_PUBLIC:
    symmetric = TPMT_SYM_DEF_OBJECT(
        algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=128), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB)
    )
    parameters = TPMS_ECC_PARMS(
        symmetric=symmetric,
        scheme=TPMT_ECC_SCHEME(scheme=TPM2_ALG.NULL),
        curveID=TPM2_ECC.NIST_P256,
        kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
    )
    return TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC(
            type=TPM2_ALG.ECC,
            nameAlg=TPM2_ALG.SHA256,
            objectAttributes=_STORAGE,
            parameters=TPMU_PUBLIC_PARMS(eccDetail=parameters),
        )
    )


def _template(policy: bytes) -> TPM2B_PUBLIC:
    scheme = TPMS_KEYEDHASH_PARMS(scheme=TPMT_KEYEDHASH_SCHEME(scheme=TPM2_ALG.NULL))
    return TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC(
            type=TPM2_ALG.KEYEDHASH,
            nameAlg=TPM2_ALG.SHA256,
            objectAttributes=_OF_THIS_TPM,
            authPolicy=policy,
            parameters=TPMU_PUBLIC_PARMS(keyedHashDetail=scheme),
        )
    )


def _pcrs(selection: PcrSelection) -> str:
    return f"{selection.bank}:{','.join(map(str, selection.indices))}"
