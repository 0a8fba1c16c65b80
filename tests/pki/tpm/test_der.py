"""Strict DER: one spelling for each value."""

from __future__ import annotations

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.der import MAX_DEPTH, check_der, children, content


def sequence(*values: str) -> bytes:
    body = b"".join(map(bytes.fromhex, values))
    return b"\x30" + bytes([len(body)]) + body


@pytest.mark.parametrize(
    "value",
    [
        "0101ff", "010100",  # BOOLEAN
        "020100", "02017f", "02020080", "020180", "0202ff7f",  # INTEGER
        "0303 0780 80".replace(" ", ""), "030100", "03020780",  # BIT STRING
        "0500", "06032a0304", "0400", "0c0141",
        "170d3234303130313030303030305a", "180f32303234303130313030303030305a",
        "3100", "3106020101020102", "a003020101", "8000", "3000",
    ],
)  # fmt: skip
def test_what_is_der_passes(value: str) -> None:
    check_der(sequence(value), Reason.CSR_MALFORMED, "x")


@pytest.mark.parametrize(
    "value",
    [
        "010101", "0102ffff", "0100",  # BOOLEAN: neither 00 nor FF
        "0200", "02020000", "02020001", "0202ff80", "0203000001",  # INTEGER: not the shortest
        "0300", "030101", "03020801", "03020781", "030201ff",  # BIT STRING: unused bits
        "050100", "0600", "06012a80", "06022a80", "0603802a03", "0604 2a800304".replace(" ", ""),
        "2404 04020000".replace(" ", ""), "230403020000", "1000", "1100",  # pieces; primitive SEQUENCE and SET
        "0281010a", "028200010a", "0480", "0488ffffffffffffffff", "0485000000000100",  # lengths
        "24800000", "30800000",  # indefinite
        "3106020102020101",  # SET out of order
        "1f810100", "04024100ff",  # a long tag; left over
        "170b323430313031303030305a", "17113234303130313030303030302b30313030", "180d3230323430313031303030305a",
    ],
)  # fmt: skip
def test_what_is_not_der_is_refused(value: str) -> None:
    with pytest.raises(Fault) as caught:
        check_der(sequence(value), Reason.CSR_MALFORMED, "x")
    assert caught.value.reason is Reason.CSR_MALFORMED


def test_padding_is_named() -> None:
    for tail in (b"\x00", b"\xff" * 100, sequence("0500")):
        with pytest.raises(Fault, match=f"{len(tail)} octets are left over"):
            check_der(sequence("0500") + tail, Reason.EK_CERTIFICATE_MALFORMED, "x")


def test_only_a_sequence_is_a_certificate_or_a_request() -> None:
    for raw in (b"", b"\x05\x00", b"\x02\x01\x00", b"\x30"):
        with pytest.raises(Fault):
            check_der(raw, Reason.CSR_MALFORMED, "x")


def test_depth_is_bounded() -> None:
    raw = b"\x30\x00"
    for _ in range(MAX_DEPTH - 1):
        raw = b"\x30" + bytes([len(raw)]) + raw
    check_der(raw, Reason.CSR_MALFORMED, "x")
    for _ in range(2):
        raw = b"\x30" + bytes([len(raw)]) + raw
    with pytest.raises(Fault, match="nested"):
        check_der(raw, Reason.CSR_MALFORMED, "x")


def test_children_are_the_values_inside() -> None:
    raw = sequence("020105", "3003020106")
    assert children(raw) == [bytes.fromhex("020105"), bytes.fromhex("3003020106")]
    assert content(children(raw)[0]) == b"\x05"
