"""The EK templates that are allowed, exactly (TCG EK Credential Profile v2.6, Annex B.3, B.4, B.6)."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.algorithms import P256, P384, SHA256, SHA384, Curve, Hash
from pki.tpm.public import RSA_DEFAULT_EXPONENT, Attribute, EccKey, Public, RsaKey

# L templates are used by PolicySecret(endorsement) alone; H templates by authorisation value or policy.
_LOW = (
    Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.ADMIN_WITH_POLICY
    | Attribute.RESTRICTED
    | Attribute.DECRYPT
)
_HIGH = _LOW | Attribute.USER_WITH_AUTH
_POLICY_A_SHA256 = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_POLICY_B_SHA256 = bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
_POLICY_B_SHA384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)


@dataclass(frozen=True, slots=True)
class Template:
    """Everything in an EK's public area but its key. `size` is RSA's in bits, or the curve."""

    name: str
    name_hash: Hash
    attributes: Attribute
    auth_policy: bytes
    aes_bits: int
    size: int | Curve

    def matches(self, ek: Public) -> bool:
        wanted = (self.name_hash, self.attributes, self.auth_policy, self.aes_bits, None)
        found = (ek.name_hash, ek.attributes, ek.auth_policy, ek.aes_bits, ek.scheme)
        return found == wanted and self._has_size(ek.key)

    def _has_size(self, key: RsaKey | EccKey) -> bool:
        if isinstance(key, EccKey):
            return key.curve == self.size
        return key.bits == self.size and key.public_exponent == RSA_DEFAULT_EXPONENT


# H-4 (P-521), H-5 (SM2) and their like are left out: no TPM with their certificates was at hand to check against.
TEMPLATES = (
    Template("L-1", SHA256, _LOW, _POLICY_A_SHA256, 128, 2048),
    Template("L-2", SHA256, _LOW, _POLICY_A_SHA256, 128, P256),
    Template("H-1", SHA256, _HIGH, _POLICY_B_SHA256, 128, 2048),
    Template("H-2", SHA256, _HIGH, _POLICY_B_SHA256, 128, P256),
    Template("H-3", SHA384, _HIGH, _POLICY_B_SHA384, 256, P384),
    Template("H-6", SHA384, _HIGH, _POLICY_B_SHA384, 256, 3072),
    Template("H-7", SHA384, _HIGH, _POLICY_B_SHA384, 256, 4096),
)


def check_template(ek: Public, path: str) -> Template:
    """The template that `ek` follows to the last bit. Raises `Fault(EK_TEMPLATE_REFUSED)`."""
    for template in TEMPLATES:
        if template.matches(ek):
            return template
    raise Fault(Reason.EK_TEMPLATE_REFUSED, field=path)
