"""The EK templates, against those of tpm2-pytss."""

from __future__ import annotations

import pytest
from tpm2_pytss.constants import TPM2_ALG
from tpm2_pytss.utils import NoSuchIndex, create_ek_template

from pki.tpm.templates import TEMPLATES, Template

THEIR_NAMES = {
    "L-1": "EK-RSA2048",
    "L-2": "EK-ECC256",
    "H-1": "EK-HIGH-RSA2048",
    "H-2": "EK-HIGH-ECC256",
    "H-3": "EK-HIGH-ECC384",
    "H-6": "EK-HIGH-RSA3072",
    "H-7": "EK-HIGH-RSA4096",
}
# Where certificates lie: EK Credential Profile v2.6 §2.2.1.4. Other indices would hold a template or nonce of its own.
CERTIFICATES = (0x01C00002, 0x01C0000A, *range(0x01C00012, 0x01C00020, 2))


def read_nv(index: int) -> bytes:
    if index not in CERTIFICATES:
        raise NoSuchIndex(index)
    return b"a certificate"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_pytss_has_the_same(template: Template) -> None:
    _, theirs = create_ek_template(THEIR_NAMES[template.name], read_nv)
    area = theirs.publicArea
    assert int(area.nameAlg) == template.name_hash.number
    assert int(area.objectAttributes) == int(template.attributes)
    assert bytes(area.authPolicy) == template.auth_policy
    rsa = area.type == TPM2_ALG.RSA
    parameters = area.parameters
    detail = parameters.rsaDetail if rsa else parameters.eccDetail
    assert int(detail.symmetric.keyBits.aes) == template.aes_bits
    assert detail.symmetric.mode.aes == TPM2_ALG.CFB
    assert detail.scheme.scheme == TPM2_ALG.NULL
    size = template.size if isinstance(template.size, int) else template.size.number
    assert int(detail.keyBits if rsa else detail.curveID) == size
