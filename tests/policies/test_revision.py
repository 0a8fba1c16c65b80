"""Revisions: built the same each time, signed, and refused unless whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.archive import MAX_CONTENT_BYTES, pack, unpack
from policies.lifecycle.revision import Revision, build, verify
from policies.settings import CompileSettings, PolicySettings
from policies.signed import MANIFEST, SIGNATURE
from policies.signing import (
    MANIFEST_PURPOSE,
    SigningKey,
    check_signature,
    load_signing_key,
    parse_verifying_key,
    public_pem,
    sign,
)
from policies.wasm import WasmEngine
from tests.support.policy import starter, workspace
from tests.support.signing import new_signing_key, store_signing_key
from tests.support.workspaces import query

KEY = new_signing_key()
PUBLIC = KEY.public_key()


@cache
def revision() -> Revision:
    return build(starter(), 7, 1_800_000_000, CompileSettings())


@cache
def archive() -> bytes:
    return revision().signed(KEY)


def refused(raw: bytes, reason: Reason = Reason.REVISION_MALFORMED, floor: int = 0) -> str:
    with pytest.raises(Fault) as caught:
        verify(raw, PUBLIC, floor)
    assert caught.value.reason is reason
    return caught.value.field or caught.value.detail


def resigned(change: Callable[[dict[str, Any]], None], members: dict[str, bytes] | None = None) -> bytes:
    """The archive with another manifest, signed by the right key: what only its holder could make."""
    manifest = json.loads(revision().manifest)
    change(manifest)
    return Revision(7, json.dumps(manifest).encode(), members or revision().members).signed(KEY)


def test_what_was_built_is_what_is_loaded() -> None:
    loaded = verify(archive(), PUBLIC, 6)
    assert (loaded.number, loaded.created, loaded.digest) == (7, 1_800_000_000, revision().digest)
    assert loaded.routes == starter().routes
    assert loaded.compiled.data == starter().data
    assert dict(loaded.compiled.rego) == dict(starter().rego)


def test_every_kind_of_route_survives() -> None:
    found = workspace(
        routes="routes:\n"
        "  - {name: r, upstreams: ['https://[::1]:1'], ca_file: /c, kinds: [node], connect_timeout: 15ms,\n"
        "     idle_timeout: 2s, timeout: 1h}\n"
        "  - {name: s, type: stream, service: ssh, kinds: [node], class: tolerant}\n"
    )
    assert verify(build(found, 1, 0, CompileSettings()).signed(KEY), PUBLIC, 0).routes == found.routes


async def test_a_loaded_revision_decides() -> None:
    engine = WasmEngine(verify(archive(), PUBLIC, 0).compiled, PolicySettings(decision_timeout=5.0))
    assert engine.decide_now(query()).grant == "agent-health"
    await engine.close()


def test_the_same_workspace_gives_the_same_bytes() -> None:
    again = build(starter(), 7, 1_800_000_000, CompileSettings())
    assert (again.manifest, dict(again.members)) == (revision().manifest, dict(revision().members))
    assert build(starter(), 8, 1_800_000_000, CompileSettings()).digest != again.digest


def test_anybody_s_tar_can_list_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(archive())) as found:
        assert found.getnames()[:2] == [MANIFEST, SIGNATURE]
        assert "rego/decision.rego" in found.getnames()


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())])
def test_either_algorithm_signs(key: SigningKey, tmp_path: Path) -> None:
    store_signing_key(tmp_path / "key.pem", key)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    signed = revision().signed(load_signing_key(tmp_path / "key.pem"))
    assert verify(signed, parse_verifying_key(public_pem(key)), 0).number == 7
    with pytest.raises(FileExistsError):
        store_signing_key(tmp_path / "key.pem", key)


def test_another_key_s_signature_is_refused() -> None:
    refused(revision().signed(new_signing_key()), Reason.REVISION_SIGNATURE)
    refused(revision().signed(ed25519.Ed25519PrivateKey.generate()), Reason.REVISION_SIGNATURE)


def test_a_signature_for_another_purpose_is_refused() -> None:
    with pytest.raises(Fault):
        check_signature(PUBLIC, MANIFEST_PURPOSE, b"m", sign(KEY, b"approval 1\0", b"m"))


def test_the_number_must_rise() -> None:
    assert verify(archive(), PUBLIC, 6).number == 7
    assert refused(archive(), Reason.REVISION_DOWNGRADE, floor=7) == "number"
    assert refused(archive(), Reason.REVISION_DOWNGRADE, floor=8) == "number"


def test_a_number_below_one_is_not_built() -> None:
    with pytest.raises(Fault, match="from 1"):
        build(starter(), 0, 0, CompileSettings())


@pytest.mark.parametrize("name", [*sorted(revision().members)])
def test_a_changed_member_is_refused(name: str) -> None:
    members = unpack(archive())
    members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])
    assert refused(pack(members)) == name


def test_members_are_those_of_the_manifest() -> None:
    members = unpack(archive())
    without = {name: content for name, content in members.items() if name != "rego/denying.rego"}
    assert refused(pack(without)) == "members"
    assert refused(pack({**members, "rego/more.rego": b"package x"})) == "members"
    swapped = {**members, "rego/decision.rego": members["rego/denying.rego"]}
    assert refused(pack(swapped)) == "rego/decision.rego"
    late = {**{name: members[name] for name in (SIGNATURE, MANIFEST)}, **members}
    assert "begin with" in refused(pack(late))


def test_a_signed_manifest_is_still_read_strictly() -> None:
    assert refused(resigned(lambda found: found.update(number=0))) == "manifest.number"
    assert refused(resigned(lambda found: found.update(format=2))) == "manifest.format"
    assert refused(resigned(lambda found: found.update(extra=1))) == "manifest"
    assert refused(resigned(lambda found: found.update(policy="0" * 64))) == "policy"
    assert refused(resigned(lambda found: found["approval"].update(threshold=2))) == "manifest.approval.threshold"
    assert refused(resigned(lambda found: found["members"].pop())) == "members"


def test_a_member_of_unknown_use_is_refused() -> None:
    extra = {"name": "setup.sh", "size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    raw = resigned(lambda found: found["members"].append(extra), {**revision().members, "setup.sh": b"x"})
    assert refused(raw) == "setup.sh"


def test_what_is_no_archive_is_refused() -> None:
    plain = gzip.decompress(archive())
    for raw in (
        b"",
        b"not gzip",
        archive()[:-1],
        archive() + b"\0",
        archive() + archive(),
        gzip.compress(plain + bytes(512)),
        gzip.compress(plain[:-512]),
        gzip.compress(plain[:512]),
        gzip.compress(b""),
        gzip.compress(bytes(1024)),
    ):
        refused(raw)


def test_an_archive_that_unpacks_without_end_is_refused_early() -> None:
    assert "unpacked" in refused(gzip.compress(bytes(MAX_CONTENT_BYTES + 1)))


def test_two_members_of_one_name_are_refused() -> None:
    members = unpack(archive())
    first = pack({MANIFEST: members[MANIFEST]})
    doubled = gzip.decompress(first)[:-1024] + gzip.decompress(archive())
    assert "twice" in refused(gzip.compress(doubled))


@given(st.integers(0, 10_000_000), st.integers(1, 255))
@settings(max_examples=120, deadline=None)
def test_not_one_byte_may_change(position: int, change: int) -> None:
    plain = bytearray(gzip.decompress(archive()))
    plain[position % len(plain)] ^= change
    with pytest.raises(Fault):
        verify(gzip.compress(bytes(plain)), PUBLIC, 0)


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=200, deadline=None)
def test_whatever_arrives_is_a_fault(raw: bytes, packed: bool) -> None:
    with pytest.raises(Fault):
        verify(gzip.compress(raw) if packed else raw, PUBLIC, 0)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,3}", fullmatch=True), st.binary(max_size=1500), max_size=5
    )
)
@settings(max_examples=60, deadline=None)
def test_pack_and_unpack_are_each_other_s_inverse(members: dict[str, bytes]) -> None:
    assert list(unpack(pack(members)).items()) == list(members.items())


def _pem(key: Any) -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem


@pytest.mark.parametrize(
    "pem",
    [
        b"nothing",
        _pem(ec.generate_private_key(ec.SECP384R1())),
        _pem(rsa.generate_private_key(65537, 2048)),
    ],
)
def test_another_kind_of_key_signs_nothing(pem: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem)
    path.chmod(0o600)
    with pytest.raises(Fault) as caught:
        load_signing_key(path)
    assert caught.value.reason is Reason.SIGNER_FAILED


def test_a_key_that_others_may_read_signs_nothing(tmp_path: Path) -> None:
    store_signing_key(tmp_path / "key.pem", KEY)
    (tmp_path / "key.pem").chmod(0o640)
    with pytest.raises(Fault) as caught:
        load_signing_key(tmp_path / "key.pem")
    assert caught.value.reason is Reason.FILE_MODE_UNSAFE


def test_another_kind_of_public_key_verifies_nothing() -> None:
    curve = ec.generate_private_key(ec.SECP384R1()).public_key()
    pem = curve.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for text in (b"", b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n", pem):
        with pytest.raises(Fault) as caught:
            parse_verifying_key(text)
        assert caught.value.reason is Reason.REVISION_SIGNATURE
