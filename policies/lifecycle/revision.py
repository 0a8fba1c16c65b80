"""A revision: one signed, numbered version of the workspace, as an archive that gateways load without compiling.

Laws held here:
- the signature is over the manifest's bytes as they stand in the archive; nothing of them is parsed before it verifies;
- the manifest names every member with size and digest, and nothing else is in the archive;
- a number at or below the floor is refused, whoever signed it;
- the revision's digest, which approvers sign, is that of the manifest.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Any

from foundation.faults import Fault
from foundation.fields import Fields, strict_json
from foundation.reasons import Reason
from policies.compile import compile_policy, policy_digest
from policies.engine import CompiledPolicy
from policies.lifecycle.archive import pack, unpack
from policies.lifecycle.signing import MANIFEST_PURPOSE, SigningKey, VerifyingKey, check_signature, sign
from policies.lifecycle.upstreams_yaml import pool_document, read_pool
from policies.lifecycle.workspace import Workspace
from policies.projection import DataReads
from policies.routes import Priority, Route, RouteClass, RouteType
from policies.settings import CompileSettings
from policies.upstreams import Pool

FORMAT = 1
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
_FIXED = ("data.json", "data-reads.json", "policy.wasm", "reads.json", "routes.json")
_REGO = "rego/"
_MS = 1000
_TIMES = ("connect_timeout", "response_timeout", "idle_timeout", "timeout")  # of a route
_MAX_MANIFEST_BYTES = 256 << 10
_MAX_SIGNATURE_BYTES = 256


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision before it is signed. `digest` is what approvers sign: SHA-256 of the manifest, in lower-case hex."""

    number: int
    manifest: bytes
    members: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.manifest).hexdigest()

    def signed(self, key: SigningKey) -> bytes:
        """The archive. Raises `Fault(REVISION_MALFORMED)` when it would be too large."""
        signature = sign(key, MANIFEST_PURPOSE, self.manifest)
        return pack({MANIFEST: self.manifest, SIGNATURE: signature, **self.members})


@dataclass(frozen=True, slots=True)
class LoadedRevision:
    """A verified revision. `created` is in seconds since the Unix epoch."""

    number: int
    digest: str
    created: int
    compiled: CompiledPolicy
    routes: tuple[Route, ...]


def build(workspace: Workspace, number: int, created: int, settings: CompileSettings) -> Revision:
    """The revision `number` of `workspace`. The same arguments give the same bytes. Blocks while OPA compiles; raises
    `Fault` as `compile_policy` does."""
    return assemble(compile_policy(workspace.rego, workspace.data, settings), workspace.routes, number, created)


def assemble(compiled: CompiledPolicy, routes: tuple[Route, ...], number: int, created: int) -> Revision:
    """The revision `number` of what is compiled already. Raises `Fault(REVISION_MALFORMED)`."""
    if number < 1:
        raise Fault(Reason.REVISION_MALFORMED, "revisions count from 1", field="number")
    members = _members(compiled, routes)
    manifest = {
        "format": FORMAT,
        "number": number,
        "created": created,
        "policy": compiled.digest,
        "approval": {"threshold": 0, "approvers": []},  # who must approve the revision after this one
        "members": [
            {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in members.items()
        ],
    }
    return Revision(number, _canonical(manifest), members)


def verify(archive: bytes, key: VerifyingKey, floor: int) -> LoadedRevision:
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
    # 5. Their content is a policy and its routes, and the policy has the digest that the manifest states.
    compiled = _compiled(contents)
    if not hmac.compare_digest(compiled.digest, stated.policy):
        raise Fault(Reason.REVISION_MALFORMED, "the policy's digest is another", field="policy")
    digest = hashlib.sha256(manifest).hexdigest()
    return LoadedRevision(stated.number, digest, stated.created, compiled, _routes(contents["routes.json"]))


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
        if name not in _FIXED and not name.startswith(_REGO):
            raise Fault(Reason.REVISION_MALFORMED, "a member of unknown use", field=name)
        found = hashlib.sha256(contents[name]).hexdigest()
        if len(contents[name]) != size or not hmac.compare_digest(found, digest):
            raise Fault(Reason.REVISION_MALFORMED, "size or digest is not that of the manifest", field=name)


def _members(compiled: CompiledPolicy, routes: tuple[Route, ...]) -> dict[str, bytes]:
    members = {
        "data-reads.json": _canonical(
            [[each if isinstance(each, str) else list(each) for each in path] for path in compiled.data_reads]
        ),
        "data.json": _canonical(compiled.data),
        "policy.wasm": compiled.wasm,
        "reads.json": _canonical([list(path) for path in compiled.reads]),
        "routes.json": _canonical(_routes_document(routes)),
    }
    return members | {_REGO + path: text for path, text in sorted(compiled.rego.items())}


def _compiled(contents: Mapping[str, bytes]) -> CompiledPolicy:
    data = strict_json(contents["data.json"], "data.json", Reason.REVISION_MALFORMED)
    reads = strict_json(contents["reads.json"], "reads.json", Reason.REVISION_MALFORMED)
    if not isinstance(data, dict) or not isinstance(reads, list):
        raise Fault(Reason.REVISION_MALFORMED, "data or reads have the wrong type")
    rego = {name.removeprefix(_REGO): text for name, text in contents.items() if name.startswith(_REGO)}
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


def _routes(raw: bytes) -> tuple[Route, ...]:
    fields = Fields.from_json(raw, "routes.json", Reason.REVISION_MALFORMED, max_bytes=len(raw))
    pools = {pool.name: pool for pool in fields.each("pools", _pool, most=20_000)}
    routes = fields.each("routes", lambda item: _route(item, pools), most=20_000)
    fields.finish()
    return routes


def _routes_document(routes: tuple[Route, ...]) -> dict[str, Any]:
    """Routes as JSON, and each pool that one of them refers to, once."""
    pools = {route.pool.name: route.pool for route in routes if route.pool is not None}
    return {
        "pools": [{"name": name, **pool_document(pool)} for name, pool in sorted(pools.items())],
        "routes": [_route_document(route) for route in routes],
    }


def _route_document(route: Route) -> dict[str, Any]:
    """`route` as JSON; times in whole milliseconds, its pool by name."""
    document = {each.name: getattr(route, each.name) for each in fields_of(Route)}
    document |= {name: round(getattr(route, name) * _MS) for name in _TIMES}
    return document | {"pool": route.pool.name if route.pool is not None else ""}


def _pool(fields: Fields) -> Pool:
    pool = read_pool(fields, fields.text("name"))
    fields.finish()
    return pool


def _route(fields: Fields, pools: Mapping[str, Pool]) -> Route:
    pool = fields.text("pool")
    if pool and pool not in pools:
        raise fields.fault("pool", "no such pool")
    route = Route(
        name=fields.text("name"),
        type=RouteType(fields.one_of("type", tuple(RouteType))),
        host=fields.text("host"),
        prefix=fields.texts("prefix"),
        pool=pools[pool] if pool else None,
        route_class=RouteClass(fields.one_of("route_class", tuple(RouteClass))),
        upgrades=fields.texts("upgrades"),
        max_body=fields.integer("max_body"),
        connect_timeout=fields.integer("connect_timeout") / _MS,
        response_timeout=fields.integer("response_timeout") / _MS,
        idle_timeout=fields.integer("idle_timeout") / _MS,
        timeout=fields.integer("timeout") / _MS,
        retry_503=fields.flag("retry_503"),
        service=fields.text("service"),
        priority=Priority(fields.one_of("priority", tuple(Priority), Priority.NORMAL)),
    )
    fields.finish()
    return route


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
