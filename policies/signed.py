"""A signed revision, verified: what gateways and nodes take from an archive before anything of it is used.

Laws held here:
- the signature is over the manifest's bytes as they stand in the archive; nothing of them is parsed before it verifies;
- the manifest names every member with size and digest, and nothing else is in the archive;
- a number at or below the floor is refused, whoever signed it;
- the revision's digest, which approvers sign, is that of the manifest.

How one is built is in `policies.lifecycle.revision`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from foundation.faults import Fault
from foundation.fields import Fields, strict_json
from foundation.reasons import Reason
from policies.archive import unpack
from policies.compile import policy_digest
from policies.engine import CompiledPolicy
from policies.projection import DataReads
from policies.signing import MANIFEST_PURPOSE, VerifyingKey, check_signature

FORMAT = 1
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
REGO = "rego/"
_FIXED = ("data.json", "data-reads.json", "policy.wasm", "reads.json", "routes.json")
_MAX_MANIFEST_BYTES = 256 << 10
_MAX_SIGNATURE_BYTES = 256


@dataclass(frozen=True, slots=True)
class SignedRevision:
    """What verified. `digest` is the manifest's SHA-256 in lower-case hex, `created` in seconds since the Unix epoch;
    `members` are the archive's by name, of which `compiled` is made."""

    number: int
    digest: str
    created: int
    compiled: CompiledPolicy
    members: Mapping[str, bytes]


def verify(archive: bytes, key: VerifyingKey, floor: int) -> SignedRevision:
    """The revision in `archive`, signed by `key` and numbered above `floor`, the highest number ever enforced here.
    (Who loads the enforced revision again, after a restart, passes the number before it.)

    Raises `Fault`: `REVISION_SIGNATURE`, `REVISION_DOWNGRADE`, or `REVISION_MALFORMED` for everything else.
    """
    # 1. The container is in its one canonical form, within its bounds.
    members = unpack(archive)
    # 2. Manifest and signature come first, and the signature is of this manifest by the pinned key.
    manifest = _verified_manifest(members, key)
    # 3. The manifest is one, and its number is above the floor.
    stated = _Manifest.parse(Fields.from_json(manifest, "manifest", Reason.REVISION_MALFORMED, max_bytes=len(manifest)))
    if stated.number <= floor:
        raise Fault(Reason.REVISION_DOWNGRADE, f"number {stated.number}, the highest seen is {floor}", field="number")
    # 4. The members are exactly those that the manifest names, each of its size and digest.
    contents = {name: content for name, content in members.items() if name not in {MANIFEST, SIGNATURE}}
    _check_members(stated, contents)
    # 5. Their content is a policy, and has the digest that the manifest states.
    compiled = _compiled(contents)
    if not hmac.compare_digest(compiled.digest, stated.policy):
        raise Fault(Reason.REVISION_MALFORMED, "the policy's digest is another", field="policy")
    digest = hashlib.sha256(manifest).hexdigest()
    return SignedRevision(stated.number, digest, stated.created, compiled, contents)


@dataclass(frozen=True, slots=True)
class _Manifest:
    number: int
    created: int
    policy: str
    members: tuple[tuple[str, int, str], ...]

    @classmethod
    def parse(cls, fields: Fields) -> _Manifest:
        if fields.integer("format") != FORMAT:
            raise fields.fault("format", f"expected {FORMAT}")
        manifest = cls(
            number=fields.integer("number", least=1),
            created=fields.integer("created"),
            policy=fields.text("policy", max_length=64),
            members=fields.each("members", _member),
        )
        approval = fields.section("approval")
        if approval.integer("threshold") != 0 or approval.texts("approvers") != ():
            raise approval.fault("threshold", "approvals are not known to this version")
        approval.finish()
        fields.finish()
        return manifest


def _member(fields: Fields) -> tuple[str, int, str]:
    member = fields.text("name", max_length=256), fields.integer("size"), fields.text("sha256", max_length=64)
    fields.finish()
    return member


def _verified_manifest(members: Mapping[str, bytes], key: VerifyingKey) -> bytes:
    if list(members)[:2] != [MANIFEST, SIGNATURE]:
        raise Fault(Reason.REVISION_MALFORMED, f"the archive does not begin with {MANIFEST} and {SIGNATURE}")
    manifest, signature = members[MANIFEST], members[SIGNATURE]
    if len(manifest) > _MAX_MANIFEST_BYTES or len(signature) > _MAX_SIGNATURE_BYTES:
        raise Fault(Reason.REVISION_MALFORMED, "manifest or signature is too large")
    check_signature(key, MANIFEST_PURPOSE, manifest, signature)
    return manifest


def _check_members(manifest: _Manifest, contents: Mapping[str, bytes]) -> None:
    names = [name for name, _, _ in manifest.members]
    if names != list(contents) or not set(_FIXED) <= set(names):
        raise Fault(Reason.REVISION_MALFORMED, "the members are not those that the manifest names", field="members")
    for name, size, digest in manifest.members:
        if name not in _FIXED and not name.startswith(REGO):
            raise Fault(Reason.REVISION_MALFORMED, "a member of unknown use", field=name)
        found = hashlib.sha256(contents[name]).hexdigest()
        if len(contents[name]) != size or not hmac.compare_digest(found, digest):
            raise Fault(Reason.REVISION_MALFORMED, "size or digest is not that of the manifest", field=name)


def _compiled(contents: Mapping[str, bytes]) -> CompiledPolicy:
    data = strict_json(contents["data.json"], "data.json", Reason.REVISION_MALFORMED)
    reads = strict_json(contents["reads.json"], "reads.json", Reason.REVISION_MALFORMED)
    if not isinstance(data, dict) or not isinstance(reads, list):
        raise Fault(Reason.REVISION_MALFORMED, "data or reads have the wrong type")
    rego = {name.removeprefix(REGO): text for name, text in contents.items() if name.startswith(REGO)}
    paths = tuple(Fields({"path": path}, "reads.json", Reason.REVISION_MALFORMED).texts("path") for path in reads)
    data_reads = _data_reads(contents["data-reads.json"])
    return CompiledPolicy(policy_digest(rego, data), contents["policy.wasm"], rego, data, paths, data_reads)


def _data_reads(raw: bytes) -> DataReads:
    """Paths of `data` as `_members` wrote them: keys, and places of `input` as arrays."""
    document = strict_json(raw, "data-reads.json", Reason.REVISION_MALFORMED)
    if not isinstance(document, list) or not all(isinstance(path, list) for path in document):
        raise Fault(Reason.REVISION_MALFORMED, "data reads have the wrong type")
    return tuple(tuple(_data_key(key) for key in path) for path in document)


def _data_key(key: object) -> str | tuple[str, ...]:
    if isinstance(key, str):
        return key
    return Fields({"key": key}, "data-reads.json", Reason.REVISION_MALFORMED).texts("key")
