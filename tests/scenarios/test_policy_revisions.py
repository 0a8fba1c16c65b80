"""What is published is what was signed, and only forward; what does not load leaves the revision before in force."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from policies.archive import pack, unpack
from policies.lifecycle.revision import Revision
from policies.signed import MANIFEST, SIGNATURE
from policies.signing import MANIFEST_PURPOSE, sign
from tests.support.system import System


@pytest.fixture(scope="module")
def bundle(system: System) -> Path:
    """The revision in force."""
    system.publish()
    return system.folder / f"revision-{system.revision}.bundle"


@pytest.fixture
def in_force(system: System, bundle: Path) -> Iterator[None]:
    """What is refused changes nothing: not what is enforced, not the log's integrity."""
    before = system.api.get("/v1/gateway")
    yield
    after = system.api.get("/v1/gateway")
    assert (after["numbers"]["policy"], after["policy_digest"]) == (
        before["numbers"]["policy"],
        before["policy_digest"],
    )
    assert not [e for e in system.audited() if e["kind"] == "policy.published" and e["subject"] == "revision 999"]


def _enforced(system: System) -> tuple[int, str]:
    shown = system.api.get("/v1/gateway")
    return shown["numbers"]["policy"], shown["policy_digest"]


def _refused(system: System, content: bytes) -> str:
    """The reason."""
    path = system.folder / "refused.bundle"
    path.write_bytes(content)
    done = system.operate("policy", "publish", str(path), "--json", expect=1)
    (fault,) = done.json["faults"]
    assert fault["remedy"]
    return str(fault["reason"])


@pytest.mark.usefixtures("in_force")
@pytest.mark.parametrize("back", [0, 1])
def test_a_number_that_does_not_rise_is_refused(system: System, bundle: Path, back: int) -> None:
    assert _refused(system, system.renumbered(bundle, system.revision - back).read_bytes()) == "revision_downgrade"


@pytest.mark.usefixtures("in_force")
def test_another_key_is_refused(system: System, bundle: Path) -> None:
    members = unpack(system.renumbered(bundle, 999).read_bytes())
    members[SIGNATURE] = sign(ec.generate_private_key(ec.SECP256R1()), MANIFEST_PURPOSE, members[MANIFEST])
    assert _refused(system, pack(members)) == "revision_signature"


@pytest.mark.usefixtures("in_force")
def test_a_revision_without_signature_is_refused(system: System, bundle: Path) -> None:
    members = unpack(system.renumbered(bundle, 999).read_bytes())
    del members[SIGNATURE]
    assert _refused(system, pack(members)) in {"revision_signature", "revision_malformed"}


@pytest.mark.usefixtures("in_force")
@pytest.mark.parametrize("member", [MANIFEST, "data.json", "policy.wasm", "routes.json"])
def test_a_changed_member_is_refused(system: System, bundle: Path, member: str) -> None:
    members = unpack(system.renumbered(bundle, 999).read_bytes())
    members[member] = members[member].replace(b"e", b"f", 1)
    assert _refused(system, pack(members)) in {"revision_signature", "revision_malformed"}


@pytest.mark.usefixtures("in_force")
def test_a_workspace_with_a_fault_is_not_built_and_the_fault_is_told_with_its_line(
    system: System, tmp_path: Path
) -> None:
    grants = (system.workspace / "grants.yaml").read_text()
    workspace = tmp_path / "policy"
    workspace.mkdir()
    for path in system.workspace.iterdir():
        (workspace / path.name).write_bytes(path.read_bytes())
    (workspace / "grants.yaml").write_text(grants.replace("route: control-plane", "route: nowhere", 1))
    words = ["policy", "build", str(workspace), "--number", "999", "--key", str(system.authority / "policy.key")]
    told = system.run(*words, "--out", str(tmp_path / "bundle"), expect=1).err
    assert "grants.yaml:" in told
    assert "nowhere" in told
    assert not (tmp_path / "bundle").exists()


def test_a_signed_revision_that_does_not_load_is_refused_where_it_is_published(system: System, bundle: Path) -> None:
    before = _enforced(system)
    broken = _with_broken_wasm(system, bundle, system.revision + 1)
    path = system.folder / "broken.bundle"
    path.write_bytes(broken)
    refused = system.operate("policy", "publish", str(path), expect=1)
    assert "engine_failed" in refused.err
    assert _enforced(system) == before
    with system.connect_operator("api") as client:
        assert client.get("/v1/inventory").status == 200

    system.revision += 1  # the number was not used up
    mended = system.renumbered(bundle, system.revision)
    system.operate("policy", "publish", str(mended))
    system.enforces(system.revision)


def _with_broken_wasm(system: System, bundle: Path, number: int) -> bytes:
    members = unpack(system.renumbered(bundle, number).read_bytes())
    del members[SIGNATURE]
    manifest = json.loads(members.pop(MANIFEST))
    members["policy.wasm"] = b"\x00asm\x01\x00\x00\x00\xff"
    for member in manifest["members"]:
        content = members[member["name"]]
        member |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return Revision(number, json.dumps(manifest, sort_keys=True).encode(), members).signed(system.policy_key)
