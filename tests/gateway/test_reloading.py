"""Which settings can change while the process serves."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.reloading import changed, needs_restart


@pytest.mark.parametrize(
    ("before", "after", "paths"),
    [
        ({"gateway": {"workers": 2}}, {"gateway": {"workers": 2}}, ()),
        ({"gateway": {"workers": 2}}, {"gateway": {"workers": 3}}, ("gateway.workers",)),
        ({"gateway": {"listener": {"port": 1}}}, {}, ("gateway.listener.port",)),
        ({"api": {"port": 1}}, {"api": {"port": True}}, ("api.port",)),
        ({"policy": {}}, {"policy": {"opa": {"port": 1}}}, ("policy.opa.port",)),
    ],
)
def test_changes_are_named_by_their_paths(before: Any, after: Any, paths: tuple[str, ...]) -> None:
    assert changed(before, after) == paths


@pytest.mark.parametrize(
    ("path", "waits"),
    [
        ("gateway.workers", False),
        ("gateway.listener.idle_timeout", False),
        ("policy.engine", False),
        ("telemetry.log_level", False),
        ("gateway.listener.port", True),
        ("gateway.listener.host", True),
        ("sallyport.state", True),
        ("storage.url", True),
        ("gatewayish", True),
    ],
)
def test_what_was_opened_at_the_start_waits_for_the_next(path: str, waits: bool) -> None:
    assert needs_restart(path) is waits
