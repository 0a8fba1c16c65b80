"""A whole system under more than it may take: priorities from YAML to the worker, and what the counters say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.peers import HeldService
from tests.support.system import Client, MakeSystem, System

LIMITS = """
[gateway.overload]
exchanges = 10
[gateway.listener]
connections_per_identity = 14
"""
ROUTES = """
  - {{name: low, prefix: /low, upstreams: [{url}], kinds: [operator], priority: low}}
  - {{name: critical, prefix: /critical, upstreams: [{url}], kinds: [operator], priority: critical}}
"""
GRANTS = """
  - {id: low, role: fleet-operator, route: low, methods: [GET], paths: [/low/**], expires: 2027-12-31}
  - {id: critical, role: fleet-operator, route: critical, methods: [GET], paths: [/critical/**], expires: 2027-12-31}
"""


@pytest.fixture(scope="module")
def service() -> Iterator[HeldService]:
    with HeldService().running() as running:
        yield running


@pytest.fixture(scope="module")
def system(make_system: MakeSystem, service: HeldService) -> Iterator[System]:
    found = make_system("limits")
    found.edit("[gateway.listener]\n", LIMITS.lstrip())
    found.edit("workers = 0 ", "workers = 1 ")
    with found.running():
        found.add_policy(ROUTES.format(url=service.url), GRANTS)
        found.publish()
        found.operate("inventory", "update", "admin", "--kind", "operator", "--role", "fleet-operator")
        yield found


def begin(system: System, path: str) -> tuple[Client, int, str]:
    """Ask, and read no further than the answer's head: the exchange stays open."""
    client = system.connect_operator()
    client.connection.request("GET", path)
    response = client.connection.getresponse()
    return client, response.status, response.headers.get("Retry-After", "")


def counted(system: System, line: str) -> int:
    lines = system.page("/metrics")[1].splitlines()
    return sum(int(float(each.split()[-1])) for each in lines if each.startswith(line))


def test_low_priority_goes_first_and_each_refusal_is_counted(system: System, service: HeldService) -> None:
    low = [begin(system, "/low/held") for _ in range(8)]
    assert [status for _, status, _ in low] == [200] * 7 + [503]
    critical = [begin(system, "/critical/held") for _ in range(4)]
    assert [status for _, status, _ in critical] == [200] * 3 + [503]
    assert {low[-1][2], critical[-1][2]} <= {"1", "2", "3", "4"}
    assert counted(system, 'sallyport_requests_shed_total{priority="low"}') == 1
    assert counted(system, 'sallyport_requests_shed_total{priority="critical"}') == 1
    assert system.ended_for("overloaded") == 2
    more = [begin(system, "/low/held") for _ in range(2)]
    assert [status for _, status, _ in more] == [503, 503]
    _, status, again = begin(system, "/critical/held")  # the 15th connection of this operator
    assert (status, again) == (429, "1")
    assert counted(system, 'sallyport_connections_refused_total{reason="connection_limit"}') == 1
    service.release.set()
    for client, status, _ in low[:7] + critical[:3]:
        assert status == 200
        client.connection.close()
