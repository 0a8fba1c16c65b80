"""The workspace: what its files become, and every fault at file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from policies.lifecycle.workspace import (
    MAX_FILE_BYTES,
    WorkspaceInvalid,
    default_policy,
    load_workspace,
    read_workspace,
)
from policies.routes import Priority, Route, RouteClass, RouteType
from policies.upstreams import Address, Pool, UpstreamTls
from tests.support.policy import MINIMAL, workspace

ROUTE = "routes:\n  - name: r\n    upstreams: [http://127.0.0.1:80]\n    kinds: [node]\n    "
GRANT = "roles: {a: b}\ngrants:\n  - id: g\n    role: a\n    route: r\n    methods: [GET]\n    paths: [/x]\n    "
PLAIN_GRANT = GRANT + "expires: 2030-01-01\n"
DENY = "denies:\n  - id: d\n    why: w\n    route: r\n    "


def one_fault(**files: str) -> tuple[str, str]:
    with pytest.raises(WorkspaceInvalid) as caught:
        workspace(**files)
    assert [fault.reason for fault in caught.value.faults] == [Reason.POLICY_DATA_INVALID]
    return caught.value.field, caught.value.detail


def test_a_route_says_everything_the_gateway_needs() -> None:
    routes = """
routes:
  - name: full
    about: All of it.
    host: api.example.test
    prefix: /v1/things
    upstreams: [https://one.test, "https://[2001:db8::1]:8443"]
    ca_file: /etc/ca.pem
    class: critical
    priority: high
    kinds: [node, service]
    attestation: hardware
    tiers: [2, 1]
    segments: [edge]
    upgrades: [websocket]
    max_body: 1MiB
    connect_timeout: 250ms
    response_timeout: 5m
"""
    found = workspace(routes=routes, grants="grants: []")
    assert found.routes == (
        Route(
            "full", RouteType.HTTP, "api.example.test", ("v1", "things"),
            Pool("full", (Address("one.test", 443), Address("2001:db8::1", 8443)), tls=UpstreamTls("/etc/ca.pem")),
            RouteClass.CRITICAL, ("websocket",), 1 << 20, 0.25, 300.0, priority=Priority.HIGH,
        ),
    )  # fmt: skip
    assert found.data["workspace"]["routes"]["full"] == {
        "type": "http", "class": "critical", "kinds": ["node", "service"], "attestation": ["hardware"],
        "tiers": [1, 2], "segments": ["edge"],
    }  # fmt: skip


def test_what_a_route_leaves_out_is_safe() -> None:
    found = workspace()
    assert (found.routes[0].route_class, found.routes[0].prefix, found.routes[0].upgrades) == ("standard", (), ())
    assert found.routes[0].priority is Priority.NORMAL
    assert found.data["workspace"]["routes"]["r"]["attestation"] == ["hardware", "virtual"]


def test_a_grant_becomes_a_row_under_route_and_role() -> None:
    grants = GRANT.replace("[/x]", "[/x, /a/*, /b/**, /c/]") + (
        "expires: 2030-01-01T02:00:00+02:00\n    sites: [oslo]\n    tiers: [3]\n"
        "    obligations: [{kind: rate, per_second: 5}]\n"
    )
    assert workspace(grants=grants).data["workspace"]["grants"] == {
        "r": {
            "a": [
                {
                    "id": "g",
                    "paths": [["x"], ["c", ""]],
                    "patterns": [{"segments": ["a", "*"], "open": False}, {"segments": ["b"], "open": True}],
                    "methods": ["GET", "HEAD"],
                    "sites": ["oslo"],
                    "tiers": [3],
                    "expires": 1893456000,
                    "obligations": [{"kind": "rate", "per_second": 5, "burst": 5}],
                }
            ]
        }
    }


def test_a_date_means_its_beginning_in_utc() -> None:
    assert workspace(grants=PLAIN_GRANT).data["workspace"]["grants"]["r"]["a"][0]["expires"] == 1893456000


def test_a_deny_of_every_route_and_with_its_trailing_slash() -> None:
    denies = PLAIN_GRANT + 'denies:\n  - {id: d, why: w, route: "*", paths: [/x, /y/*, /z/**], names: [n7]}\n'
    assert workspace(grants=denies).data["workspace"]["denies"]["r"] == [
        {
            "id": "d",
            "why": "w",
            "paths": [["x"], ["x", ""]],
            "patterns": [
                {"segments": ["y", "*"], "open": False},
                {"segments": ["z"], "open": True},
                {"segments": ["y", "*", ""], "open": False},
            ],
            "names": ["n7"],
        }
    ]


@pytest.mark.parametrize(
    ("line", "at", "detail"),
    [
        ("host: Example.test", 5, "host name"),
        ("host: a.test:80", 5, "host name"),
        ("prefix: v1", 5, "absolute path"),
        ("prefix: /a/", 5, "prefix"),
        ("prefix: /a/*", 5, "prefix"),
        ("prefix: /a/../b", 5, "more than one way"),
        ("prefix: /a//b", 5, "more than one way"),
        ("prefix: /a%2Fb", 5, "more than one way"),
        ("prefix: /e\u0301", 5, "more than one way"),
        ("class: fast", 5, "critical, standard, tolerant"),
        ("priority: urgent", 5, "critical, high, normal, low"),
        ("attestation: some", 5, "hardware, virtual, none"),
        ("tiers: []", 5, "empty"),
        ("tiers: [4]", 5, "from 1 to 3"),
        ("segments: [nowhere]", 5, "'nowhere'"),
        ("upgrades: [h2c]", 5, "'h2c'"),
        ("max_body: 1MB", 5, "size"),
        ("connect_timeout: 0s", 5, "10ms"),
        ("ca_file: /ca.pem", 5, "https"),
        ("colour: red", 2, "unknown field 'colour'"),
        ("type: stream", 2, "missing"),
    ],
)
def test_a_wrong_route_is_told_by_line(line: str, at: int, detail: str) -> None:
    field, text = one_fault(routes=ROUTE + line + "\n", grants="grants: []")
    assert field.startswith(f"routes.yaml:{at} routes[0]")
    assert detail in text


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:80", "http://", "http://h:0", "http://h:65536", "http://h:80/", "http://h/x", "http://u@h:80",
        "http://h?x", "ftp://h", "http://H", "http://127.1:80", "http://0x7f000001:80", "http://127.0.0.256:80",
        "http://[127.0.0.1]:80", "http://[::1", "http://h:+80", "http://h:080", "http://-h",
    ],
)  # fmt: skip
def test_an_upstream_is_read_strictly(url: str) -> None:
    field, detail = one_fault(routes=ROUTE.replace("http://127.0.0.1:80", f"'{url}'"), grants="grants: []")
    assert field == "routes.yaml:3 routes[0].upstreams"
    assert "http://host:port" in detail


@pytest.mark.parametrize(
    ("routes", "field", "detail"),
    [
        ("{name: r, upstreams: ['http://h'], kinds: [node], prefix: /b}", "routes[1].name", "twice"),
        ("{name: s, upstreams: ['http://h'], kinds: [node], host: '*'}", "routes[1].prefix", "'r' has the same"),
        ("{name: api.x, upstreams: ['http://h'], kinds: [node], prefix: /b}", "routes[1].name", "our own API"),
        ("{name: S, upstreams: ['http://h'], kinds: [node], prefix: /b}", "routes[1].name", "a-z"),
        ("{name: s, upstreams: [], kinds: [node], prefix: /b}", "routes[1].upstreams", "at least one"),
        ("{name: s, upstreams: ['http://h'], kinds: [], prefix: /b}", "routes[1].kinds", "empty"),
        ("{name: s, upstreams: ['http://h'], prefix: /b}", "routes[1].kinds", "missing"),
    ],
)
def test_routes_that_conflict_or_lack_something(routes: str, field: str, detail: str) -> None:
    where, text = one_fault(routes=f"{ROUTE}\n  - {routes}\n", grants="grants: []")
    assert where.endswith(field)
    assert where.startswith("routes.yaml:6 ")
    assert detail in text


@pytest.mark.parametrize(
    ("grants", "where", "detail"),
    [
        (GRANT, "grants.yaml:3 grants[0].expires", "missing"),
        (GRANT + "expires: 90d", "grants.yaml:8 grants[0].expires", "expected a date"),
        (GRANT + "expires: 2030-02-30", "grants.yaml:8 grants[0].expires", "expected a date"),
        (GRANT + "expires: 2030-01-01T00:00:00", "grants.yaml:8 grants[0].expires", "offset"),
        (GRANT + "expires: 1015-01-01", "grants.yaml:8 grants[0].expires", "expected a date"),
        (GRANT + "expires: 0001-01-01T00:00+05:00", "grants.yaml:8 grants[0].expires", "expected a date"),
        (GRANT + "expires: never", "grants.yaml:8 grants[0].expires", "expected a date"),
        (PLAIN_GRANT.replace("role: a", "role: z"), "grants.yaml:4 grants[0].role", "no role 'z'"),
        (PLAIN_GRANT.replace("route: r", "route: z"), "grants.yaml:5 grants[0].route", "no route 'z'"),
        (PLAIN_GRANT.replace("[GET]", "[get]"), "grants.yaml:6 grants[0].methods", "expected some of"),
        (PLAIN_GRANT.replace("[GET]", "[]"), "grants.yaml:6 grants[0].methods", "expected some of"),
        (PLAIN_GRANT.replace("[/x]", "[]"), "grants.yaml:7 grants[0].paths", "covers nothing"),
        (PLAIN_GRANT.replace("[/x]", "[/**/x]"), "grants.yaml:7 grants[0].paths", "at the end alone"),
        (PLAIN_GRANT.replace("[/x]", "[/x*]"), "grants.yaml:7 grants[0].paths", "more than one way"),
        (PLAIN_GRANT.replace("[/x]", '["/x y"]'), "grants.yaml:7 grants[0].paths", "more than one way"),
        (PLAIN_GRANT + "    site: x\n", "grants.yaml:3 grants[0]", "unknown field 'site'"),
        (PLAIN_GRANT + "    sites: []\n", "grants.yaml:9 grants[0].sites", "empty"),
        (PLAIN_GRANT + "    obligations: [{kind: dance}]\n", "grants.yaml:9 grants[0].obligations[0].kind", "rate"),
        (PLAIN_GRANT + DENY + "kinds: [robot]\n", "grants.yaml:13 denies[0].kinds", "'robot'"),
        (PLAIN_GRANT + DENY + "segments: [z]\n", "grants.yaml:13 denies[0].segments", "'z'"),
        (PLAIN_GRANT + DENY.replace("id: d", "id: g"), "grants.yaml:10 denies[0].id", "twice"),
        (PLAIN_GRANT.replace("{a: b}", "{A: b, a: b}"), "grants.yaml:1 roles.A", "a-z"),
        ("grants: [1]", "grants.yaml:1 grants[0]", "object"),
        ("- 1", "grants.yaml:1", "mapping"),
    ],
)
def test_a_wrong_grant_is_told_by_line(grants: str, where: str, detail: str) -> None:
    field, text = one_fault(grants=grants)
    assert (field, detail in text) == (where, True), text


def test_a_stream_has_no_paths() -> None:
    stream = "routes: [{name: r, type: stream, service: ssh, kinds: [node]}]"
    assert one_fault(routes=stream, grants=PLAIN_GRANT)[1] == "a stream of tcp or udp has no paths and no methods"


def test_a_segment_reaches_only_what_exists() -> None:
    where, detail = one_fault(segments="segments:\n  - name: edge\n    reaches: [moon]\n")
    assert where.startswith("segments.yaml:2")
    assert "'moon'" in detail


@pytest.mark.parametrize(
    ("api", "detail"),
    [
        ("roles: {viewer: ['*']}", "<area>.<verb>"),
        ("roles: {viewer: ['*.*']}", "<area>.<verb>"),
        ("roles: {viewer: [inventory.Show]}", "<area>.<verb>"),
        ("roles: {viewer: []}", "<area>.<verb>"),
        ("kinds: {operator: ['*.list']}", "node and gateway"),
        ("people: {}", "unknown field"),
    ],
)
def test_the_api_s_role_table_is_checked(api: str, detail: str) -> None:
    where, text = one_fault(api=api)
    assert where.startswith("api.yaml:1")
    assert detail in text


def test_production_refuses_a_route_that_takes_less() -> None:
    with pytest.raises(WorkspaceInvalid, match="hardware at least"):
        workspace(AttestationClass.HARDWARE, routes=ROUTE + "attestation: virtual\n", grants="grants: []")


def test_all_faults_are_told_and_none_twice() -> None:
    with pytest.raises(WorkspaceInvalid) as caught:
        workspace(routes=ROUTE + "class: fast\n", grants=GRANT, segments="segments: [{name: A}]")
    assert [fault.field for fault in caught.value.faults] == [
        "segments.yaml:1 segments[0].name",
        "routes.yaml:5 routes[0].class",
        "grants.yaml:3 grants[0].expires",
    ]
    assert "(and 2 more)" in caught.value.detail


def test_a_missing_file_is_a_fault() -> None:
    with pytest.raises(WorkspaceInvalid) as caught:
        load_workspace({name: text for name, text in MINIMAL.items() if name != "routes.yaml"}, default_policy())
    assert caught.value.faults[0].field == "routes.yaml"


@pytest.mark.parametrize(
    "text",
    [
        "package sallyport",
        "package sallyport.customs",
        "# ours\n\npackage sallyport.granting\n",
        'package sallyport["custom"]',
        "package sallyport.custom; import rego.v1",
        "import rego.v1\npackage sallyport.custom",
    ],
)
def test_own_rules_stand_where_they_can_only_deny(text: str) -> None:
    with pytest.raises(WorkspaceInvalid, match="package sallyport"):
        load_workspace({**MINIMAL, "rules/a.rego": text.encode()}, default_policy())


def test_own_rules_and_a_whole_own_policy() -> None:
    rules = {"rules/a.rego": b"# why\npackage sallyport.custom\n", "rules/a_test.rego": b"package x_test\n"}
    found = load_workspace({**MINIMAL, **rules, "policy/own.rego": b"package sallyport\n"}, default_policy())
    assert set(found.rego) == {"rules/a.rego", "policy/own.rego"}
    assert set(found.tests) == {"rules/a_test.rego"}


def test_a_folder_is_read_within_its_bounds(tmp_path: Path) -> None:
    for name, text in MINIMAL.items():
        (tmp_path / name).write_bytes(text)
    (tmp_path / "notes.txt").write_text("not read")
    assert read_workspace(tmp_path).routes[0].name == "r"
    (tmp_path / "grants.yaml").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(Fault, match="larger"):
        read_workspace(tmp_path)
    with pytest.raises(Fault, match="no such folder"):
        read_workspace(tmp_path / "missing")


LINES = st.lists(
    st.sampled_from([*ROUTE.splitlines(), *PLAIN_GRANT.splitlines(), *DENY.splitlines(), "  - 1", "- []", "name:"]),
    max_size=12,
).map("\n".join)


@given(LINES, LINES, LINES)
@settings(max_examples=150, deadline=None)
def test_whatever_stands_in_the_files_is_a_workspace_or_faults_with_a_place(
    routes: str, grants: str, segments: str
) -> None:
    faults = _faults_of(routes=routes, grants=grants, segments=segments)
    assert all(fault.field.partition(":")[0].endswith(".yaml") for fault in faults)


def _faults_of(**files: str) -> tuple[Fault, ...]:
    try:
        workspace(**files)
    except WorkspaceInvalid as invalid:
        return invalid.faults
    return ()
