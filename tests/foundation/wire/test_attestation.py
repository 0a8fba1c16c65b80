"""The extension must be one that every X.509 library reads."""

from __future__ import annotations

from uuid import UUID

from foundation.wire.attestation import ATTESTATION_OID


def test_every_arc_of_the_oid_is_one_that_all_must_understand() -> None:
    assert all(int(arc) < 1 << 28 for arc in ATTESTATION_OID.dotted_string.split("."))  # RFC 5280, appendix B


def test_the_oid_is_the_uuid() -> None:
    arcs = [int(arc) for arc in ATTESTATION_OID.dotted_string.split(".")[7:]]
    widths = (4, 4, 4, 4, 4, 6, 6)
    spelled = "".join(f"{arc:0{width}x}" for arc, width in zip(arcs, widths, strict=True))
    assert UUID(spelled) == UUID("b5793a94-628e-4ddc-abf4-1e3861f3f789")
