"""The gateway's parts in the main process: who follows the facts, the workers, and what answers operators."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.api.access import AccessApi
from gateway.api.authorise import PolicyAuthorizer
from gateway.api.explaining import Explainer
from gateway.api.operators import OperatorsApi
from gateway.api.process import Workforce
from gateway.api.upstreams import UpstreamsApi
from gateway.configuration import Role
from gateway.control import Configure
from gateway.enforce import Enforcer
from gateway.follow import Follower
from gateway.handover import Handover
from gateway.keep import KeptFacts
from gateway.live import Watch
from gateway.plane import SHADOW_FOLDER
from gateway.proxy.assertion import published_keys
from gateway.records import recording
from gateway.scrape import Scrape
from gateway.shadow.runner import ShadowRunner
from gateway.shelf import RevisionShelf
from gateway.snapshot import SnapshotStore
from gateway.sockets import Sockets, bind_all
from gateway.supervised import Pool
from gateway.supervisor import Supervisor
from gateway.wiring.authority import AuthorityParts
from gateway.wiring.base import Base
from gateway.wiring.settings import AuthoritySections, Settings


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """The facts and who follows them: this process for its API, the workers for the data plane. `kept` is None where
    the authority is here: its database keeps everything."""

    store: SnapshotStore
    enforcer: Enforcer
    follower: Follower
    kept: KeptFacts | None
    workers: Supervisor
    authorizer: PolicyAuthorizer
    operators: OperatorsApi
    upstreams: UpstreamsApi
    access: AccessApi
    shelf: RevisionShelf
    watch: Watch
    shadow: ShadowRunner

    async def follow(self) -> None:
        """Follow the feed, once there are workers to tell."""
        await self.workers.wait_started()
        await self.follower.run()

    def workforce(self) -> Workforce:
        return Workforce(self.workers.ready, self.workers.wanted, self.workers.retiring)


def build_gateway(
    settings: Settings, base: Base, authority: AuthorityParts, sockets: Sockets, left: Handover | None
) -> GatewayParts:
    """`left` are the workers of the main process before this one."""
    store, state = SnapshotStore(), settings.system.state
    workers = Supervisor(worker_pool(settings, base, authority, sockets), store, base.time, base.metrics, left)
    orders = workers.orders
    authority.certificates.changed = orders.renewed
    orders.on_force = authority.in_force
    enforcer = Enforcer(settings.policy, base.policy_key.key, state / "policy.floor", base.mask, orders.load)
    is_here = isinstance(settings.authority, AuthoritySections)
    kept = None if is_here else KeptFacts(state / "facts", store.present, base.time)
    shelf = RevisionShelf(state / "revisions", lambda: base.policy_key.key, settings.policy)
    follower = Follower(authority.feed, store, shelf.keeping(enforcer), base.audit, base.time, kept, orders)
    scrape = Scrape(base.telemetry.registry, lambda: orders.ask("metrics"), lambda: workers.living)
    workers.last_words = scrape.farewell

    def ready() -> str:
        return follower.waits_for

    watch = Watch(store, base.time, settings.plane.staleness, scrape.gather, orders.ask, ready)
    explainer = Explainer(store, base.decisions, shelf.engine, authority.node_words)
    return GatewayParts(
        store,
        enforcer,
        follower,
        kept,
        workers,
        PolicyAuthorizer(store, base.time, base.audit, base.decisions.ids, recording(base.decisions, base.time)),
        OperatorsApi(store, orders.ask, base.decisions, explainer, base.time, ready, watch.now),
        UpstreamsApi(orders.ask, lambda: published_keys(state)),
        AccessApi(store, settings.policy, base.time),
        shelf,
        watch,
        ShadowRunner(state / SHADOW_FOLDER, lambda: base.policy_key.key, settings.policy, base.audit),
    )


def worker_pool(settings: Settings, base: Base, authority: AuthorityParts, sockets: Sockets) -> Pool:
    """What the workers are given; there are none where no data plane is wanted."""
    plane, count = settings.plane, settings.plane.processes.workers
    if plane.system.role is Role.AUTHORITY:
        count = 0
    where = plane.listener
    name = f"gateway {where.host} {where.port}"
    listening = sockets.take(name, lambda: bind_all(where.host, where.port, count))

    def configure(number: int) -> Configure:
        return Configure(
            settings=settings.configuration.raw.decode(),
            path=str(settings.configuration.path),
            number=number,
            of=count,
            now=base.time.now(),
            certificate=str(authority.certificates.pair.certificate),
            key=str(authority.certificates.pair.key),
            root=str(authority.certificates.root),
        )

    return Pool(count, configure, listening, base.segments, plane, base.worker_ended)
