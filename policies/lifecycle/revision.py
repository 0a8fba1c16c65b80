"""A revision: one signed, numbered version of the workspace, as an archive that gateways load without compiling.

How an archive is verified is in `policies.signed`, for nodes do that too; here it is built, and its routes are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Any

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from policies.archive import pack
from policies.compile import compile_policy
from policies.engine import CompiledPolicy
from policies.lifecycle.upstreams_yaml import pool_document, read_pool
from policies.lifecycle.workspace import Workspace
from policies.routes import Priority, Route, RouteClass, RouteType
from policies.settings import CompileSettings
from policies.signed import FORMAT, MANIFEST, REGO, SIGNATURE
from policies.signed import verify as verify_signed
from policies.signing import MANIFEST_PURPOSE, SigningKey, VerifyingKey, sign
from policies.upstreams import Pool

_MS = 1000
_TIMES = ("connect_timeout", "response_timeout", "idle_timeout", "timeout")  # of a route


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
    """The revision in `archive` with its routes, verified as `policies.signed.verify` does. Raises `Fault` as that, and
    `REVISION_MALFORMED` for routes that are none."""
    signed = verify_signed(archive, key, floor)
    routes = _routes(signed.members["routes.json"])
    return LoadedRevision(signed.number, signed.digest, signed.created, signed.compiled, routes)


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
    return members | {REGO + path: text for path, text in sorted(compiled.rego.items())}


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
        protocol=fields.one_of("protocol", ("", "tcp", "udp", "http"), ""),
        priority=Priority(fields.one_of("priority", tuple(Priority), Priority.NORMAL)),
    )
    fields.finish()
    return route


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
