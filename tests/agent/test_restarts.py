"""When a service starts again, for every history of failures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.restarts import Life, Phase, RestartPolicy, backing_off, next_pause, running, starting, stopped

LOTS = st.floats(0, 1, exclude_max=True)
POLICIES = st.builds(
    lambda least, factor, quiet: RestartPolicy(least, least * factor, quiet),
    st.floats(0.001, 100),
    st.floats(1, 1e6),
    st.floats(0, 1000),
)
# How long it ran before it ended (None: it did not start), how long until the next start.
HISTORIES = st.lists(st.tuples(st.none() | st.floats(0, 2000), LOTS), min_size=1, max_size=60)


@given(POLICIES, st.integers(1, 10_000), LOTS)
def test_a_pause_is_within_its_bounds_and_never_shorter_after_one_more_failure(
    policy: RestartPolicy, failures: int, lot: float
) -> None:
    pause = next_pause(policy, failures, lot)
    assert policy.least / 2 <= pause <= policy.most
    assert next_pause(policy, failures + 1, lot) >= pause


@given(POLICIES, LOTS)
def test_pauses_double_until_the_longest(policy: RestartPolicy, lot: float) -> None:
    first, second = next_pause(policy, 1, lot), next_pause(policy, 2, lot)
    assert second == min(2 * policy.least, policy.most) * (1 - lot / 2)
    assert first == policy.least * (1 - lot / 2)
    assert next_pause(policy, 10_000, 0.0) == policy.most


@given(POLICIES, HISTORIES)
def test_every_failure_is_followed_by_a_start_and_counts_only_since_the_last_quiet_time(
    policy: RestartPolicy, history: list[tuple[float | None, float]]
) -> None:
    life, at, expected = Life(), 0.0, 0
    for number, (ran, lot) in enumerate(history):
        life = starting(life, at)
        assert (life.phase, life.restarts) == (Phase.STARTING, number)
        if ran is not None:
            life = running(life, at)
            assert life.phase is Phase.RUNNING
            at += ran
        recovered = ran is not None and at - life.since >= policy.quiet
        expected = 1 if recovered else expected + 1
        life = backing_off(life, policy, "exit 1", at, lot)
        assert (life.phase, life.failures, life.last_exit) == (Phase.BACKING_OFF, expected, "exit 1")
        assert 0 < life.pause <= policy.most
        at += life.pause


def test_a_stopped_service_starts_without_being_counted_as_restarted() -> None:
    life = stopped(running(starting(Life(), 0), 0), 5)
    assert (life.phase, life.since) == (Phase.STOPPED, 5)
    assert starting(life, 6).restarts == 0
