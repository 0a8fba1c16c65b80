"""What a node is told: where its authority and gateway are, where its TPM is, where its files are kept."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.tpm_values import EK_TEMPLATES
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import check_name
from foundation.reasons import Reason

DEFAULT_FILE = Path("/etc/sallyport/agent.toml")
MOST_GATEWAYS = 16
_RUNNING = frozenset({"drain", "through_tunnels"})  # `agent.configuration` reads them


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP endpoint, and the name that its certificate must bear. `via` is a Unix socket that leads there, where it is
    not dialled itself."""

    host: str
    port: int
    via: Path | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str, field: str) -> Address:
        """`host:port` or `[IPv6]:port`. Raises `Fault(SETTING_INVALID)`."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
        if not host or any(c in host for c in "/@ []") or not 0 < number < 65536:
            raise Fault(Reason.SETTING_INVALID, "expected host:port", field=field)
        return cls(host, number)


@dataclass(frozen=True)
class AgentSettings:
    """Section `[agent]`. `authority` is the enrolment listener, `renewal` the authority's API, `gateway` the gateway's
    listener for `node call`, `gateways` those that `agent run` keeps tunnels to; each `host:port`, empty where this
    node does not use it. `control_socket` is where a running agent answers its own machine, by default in `directory`.
    `ek` names an EK template, empty takes the first with a certificate. `event_log` may be missing on disk: then the
    node sends none. `pem` is a folder where other programs of this machine find certificate and key as PEM files."""

    directory: Path = Path("/var/lib/sallyport-agent")
    authority: Address | None = None
    renewal: Address | None = None
    gateway: Address | None = None
    gateways: tuple[Address, ...] = ()
    control_socket: Path | None = None
    node: str = ""
    attestation: str = "tpm"
    tcti: str = "device:/dev/tpmrm0"
    ek: str = ""
    event_log: Path = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
    timeout: float = 30.0
    pem: Path | None = None

    @property
    def control(self) -> Path:
        """The socket of a running agent."""
        return self.control_socket or self.directory / "agent.sock"

    @classmethod
    def parse(cls, fields: Fields) -> AgentSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)` naming the setting."""
        settings = cls.read(fields)
        fields.finish()
        return settings

    @classmethod
    def read(cls, fields: Fields) -> AgentSettings:
        """As `parse`, of fields among which there may be others'."""
        node = fields.text("node", "", max_length=63)
        gateways = fields.texts("gateways", (), most=MOST_GATEWAYS)
        return cls(
            directory=Path(fields.text("directory", str(cls.directory))),
            authority=_address(fields, "authority"),
            renewal=_address(fields, "renewal"),
            gateway=_address(fields, "gateway"),
            gateways=tuple(Address.parse(each, f"{fields.path}.gateways") for each in gateways),
            control_socket=Path(fields.text("control")) if fields.has("control") else None,
            node=check_name(node, field=f"{fields.path}.node") if node else "",
            attestation=fields.one_of("attestation", ("tpm", "none"), "tpm"),
            tcti=fields.text("tcti", cls.tcti),
            ek=fields.one_of("ek", ("", *EK_TEMPLATES), ""),
            event_log=Path(fields.text("event_log", str(cls.event_log))),
            timeout=fields.duration("timeout", "30s"),
            pem=Path(fields.text("pem")) if fields.has("pem") else None,
        )

    @classmethod
    def load(cls, path: Path) -> AgentSettings:
        """The `[agent]` section of a TOML file; what a running agent alone reads, tables among it, and other sections
        are other programs' business. Raises `Fault(FILE_UNREADABLE | SETTING_INVALID | SETTING_UNKNOWN)`."""
        section = agent_section(path)
        own = {name: value for name, value in section.items() if name not in _RUNNING and not _is_table(value)}
        return cls.parse(agent_fields(own))


def agent_section(path: Path) -> dict[str, Any]:
    """`[agent]` as it stands in the file. Raises `Fault(FILE_UNREADABLE | SETTING_INVALID)`."""
    try:
        section = tomllib.loads(path.read_text("utf-8")).get("agent", {})
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error
    except ValueError as error:
        raise Fault(Reason.SETTING_INVALID, str(error), field=str(path)) from error
    if not isinstance(section, dict):
        raise Fault(Reason.SETTING_INVALID, "expected a table", field="agent")
    return section


def agent_fields(section: Mapping[str, Any]) -> Fields:
    """`section` under strict reading."""
    return Fields(section, "agent", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN)


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value))


def _address(fields: Fields, name: str) -> Address | None:
    text = fields.text(name, "", max_length=300)
    return Address.parse(text, f"{fields.path}.{name}") if text else None
