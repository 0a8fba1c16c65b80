"""sallyport.toml: one section for each part, which parses its own. `sallyport init` writes it from `TEMPLATE`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind, SpiffeId
from foundation.reasons import Reason

FILE_NAME = "sallyport.toml"
MAX_BYTES = 1 << 20
_SECTIONS = (
    "sallyport",
    "storage",
    "audit",
    "decisions",
    "hotstate",
    "telemetry",
    "health",
    "authority",
    "enrolment",
    "api",
    "policy",
    "gateway",
    "upstream_authority",
    "agent",
    "access_log",
)


class Role(StrEnum):
    """Which parts one process tree holds."""

    ALL = "all"
    AUTHORITY = "authority"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """Section `[sallyport]`. `role` is what this machine does: `authority`, `gateway` (of an authority elsewhere), or
    `all`. `profile` `production` forces hardware TPMs, TPM-held keys and reference values."""

    trust_domain: str
    role: Role = Role.ALL
    profile: str = "development"
    state: Path = Path("state")

    @classmethod
    def parse(cls, fields: Fields) -> SystemSettings:
        settings = cls(
            trust_domain=_trust_domain(fields),
            role=Role(fields.one_of("role", tuple(Role), Role.ALL)),
            profile=fields.one_of("profile", ("development", "production"), "development"),
            state=Path(fields.text("state", "state")),
        )
        fields.finish()
        return settings

    @property
    def is_production(self) -> bool:
        return self.profile == "production"


def _trust_domain(fields: Fields) -> str:
    try:
        return SpiffeId(fields.text("trust_domain", max_length=255), Kind.NODE, "check").trust_domain
    except Fault as fault:
        raise fields.fault("trust_domain", fault.detail) from None


@dataclass(frozen=True, slots=True)
class Configuration:
    """The file, read but not judged: each part parses its own section."""

    path: Path
    raw: bytes
    top: Fields

    @property
    def document(self) -> Mapping[str, Any]:
        """All of it, as TOML's values."""
        return tomllib.loads(self.raw.decode("utf-8"))

    def section(self, name: str) -> Fields:
        """The section of one part; an empty one when it is missing."""
        return self.top.section(name, optional=True)


# `sallyport init` writes it.
TEMPLATE = """\
# Sallyport. Every setting that is not here has a safe default; docs/reference/settings.md lists them all.
# A wrong or unknown setting stops the start with its name. Check a change with `sallyport doctor --config {path}`.

[sallyport]
trust_domain = "{trust_domain}"
# production: hardware TPMs and TPM-held keys alone, reference values required; `sallyport doctor` says what is missing
profile = "development"
state = "{state}"

[storage]
url = "sqlite:///{state}/sallyport.db"
# More than one gateway: url = "postgresql+asyncpg://sallyport@db.internal/sallyport", password_file = "…"

[audit]
directory = "{state}/audit"

[decisions]
directory = "{state}/decisions"
total_size = "1GiB"             # at this bound the oldest segments go, counted

[authority]
trust_domain = "{trust_domain}"
folder = "{state}/authority"
server_names = {server_names}   # DNS names and addresses that nodes and operators reach this machine by

[authority.lifetimes]
node = "1h"                     # short: a renewal is a new attestation

[enrolment]
host = "{host}"
port = {enrolment_port}
classes = ["hardware"]          # add "virtual" to let in TPMs of emulators and hypervisors, as `virtual`
roots = "{state}/makers/hardware"           # folder of PEM files: roots of the TPM makers that you trust
virtual_roots = "{state}/makers/virtual"    # the same for emulators and hypervisors
without_tpm = []                # "node/<name>": may enrol without a TPM; the default policy still denies it

[api]
host = "{host}"
port = {api_port}
socket = "{state}/sallyport.sock"   # for this machine's root

[gateway]
workers = 0                     # processes that carry the data plane; 0: one for each core

[gateway.listener]
host = "{host}"
port = {gateway_port}
# Limits have safe defaults: docs/operations.md. Where a whole site comes from one address, see source_burst there.

[policy]
engine = "wasm"                 # or "opa": a real OPA server, see [policy.opa]; [policy.slow] bounds slow policies

# One line for each request, beside the decision log. Without a path there is none.
# [access_log]
# path = "{state}/access.log"
# format = "json"               # or "common", "combined"
# query = "mask"                # values of queries are often secrets; "drop", or "keep" them

[health]
port = {health_port}            # /healthz, /readyz, /metrics, on loopback
"""


# `sallyport join` writes it.
GATEWAY_TEMPLATE = """\
# Sallyport, a gateway of an authority elsewhere. Every setting that is not here has a safe default;
# docs/reference/settings.md lists them all. A wrong or unknown setting stops the start with its name.
# Check a change with `sallyport doctor --config {path}`.

[sallyport]
role = "gateway"
trust_domain = "{trust_domain}"
profile = "development"
state = "{state}"

[upstream_authority]
api = "{authority_api}"         # its API, by a name that its certificate bears
certificate = "{state}/identity/tls.pem"    # ours: key and chain; the section [agent] keeps it
root = "{state}/identity/root.pem"
policy_key = "{state}/policy.pub"           # revisions that it did not sign are refused

[agent]                         # how this gateway enrols and renews, as any node does
directory = "{state}/agent"
pem = "{state}/identity"
authority = "{authority_enrolment}"
node = "{name}"
attestation = "none"            # a key in software; the authority's `without_tpm` has to name gateway/{name}

[audit]
directory = "{state}/audit"

[decisions]
directory = "{state}/decisions"
total_size = "1GiB"             # at this bound the oldest segments go, counted

[api]
host = "{host}"
port = {api_port}
socket = "{state}/sallyport.sock"   # for this machine's root

[gateway]
workers = 0                     # processes that carry the data plane; 0: one for each core

[gateway.listener]
host = "{host}"
port = {gateway_port}
# Limits have safe defaults: docs/operations.md. Where a whole site comes from one address, see source_burst there.

[gateway.staleness]             # how long facts serve without a heartbeat of the authority, by the route's class
stale_after = "30s"
expired_after = "1h"

[policy]
engine = "wasm"                 # or "opa": a real OPA server, see [policy.opa]; [policy.slow] bounds slow policies

# One line for each request, beside the decision log. Without a path there is none.
# [access_log]
# path = "{state}/access.log"
# format = "json"               # or "common", "combined"
# query = "mask"                # values of queries are often secrets; "drop", or "keep" them

[health]
port = {health_port}            # /healthz, /readyz, /metrics, on loopback
"""


def read_configuration(path: Path) -> Configuration:
    """The configuration in `path`. Raises `Fault(FILE_UNREADABLE | SETTING_INVALID | SETTING_UNKNOWN)`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error
    return parse_configuration(raw, path)


def parse_configuration(raw: bytes, path: Path) -> Configuration:
    """The configuration in `raw`, which was read from `path`. Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
    if len(raw) > MAX_BYTES:
        raise Fault(Reason.SETTING_INVALID, f"larger than {MAX_BYTES} bytes", field=str(path))
    try:
        document = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Fault(Reason.SETTING_INVALID, str(error), field=str(path)) from error
    top = Fields(document, "", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN)
    for name in _SECTIONS:
        top.section(name, optional=True)
    top.finish()
    return Configuration(path.resolve(), raw, top)
