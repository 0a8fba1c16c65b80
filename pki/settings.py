"""Settings of the section `authority`."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.files import read_secret
from foundation.identifiers import Kind, SpiffeId, check_name
from foundation.reasons import Reason
from foundation.wire.bundle import BundleTerms
from pki.profile import Lifetimes

DEFAULT_FOLDER = "/var/lib/sallyport/authority"
DEFAULT_NAMES = ("localhost", "127.0.0.1", "::1")
_MAX_PASSPHRASE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class AuthoritySettings:
    """What the authority is and where its keys are.

    `folder` holds certificates and encrypted keys. The issuing CA's passphrase is read from `passphrase_file` (0600,
    by default `issuing.passphrase` in that folder; put it on another disk to keep key and passphrase apart), or, when
    `passphrase_credential` is named, from the systemd credential of that name (systemd.exec, LoadCredentialEncrypted=).
    `server_name` is the identity of this machine's listeners, `server_names` are the DNS names and IP addresses in
    their certificate. `acknowledge_within` is how long whoever revokes waits, in seconds, for the gateways that follow
    to say that they enforce it. `bundle` says how nodes keep what they decide by while they are cut off."""

    trust_domain: str
    folder: Path = Path(DEFAULT_FOLDER)
    passphrase_file: Path | None = None
    passphrase_credential: str = ""
    server_name: str = "sallyport"
    server_names: tuple[str, ...] = DEFAULT_NAMES
    lifetimes: Lifetimes = field(default_factory=Lifetimes)
    acknowledge_within: float = 1.0
    bundle: BundleTerms = field(default_factory=BundleTerms)

    @classmethod
    def parse(cls, fields: Fields) -> AuthoritySettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            trust_domain=_trust_domain(fields),
            folder=Path(fields.text("folder", DEFAULT_FOLDER)),
            passphrase_file=Path(fields.text("passphrase_file")) if fields.has("passphrase_file") else None,
            passphrase_credential=_credential(fields),
            server_name=_name(fields),
            server_names=tuple(_canonical(name) for name in fields.texts("server_names", DEFAULT_NAMES, most=64)),
            lifetimes=Lifetimes.parse(fields.section("lifetimes", optional=True)),
            acknowledge_within=fields.duration("acknowledge_within", "1s"),
            bundle=BundleTerms.parse(fields.section("bundle", optional=True)),
        )
        fields.finish()
        return settings

    @property
    def server_identity(self) -> SpiffeId:
        return SpiffeId(self.trust_domain, Kind.GATEWAY, self.server_name)

    @property
    def issuing_passphrase_file(self) -> Path:
        return self.passphrase_file or self.folder / "issuing.passphrase"

    def read_passphrase(self) -> bytes:
        """The issuing CA's passphrase. Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
        if self.passphrase_credential:
            return _read_credential(self.passphrase_credential).strip()
        return read_secret(self.issuing_passphrase_file, max_bytes=_MAX_PASSPHRASE_BYTES).strip()


def _read_credential(name: str) -> bytes:
    # The environment names the folder, never the secret. systemd guards that folder itself, by owner and ACL, which
    # shows as a group's bits: the mode of the file says nothing here.
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not folder:
        raise Fault(Reason.FILE_UNREADABLE, "systemd passed no credentials", field="authority.passphrase_credential")
    try:
        with (Path(folder) / name).open("rb") as file:
            return file.read(_MAX_PASSPHRASE_BYTES)
    except OSError as error:
        detail = error.strerror or "unreadable"
        raise Fault(Reason.FILE_UNREADABLE, detail, field="authority.passphrase_credential") from error


def _trust_domain(fields: Fields) -> str:
    text = fields.text("trust_domain", max_length=255)
    try:
        return SpiffeId(text, Kind.NODE, "a").trust_domain
    except Fault as fault:
        raise fields.fault("trust_domain", fault.detail) from None


def _credential(fields: Fields) -> str:
    name = fields.text("passphrase_credential", "")
    if name and (Path(name).name != name or name in (".", "..")):
        raise fields.fault("passphrase_credential", "expected a credential's name, not a path")
    return name


def _name(fields: Fields) -> str:
    try:
        return check_name(fields.text("server_name", "sallyport"))
    except Fault as fault:
        raise fields.fault("server_name", fault.detail) from None


def _canonical(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()
