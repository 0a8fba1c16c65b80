"""Reads anew what may change while the process serves: certificate, root, policy key, settings.

Law: everything of the settings is judged before anything of them is taken up. Certificate, root and policy key stand on
their own: a renewed certificate does not wait until somebody has mended the settings.
"""

from __future__ import annotations

import logging

from foundation.faults import Fault
from foundation.logs import configure_logging
from foundation.ports import AuditEvent
from foundation.reasons import Reason
from gateway.configuration import read_configuration
from gateway.errands import Errand
from gateway.reloading import changed, needs_restart
from gateway.sockets import Sockets
from gateway.wiring.authority import AuthorityParts
from gateway.wiring.base import Base
from gateway.wiring.gateway import GatewayParts, worker_pool
from gateway.wiring.settings import Settings

MAX_NAMED = 32  # settings that an event of the audit log, a refusal or an answer names
POLICY_KEY = "policy key"
_LOG = logging.getLogger(__name__)


class Reload:
    """`settings` are those in force."""

    def __init__(
        self, settings: Settings, base: Base, authority: AuthorityParts, gateway: GatewayParts, sockets: Sockets
    ) -> None:
        self.settings = settings
        self._base = base
        self._authority = authority
        self._gateway = gateway
        self._sockets = sockets

    def judge(self) -> tuple[str, ...]:
        """What would be taken up: `certificate`, `root`, `policy key`, and settings by their paths. Raises the `Fault`
        of why it would be refused."""
        taken = self._authority.certificates.differs()
        if self._base.policy_key.differs():
            taken += (POLICY_KEY,)
        return taken + self._judge_settings()[1]

    async def __call__(self, errand: Errand) -> None:
        """Take it up. What is wrong is told, and what was stays."""
        taken: tuple[str, ...] = ()
        try:
            taken += self._authority.certificates.load()
            if self._base.policy_key.load():
                self._gateway.enforcer.key = self._base.policy_key.key
                taken += (POLICY_KEY,)
            taken += await self._apply_settings(errand.actor)
            errand.done(taken)
        except Fault as fault:
            _LOG.error("the settings stay as they were: %s", fault)
            refused = AuditEvent("settings.refused", errand.actor, fault.field or "settings", fault.reason.code)
            await self._base.audit.append(refused)
            errand.done(taken, fault)
        self._base.metrics.reloaded("refused" if errand.refused else "applied" if errand.taken else "unchanged")

    def _judge_settings(self) -> tuple[Settings, tuple[str, ...]]:
        before = self.settings
        settings = Settings.parse(read_configuration(before.configuration.path), before.system.role)
        paths = changed(before.configuration.document, settings.configuration.document)
        fixed = [path for path in paths if needs_restart(path)]
        if fixed:
            raise Fault(Reason.SETTING_FIXED, field=", ".join(fixed[:MAX_NAMED]))
        return settings, paths[:MAX_NAMED]

    async def _apply_settings(self, actor: str) -> tuple[str, ...]:
        settings, paths = self._judge_settings()
        if paths:
            await self._base.audit.append(
                AuditEvent("settings.reloaded", actor, "settings", detail={"changed": list(paths)})
            )
            await self._gateway.workers.replace(worker_pool(settings, self._base, self._authority, self._sockets))
            self.settings = settings
            configure_logging(settings.plane.telemetry.log_level)
        return paths
