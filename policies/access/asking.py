"""Who can reach what: the questions that are put to a compiled policy, and what its answers come to.

Laws held here:
- the policy answers, nobody else: whatever is told was decided by the engine for that identity and that request, as the
  gateway would ask it. Grants and denies are read for one thing alone, to know what is worth asking;
- an engine that fails is no denial: the whole answer fails with it;
- bounded: who was not asked about is counted.

A grant covers paths without number, so that each path it is written with is asked by one request that it covers (`*`
is a segment that stands nowhere else, `/**` more of them than any other path has). Paths of denies are asked too: where
one alone stands against a request, that is told as an exception. GET stands for HEAD, as in a grant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from foundation.faults import Fault
from foundation.identity import IdentityRecord, Posture, SnapshotNumbers
from foundation.reasons import Reason
from policies.explain import Evidence, Explanation, explanation, reaching
from policies.model import FOREVER, STREAM, Answer, CanonicalRequest, Decision, Permit, Query, Staleness, judge
from policies.projection import Path, Reads

Ask = Callable[[Query], Answer]
Explain = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Tick = Callable[[int], bool]
"""Told how many more identities, or routes, were asked about; says whether to go on."""

UPGRADE = "UPGRADE"
_PROTOCOL = "websocket"
_API = "api."
_ACTIONS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_NUMBERS = SnapshotNumbers(0, 0, 0, 0)
_FAILURES = frozenset(
    {Reason.ENGINE_FAILED, Reason.ENGINE_TIMEOUT, Reason.ENGINE_OVERLOADED, Reason.ENGINE_UNREACHABLE}
)


@dataclass(frozen=True, slots=True)
class Subject:
    """An identity that is asked about. `refusal` is why nothing at all may be done by it now, whatever policy says."""

    record: IdentityRecord
    posture: Posture
    refusal: Reason | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """A compiled policy that can be asked. `data` and `reads` are those it was compiled with; `revision` is 0 for a
    draft. `is_default`: it is the default policy, without rules of the team's own."""

    ask: Ask
    explain: Explain
    data: Mapping[str, Any]
    reads: Reads
    revision: int = 0
    is_default: bool = False

    @property
    def rows(self) -> Mapping[str, Any]:
        """The workspace's rows by kind: routes, grants, denies, segments, api."""
        rows: Mapping[str, Any] = self.data["workspace"]
        return rows

    @property
    def routes(self) -> tuple[str, ...]:
        return tuple(sorted(self.rows["routes"]))

    def is_stream(self, route: str) -> bool:
        return route in self.rows["routes"] and self.rows["routes"][route]["type"] == "stream"


class Probe(NamedTuple):
    """One thing that is asked on a route. `method` and `covers` are what it stands for, as a grant has them; an
    `exception` is the path of a deny. `target` is the node behind a stream."""

    route: str
    method: str
    covers: str
    request: CanonicalRequest
    exception: bool = False
    target: Subject | None = None


class Target(NamedTuple):
    """Nodes that policy cannot tell apart, and one of them."""

    name: str
    node: Subject


class _Asking(NamedTuple):
    """What stands for wildcards on a route: a segment that nothing there names, and a number of segments that only what
    ends with `/**` covers."""

    fresh: str
    depth: int


@dataclass(frozen=True, slots=True)
class Way:
    """What one grant allows. `until` is when it ends, in seconds since the Unix epoch; None: it has no end. Of a
    stream, `paths` are the nodes that it leads to, and `through` says which segments reach which, and which selectors
    put either end there."""

    grant: str
    until: float | None
    methods: tuple[str, ...]
    paths: tuple[str, ...]
    through: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Access:
    """What one identity may do on one route. `exceptions` are what a deny, or an own rule, takes out of that."""

    ways: tuple[Way, ...]
    exceptions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Reach:
    """Of whom was asked, those who have access, in the order of their names; `unasked` is how many found no room."""

    allowed: tuple[tuple[Subject, Access], ...]
    asked: int
    unasked: int


def probes_of(policy: Policy, route: str, targets: Iterable[Target] = ()) -> tuple[Probe, ...]:
    """What is worth asking on `route`. `targets` are what a stream may lead to. Raises `Fault(NOT_FOUND)`."""
    rows = policy.rows
    if route.startswith(_API):  # decided by its name alone
        return (Probe(route, "GET", "", request_of("GET", ())),)
    if route not in rows["routes"]:
        raise Fault(Reason.NOT_FOUND, f"the policy has no route {route[:64]!r}", field="route")
    granted = [grant for grants in rows["grants"].get(route, {}).values() for grant in grants]
    if not policy.is_stream(route):
        return _requests(rows, route, granted)
    if not any("methods" in grant for grant in granted):
        return tuple(Probe(route, "", name, STREAM, target=node) for name, node in targets)
    requests = _requests(rows, route, granted)  # of HTTP between nodes, each is decided
    return tuple(
        each._replace(target=node, covers=f"{name} {each.covers}") for name, node in targets for each in requests
    )


def _requests(rows: Mapping[str, Any], route: str, granted: list[Mapping[str, Any]]) -> tuple[Probe, ...]:
    """What is worth asking of what grants and denies say of methods and paths."""
    denied = rows["denies"].get(route, [])
    ways = [way for row in [*granted, *denied] for way, _ in _ways(row)]
    asking = _Asking(unnamed(segment for way in ways for segment in way), 1 + max(map(len, ways), default=0))
    methods = sorted({method for grant in granted for method in _methods(grant, ())})
    found = {_probe(route, method, *way, asking): None for row in granted for method in _methods(row, ())
             for way in _ways(row)}  # fmt: skip
    taken = {(probe.method, probe.covers) for probe in found}
    for row in denied:
        asked = [_probe(route, method, *way, asking) for method in _methods(row, methods) for way in _ways(row)]
        found |= {each._replace(exception=True): None for each in asked if (each.method, each.covers) not in taken}
    return tuple(found)


def request_of(method: str, path: tuple[str, ...]) -> CanonicalRequest:
    """The request that `method` of a grant stands for, on these decoded segments."""
    target = "/".join(("", *path)) or "/"
    if method == UPGRADE:
        return CanonicalRequest("GET", "create", "", path, (), _PROTOCOL, target.encode())
    return CanonicalRequest(method, _ACTIONS[method], "", path, (), "", target.encode())


def decide(policy: Policy, subject: Subject, probe: Probe, now: int) -> Decision:
    """What the gateway would decide with fresh facts, but for the subject's own standing. Raises `Fault` when the
    engine fails."""
    query = query_of(subject, probe, now)
    answer = policy.ask(query)
    if _FAILURES.intersection(answer.reasons):
        raise Fault(answer.reasons[0], f"while {subject.record.id} was asked about")
    return judge("", query, answer, FOREVER, _NUMBERS)


def query_of(subject: Subject, probe: Probe, now: int) -> Query:
    """What is asked: `probe`, by `subject`."""
    target, posture = (probe.target.record, probe.target.posture) if probe.target is not None else (None, None)
    return Query(now, subject.record, subject.posture, probe.route, probe.request, Staleness.FRESH, target, posture)


def access(policy: Policy, subject: Subject, probes: Sequence[Probe], now: int) -> Access | None:
    """What `subject` may do of `probes`; None when it is nothing."""
    granted: dict[_Permission, dict[str, list[str]]] = {}
    through: dict[int, tuple[str, ...]] = {id(None): ()}
    exceptions: dict[str, None] = {}
    for probe in probes:
        decision = decide(policy, subject, probe, now)
        if not isinstance(decision, Permit):
            if decision.reasons == (Reason.DENY_OVERRIDE,):
                exceptions[f"{probe.method} {probe.covers}".strip()] = None
        elif not probe.exception:
            if id(probe.target) not in through:
                through[id(probe.target)] = _through(policy, subject, probe, now)
            permission = _Permission(decision.grant, decision.deadline, through[id(probe.target)])
            paths = granted.setdefault(permission, {})
            paths.setdefault(probe.covers, []).append(probe.method)
    ways = tuple(way for permission, paths in sorted(granted.items()) for way in _grouped(permission, paths))
    return Access(ways, tuple(exceptions)) if ways else None


def who_can_reach(
    policy: Policy, subjects: Sequence[Subject], probes: Sequence[Probe], now: int, most: int, tick: Tick
) -> Reach:
    """Who of `subjects` has access by `probes`, in `most` questions and for as long as `tick` says."""
    allowed, asked = [], 0
    for subject in sorted(subjects, key=lambda each: each.record.id)[: most // max(1, len(probes))]:
        found = access(policy, subject, probes, now)
        if found is not None:
            allowed.append((subject, found))
        asked += 1
        if not tick(1):
            break
    return Reach(tuple(allowed), asked, len(subjects) - asked)


def what_can_reach(
    policy: Policy, subject: Subject, targets: Sequence[Target], now: int, most: int, tick: Tick
) -> tuple[dict[str, Access], tuple[str, ...]]:
    """Route to what `subject` may do on it, and the routes that `most` questions had no room for."""
    found: dict[str, Access] = {}
    unasked: list[str] = []
    for route in policy.routes:
        probes = probes_of(policy, route, targets)
        if len(probes) > most or not tick(1):
            unasked.append(route)
            continue
        most -= len(probes)
        one = access(policy, subject, probes, now)
        if one is not None:
            found[route] = one
    return found, tuple(unasked)


def why(policy: Policy, subject: Subject, probes: Sequence[Probe], now: int) -> Explanation:
    """Why `subject` may do one of `probes`: the first that it may, else that against which least stands. Raises
    `Fault(NOT_FOUND)` when there is nothing to ask."""
    decided = [(probe, decide(policy, subject, probe, now)) for probe in probes if not probe.exception]
    if not decided:
        raise Fault(Reason.NOT_FOUND, "nobody holds a grant here: name a path to ask about", field="path")
    probe, decision = min(decided, key=lambda pair: (not isinstance(pair[1], Permit), len(pair[1].reasons)))
    asked = query_of(subject, probe, now).to_input()
    record = _record(policy, subject, probe, decision, now) | {"input": asked}
    if subject.refusal is None:
        return explanation(record, Evidence(policy.explain(asked), policy.revision))
    said = ", ".join(reason.code for reason in decision.reasons)
    record |= {"allow": False, "reasons": [subject.refusal.code], "grant": ""}
    return explanation(record, Evidence(note=f"policy alone answers: {said}"))


def narrowed(probes: Sequence[Probe], route: str, method: str, path: tuple[str, ...] | None) -> tuple[Probe, ...]:
    """`probes` of `route` by this method, or the one for this path (GET, unless `method` says otherwise). Raises
    `Fault(MESSAGE_MALFORMED)` for a route that has neither."""
    if path is None and not method:
        return tuple(probes)
    if route.startswith(_API) or any(each.target is not None and not each.method for each in probes):
        raise Fault(Reason.MESSAGE_MALFORMED, "only routes of HTTP have methods and paths", field="path")
    targets = list({id(each.target): each.target for each in probes}.values()) or [None]
    if path is not None:
        asked = request_of(method or "GET", path)
        return tuple(Probe(route, method or "GET", "", asked, target=target) for target in targets)
    asked_of = {(each.request.path, id(each.target)): each for each in probes if not each.exception}
    return tuple(
        Probe(route, method, each.covers, request_of(method, path), target=each.target)
        for (path, _), each in asked_of.items()
    )


def also_read(policy: Policy, told: Iterable[Path]) -> tuple[str, ...]:
    """What of a question policy can read beside the places `told`, which the answers therefore may hang on."""
    known = tuple(told)
    return tuple(".".join(path) for path in policy.reads if not any(path[: len(place)] == place for place in known))


def unnamed(taken: Iterable[str]) -> str:
    """A name that is none of those."""
    names, number, name = set(taken), 0, "any"
    while name in names:
        number, name = number + 1, f"any{number + 1}"
    return name


def _probe(route: str, method: str, way: list[str], is_open: bool, asking: _Asking) -> Probe:
    path = [asking.fresh if segment == "*" else segment for segment in way]
    if is_open:
        path += [asking.fresh] * (asking.depth - len(way))
    return Probe(route, method, "/" + "/".join([*way, *(["**"] if is_open else [])]), request_of(method, tuple(path)))


def _ways(row: Mapping[str, Any]) -> Iterator[tuple[list[str], bool]]:
    """The paths of a grant or deny, and whether each covers what is below it. One that names none covers all."""
    if "paths" not in row and "patterns" not in row:
        yield [], True
    for path in row.get("paths", ()):
        yield path, False
    for pattern in row.get("patterns", ()):
        yield pattern["segments"], pattern["open"]


def _methods(row: Mapping[str, Any], otherwise: Sequence[str]) -> list[str]:
    methods = row.get("methods", otherwise)
    return [method for method in methods if method != "HEAD" or "GET" not in methods]


class _Permission(NamedTuple):
    """A grant, its end, and by which segments."""

    grant: str
    until: float
    through: tuple[str, ...]


def _through(policy: Policy, subject: Subject, probe: Probe, now: int) -> tuple[str, ...]:
    """By which segments a stream is permitted. A whole policy of one's own may say nothing of them."""
    document = policy.explain(query_of(subject, probe, now).to_input())
    return reaching(document.get("segments", {}))


def _grouped(permission: _Permission, paths: Mapping[str, list[str]]) -> Iterator[Way]:
    """Paths that have the same methods together."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for path, methods in paths.items():
        alike.setdefault(tuple(method for method in methods if method), []).append(path)
    end = None if permission.until == FOREVER else permission.until
    for verbs, covered in alike.items():
        told = tuple(sorted(path for path in covered if path))
        yield Way(permission.grant, end, verbs, told, permission.through)


def _record(policy: Policy, subject: Subject, probe: Probe, decision: Decision, now: int) -> dict[str, Any]:
    """The decision, as a line of the decision log would have it."""
    return {
        "id": "",
        "allow": isinstance(decision, Permit),
        "at": now,
        "identity": str(subject.record.id),
        "method": probe.request.method,
        "target": probe.request.target.decode() or probe.covers,
        "route": probe.route,
        "numbers": [policy.revision, 0, 0, 0],
        "grant": decision.grant if isinstance(decision, Permit) else "",
        "reasons": [reason.code for reason in decision.reasons],
        "facts": {} if isinstance(decision, Permit) else dict(decision.facts),
    }
