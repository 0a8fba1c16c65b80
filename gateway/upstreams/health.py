"""What active checks say of an address: a state machine over their results. Pure values.

| in service | result | then |
|---|---|---|
| never checked | passed, failed | in service, out of service: the first check decides |
| yes | `unhealthy` failures in a row | no |
| no | `healthy` successes in a row | yes |
"""

from __future__ import annotations

from typing import NamedTuple

from policies.upstreams import HealthCheck


class Health(NamedTuple):
    """`against`: results in a row that speak against the present state."""

    in_service: bool = True
    against: int = 0
    checked: bool = False


UNCHECKED = Health()


def after(health: Health, passed: bool, check: HealthCheck) -> Health:
    """The state after one more check."""
    if not health.checked:
        return Health(passed, 0, True)
    if passed is health.in_service:
        return health._replace(against=0)
    against = health.against + 1
    turns = against >= (check.healthy if passed else check.unhealthy)
    return Health(passed, 0, True) if turns else health._replace(against=against)
