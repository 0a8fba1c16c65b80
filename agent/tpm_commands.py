"""What the agent asks of a TPM 2.0, command by command, over tpm2-pytss; on the worker thread of `agent.tpm` only.

Laws held here:
- nothing of pytss leaves: every function returns bytes, and parents of nested values are bound to names, for a nested
  pytss value outlives its parent one level deep only;
- whatever is loaded is flushed in `finally`: without a resource manager there are three places for objects.

Keys (TPM 2.0 Part 3 §12.1 Create, §24.1 CreatePrimary):
- EK: recreated by its TCG template (EK Credential Profile v2.6, Annex B) from the endorsement seed;
- AK: a restricted P-256 signing key, a primary of the endorsement hierarchy, hence the same after each boot. In the
  owner hierarchy it would report resetCount, restartCount and firmware obfuscated (Part 1 §36.7);
- TLS key: an ordinary P-256 signing key under the standard ECC storage primary of the owner hierarchy, kept as a
  TSS 2.0 key file, which tpm2-openssl and tpm2-tss-engine read as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_SE, TPMA_OBJECT
from tpm2_pytss.tsskey import TSSPrivKey
from tpm2_pytss.types import (
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPMT_PUBLIC,
    TPMT_SIG_SCHEME,
    TPMT_TK_HASHCHECK,
)
from tpm2_pytss.utils import NoSuchIndex, NVReadEK, create_ek_template

from agent.tpm_values import EK_TEMPLATES, Attested, EndorsementKey, TlsKeyFile
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import MAX_CHAIN_CERTIFICATES, PcrSelection

_SIGNING = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA  # no password, hence none to guess: a lockout that others cause must not stop the node
    | TPMA_OBJECT.SIGN_ENCRYPT
)
_AK_ATTRIBUTES = _SIGNING | TPMA_OBJECT.RESTRICTED
_ECDSA = "ecc256:ecdsa-sha256:null"
# Makes the AK ours alone among the endorsement hierarchy's possible P-256 signing primaries.
_AK_UNIQUE = hashlib.sha256(b"sallyport attestation key v1").digest()
_CHAIN_FIRST, _CHAIN_LAST = 0x01C00100, 0x01C001FF  # EK Credential Profile v2.6 §2.2.1.4
_TRANSIENT_FIRST, _TRANSIENT_LAST = 0x80000000, 0x80FFFFFF  # TPM 2.0 Part 2 §7.2
_PCRS_AT_ONCE = 8  # TPM2_PCR_Read answers at most eight digests, silently
_QUOTE_ATTEMPTS = 5
_LAYER_SHIFT = 16
_KEY_SCHEME = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)


def is_answer(error: TSS2_Exception) -> bool:
    """Whether the TPM itself said no; else the way to it failed (TSS 2.0 Overview §4: layers in bits 16 to 23)."""
    return int(error.rc) >> _LAYER_SHIFT == 0


def flush_leftovers(esapi: ESAPI) -> None:
    """Remove transient objects that a crashed predecessor left. A resource manager shows none of other programs'."""
    for handle in _handles(esapi, _TRANSIENT_FIRST, _TRANSIENT_LAST):
        esapi.flush_context(esapi.tr_from_tpmpublic(handle))


def read_endorsement_key(esapi: ESAPI, wanted: str) -> EndorsementKey:
    """The EK of the template `wanted`, or with an empty one of the first template whose certificate is in NV. Raises
    `Fault(EK_CERTIFICATE_MISSING)`."""
    read_nv = NVReadEK(esapi)
    for name in (wanted,) if wanted else EK_TEMPLATES:
        found = _certificate_and_template(name, read_nv)
        if found:
            with _primary(esapi, found[1], ESYS_TR.ENDORSEMENT) as (_, public):
                return EndorsementKey(name, found[0], _read_chain(esapi, read_nv), _public_area(public))
    raise Fault(Reason.EK_CERTIFICATE_MISSING, "the TPM's NV holds no EK certificate", field="ek")


def read_attestation_key(esapi: ESAPI) -> bytes:
    """The AK's TPMT_PUBLIC."""
    with _primary(esapi, _ak_template(), ESYS_TR.ENDORSEMENT) as (_, public):
        return _public_area(public)


def create_tls_key(esapi: ESAPI) -> TlsKeyFile:
    """A new TLS key; nothing of it stays loaded."""
    template = TPMT_PUBLIC.parse(_ECDSA, objectAttributes=_SIGNING)
    return _key_file(TSSPrivKey.create(esapi, template))


def read_tls_key(pem: bytes) -> TlsKeyFile:
    """The key that a TSS 2.0 key file describes. Raises `Fault(TLS_KEY_UNUSABLE)`."""
    try:
        return _key_file(TSSPrivKey.from_pem(pem))
    except (ValueError, TypeError, TSS2_Exception) as error:
        raise Fault(Reason.TLS_KEY_UNUSABLE, "not a TSS 2.0 key file", internal=str(error)) from error


def load_tls_key(esapi: ESAPI, key: TlsKeyFile) -> ESYS_TR:
    """The loaded key; the caller flushes it. Raises `Fault(TLS_KEY_UNUSABLE)` when it is not of this TPM."""
    try:
        return TSSPrivKey.from_pem(key.pem).load(esapi)
    except TSS2_Exception as error:
        if not is_answer(error):
            raise
        detail = "this TPM does not load it: was the TPM cleared or changed?"
        raise Fault(Reason.TLS_KEY_UNUSABLE, detail, field="tls_key", internal=str(error)) from error


def sign(esapi: ESAPI, loaded: ESYS_TR, digest: bytes) -> bytes:
    """A TPMT_SIGNATURE over a SHA-256 digest."""
    signature = esapi.sign(loaded, digest, _KEY_SCHEME, TPMT_TK_HASHCHECK(tag=0x8024, hierarchy=0x40000007))
    return bytes(signature.marshal())


def certify(esapi: ESAPI, key: TlsKeyFile, qualifying: bytes) -> Attested:
    """The AK's statement (TPM2_Certify) that `key` is in this TPM with the attributes of its public area."""
    loaded = load_tls_key(esapi, key)
    try:
        with _primary(esapi, _ak_template(), ESYS_TR.ENDORSEMENT) as (ak, _):
            attest, signature = esapi.certify(loaded, ak, qualifying, _KEY_SCHEME)
            return Attested(bytes(attest), bytes(signature.marshal()))
    finally:
        esapi.flush_context(loaded)


def quote(esapi: ESAPI, selection: PcrSelection, qualifying: bytes) -> tuple[Attested, tuple[bytes, ...]]:
    """The AK's quote over `selection`, and the values quoted. A PCR may move between the two, so they are taken until
    they agree: TPMS_QUOTE_INFO ends with their digest (Part 2 §10.12.4)."""
    pcrs = f"{selection.bank}:{','.join(map(str, selection.indices))}"
    with _primary(esapi, _ak_template(), ESYS_TR.ENDORSEMENT) as (ak, _):
        for _attempt in range(_QUOTE_ATTEMPTS):
            values = read_pcrs(esapi, selection)
            attest, signature = esapi.quote(ak, pcrs, qualifying)
            quoted = Attested(bytes(attest), bytes(signature.marshal()))
            if quoted.attest.endswith(hashlib.sha256(b"".join(values)).digest()):
                return quoted, values
    raise Fault(Reason.QUOTE_DIGEST, f"PCRs {pcrs} keep changing")


def read_pcrs(esapi: ESAPI, selection: PcrSelection) -> tuple[bytes, ...]:
    """The values in the order of the indices. Raises `Fault(QUOTE_SELECTION)` when the bank is not active."""
    values: list[bytes] = []
    for start in range(0, len(selection.indices), _PCRS_AT_ONCE):
        indices = selection.indices[start : start + _PCRS_AT_ONCE]
        _, _, digests = esapi.pcr_read(f"{selection.bank}:{','.join(map(str, indices))}")
        values += [bytes(digests[i]) for i in range(len(digests))]
    if len(values) != len(selection.indices):
        raise Fault(Reason.QUOTE_SELECTION, f"the PCR bank {selection.bank} is not active in this TPM")
    return tuple(values)


def activate(esapi: ESAPI, template: str, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
    """What TPM2_ActivateCredential (Part 3 §12.5) frees: the proof that EK and AK are in one TPM. Raises
    `Fault(TPM_STRUCTURE_MALFORMED)`."""
    blob = TPM2B_ID_OBJECT(_sized(credential_blob, "credential_blob"))
    secret = TPM2B_ENCRYPTED_SECRET(_sized(encrypted_secret, "encrypted_secret"))
    found = _certificate_and_template(template, NVReadEK(esapi))
    if not found:
        raise Fault(Reason.EK_CERTIFICATE_MISSING, field="ek")
    with (
        _primary(esapi, found[1], ESYS_TR.ENDORSEMENT) as (ek, _),
        _primary(esapi, _ak_template(), ESYS_TR.ENDORSEMENT) as (ak, _),
        _ek_session(esapi, template) as session,
    ):
        return bytes(esapi.activate_credential(ak, ek, blob, secret, session2=session))


@contextmanager
def _primary(esapi: ESAPI, template: TPM2B_PUBLIC, hierarchy: ESYS_TR) -> Iterator[tuple[ESYS_TR, TPM2B_PUBLIC]]:
    handle, public, _data, _digest, _ticket = esapi.create_primary(None, template, hierarchy)
    try:
        yield handle, public
    finally:
        esapi.flush_context(handle)


@contextmanager
def _ek_session(esapi: ESAPI, template: str) -> Iterator[ESYS_TR]:
    """The authorisation of an EK: the H templates take the empty password, the L templates a policy of
    PolicySecret(endorsement) (EK Credential Profile v2.6, Annex B.3, B.6)."""
    if template.startswith("EK-HIGH"):
        yield ESYS_TR.PASSWORD
        return
    session = esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, None, TPM2_ALG.SHA256)
    try:
        esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, expiration=0)
        yield session
    finally:
        esapi.flush_context(session)


def _ak_template() -> TPM2B_PUBLIC:
    area = TPMT_PUBLIC.parse(_ECDSA, objectAttributes=_AK_ATTRIBUTES)
    area.unique.ecc.x = _AK_UNIQUE
    area.unique.ecc.y = bytes(32)
    return TPM2B_PUBLIC(publicArea=area)


def _certificate_and_template(name: str, read_nv: NVReadEK) -> tuple[bytes, TPM2B_PUBLIC] | None:
    """pytss answers a missing certificate with `None` for some templates and `ValueError` for others."""
    try:
        raw, template = create_ek_template(name, read_nv)
    except ValueError:
        return None
    return (_der_values(raw)[0], template) if raw else None


def _read_chain(esapi: ESAPI, read_nv: NVReadEK) -> tuple[bytes, ...]:
    """The certificates between the EK's and the root: DER after DER, over as many indices as the maker needed."""
    raw = b""
    for index in _handles(esapi, _CHAIN_FIRST, _CHAIN_LAST):
        try:
            raw += read_nv(index)
        except NoSuchIndex:
            break
    return _der_values(raw)[:MAX_CHAIN_CERTIFICATES]


def _der_values(raw: bytes) -> tuple[bytes, ...]:
    """The DER SEQUENCEs with two length octets (X.690 §8.1.3.5) that stand one after the other; NV areas may be padded,
    and an authority refuses padding."""
    values: list[bytes] = []
    while raw[:2] == b"\x30\x82" and len(raw) >= 4 + int.from_bytes(raw[2:4], "big"):
        end = 4 + int.from_bytes(raw[2:4], "big")
        values.append(raw[:end])
        raw = raw[end:]
    return tuple(values)


def _handles(esapi: ESAPI, first: int, last: int) -> list[int]:
    _more, capability = esapi.get_capability(TPM2_CAP.HANDLES, first, 254)
    union = capability.data
    handles = union.handles
    return [int(handles[i]) for i in range(len(handles)) if int(handles[i]) <= last]


def _key_file(key: TSSPrivKey) -> TlsKeyFile:
    public = key.public
    return TlsKeyFile(key.to_pem(), _public_area(public), bytes(public.to_der()))


def _public_area(public: TPM2B_PUBLIC) -> bytes:
    """TPMT_PUBLIC, from TPM2B_PUBLIC's marshalled form without its size field."""
    return bytes(public.marshal()[2:])


def _sized(raw: bytes, field: str) -> bytes:
    """The content of a TPM2B. pytss would ignore what is left over."""
    if len(raw) < 2 or int.from_bytes(raw[:2], "big") != len(raw) - 2:
        raise Fault(Reason.TPM_STRUCTURE_MALFORMED, "not one TPM2B", field=field)
    return raw[2:]
