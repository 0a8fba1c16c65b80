"""The default policy, compiled and enforced over an installation's facts, as a gateway holds them."""

from __future__ import annotations

import asyncio
import functools
import itertools
from pathlib import Path

from foundation.identity import Heartbeat, PolicyPublished
from gateway.api.authorise import PolicyAuthorizer
from gateway.proxy.route import RouteTable
from gateway.snapshot import PolicyPart, SnapshotStore
from policies.lifecycle.revision import Revision, build, verify
from policies.lifecycle.workspace import read_workspace
from policies.loading import load_engine
from policies.settings import PolicySettings
from policies.signing import load_signing_key, parse_verifying_key
from tests.support.installation import Installation

STARTER = Path(__file__).parents[2] / "policies" / "starter"


@functools.cache
def _starter() -> Revision:
    """Compiled once: the same workspace gives the same bytes."""
    return build(read_workspace(STARTER), 1, 1, PolicySettings().compile)


class Enforced:
    """A snapshot with the starter's policy; `catch_up` reads the authority's facts into it."""

    def __init__(self, site: Installation) -> None:
        self._site = site
        self.store = SnapshotStore()
        numbers = itertools.count(1)
        self.authorizer = PolicyAuthorizer(
            self.store, site.clock, site.audit, lambda: f"d-{next(numbers)}", lambda decision: None
        )

    async def load(self) -> None:
        """Build, sign, verify and enforce the starter's policy."""
        folder, settings = self._site.settings.folder, PolicySettings()
        bundle = (await asyncio.to_thread(_starter)).signed(load_signing_key(folder / "policy.key"))
        loaded = verify(bundle, parse_verifying_key((folder / "policy.pub").read_bytes()), 0)
        engine = await load_engine(loaded.compiled, settings)
        self.store.publish_policy(PolicyPart(1, loaded.digest, engine, RouteTable(loaded.routes)))

    async def catch_up(self) -> None:
        """Apply everything that is true now."""
        async with self._site.authority.feed.follow(None) as changes:
            async for change in changes:
                if isinstance(change, Heartbeat):
                    return
                if not isinstance(change, PolicyPublished):
                    self.store.apply(change)
