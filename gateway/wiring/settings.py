"""The settings of the whole process: every part's own, parsed before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foundation.audit.settings import AuditSettings
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.storage.settings import StorageSettings
from gateway.api.settings import ApiSettings
from gateway.configuration import Configuration, Role, SystemSettings
from gateway.feed import UpstreamAuthoritySettings
from gateway.health import HealthSettings
from gateway.plane import PlaneSettings
from pki.enrol.settings import EnrolmentSettings
from pki.settings import AuthoritySettings
from policies.settings import PolicySettings


@dataclass(frozen=True, slots=True)
class AuthoritySections:
    """The settings of an authority on this machine."""

    storage: StorageSettings
    authority: AuthoritySettings
    enrolment: EnrolmentSettings

    @classmethod
    def parse(cls, configuration: Configuration, *, production: bool) -> AuthoritySections:
        section = configuration.section
        return cls(
            storage=StorageSettings.parse(section("storage")),
            authority=AuthoritySettings.parse(section("authority")),
            enrolment=EnrolmentSettings.parse(section("enrolment"), production=production),
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """Every part's own settings, parsed before anything starts, so that a wrong one changes nothing. `authority` is its
    own settings where it is on this machine, and where to find it otherwise."""

    configuration: Configuration
    plane: PlaneSettings
    audit: AuditSettings
    authority: AuthoritySections | UpstreamAuthoritySettings
    api: ApiSettings
    health: HealthSettings

    @classmethod
    def parse(cls, configuration: Configuration, role: Role | None = None) -> Settings:
        """`role` goes over the file's. Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)` with the setting's path."""
        section, plane = configuration.section, PlaneSettings.parse(configuration, role)
        return cls(
            configuration=configuration,
            plane=plane,
            audit=AuditSettings.parse(section("audit")),
            authority=_authority(configuration, plane.system),
            api=ApiSettings.parse(section("api")),
            health=HealthSettings.parse(section("health")),
        )

    @property
    def system(self) -> SystemSettings:
        return self.plane.system

    @property
    def policy(self) -> PolicySettings:
        return self.plane.policy

    @property
    def authority_sections(self) -> AuthoritySections:
        """Raises `Fault(SETTING_INVALID)` where this machine holds no authority."""
        if isinstance(self.authority, UpstreamAuthoritySettings):
            raise Fault(Reason.SETTING_INVALID, "the authority is elsewhere", field="sallyport.role")
        return self.authority

    @property
    def policy_key_file(self) -> Path:
        if isinstance(self.authority, UpstreamAuthoritySettings):
            return self.authority.policy_key
        return self.authority.authority.folder / "policy.pub"


def _authority(configuration: Configuration, system: SystemSettings) -> AuthoritySections | UpstreamAuthoritySettings:
    if system.role is Role.GATEWAY:
        return UpstreamAuthoritySettings.parse(configuration.section("upstream_authority"))
    return AuthoritySections.parse(configuration, production=system.is_production)
