"""Settings of listener and upstreams: safe when absent, refused when wrong."""

from __future__ import annotations

from typing import Any

import pytest

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from gateway.proxy.http2_budget import Http2Settings
from gateway.proxy.overload import OverloadSettings
from gateway.proxy.services import GatewayListenerSettings
from gateway.proxy.upstream import UpstreamSettings


def fields(**values: Any) -> Fields:
    return Fields(values, "gateway", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN)


def test_the_defaults_are_those_of_the_types() -> None:
    assert GatewayListenerSettings.parse(fields()) == GatewayListenerSettings()
    assert UpstreamSettings.parse(fields()) == UpstreamSettings()
    assert OverloadSettings.parse(fields()) == OverloadSettings()
    assert Http2Settings.parse(fields()) == Http2Settings()


def test_settings_are_read() -> None:
    listener = GatewayListenerSettings.parse(fields(port=443, head_bytes="4KiB", idle_timeout="5m", fields=32))
    assert (listener.port, listener.limits.head_bytes, listener.idle_timeout, listener.fields) == (443, 4096, 300, 32)
    assert UpstreamSettings.parse(fields(max_idle=0)).max_idle == 0


@pytest.mark.parametrize(
    "wrong", [{"port": 70_000}, {"handshakes": 0}, {"idle_timeout": 5}, {"head_bytes": "1"}, {"x": 1}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Fault) as refused:
        GatewayListenerSettings.parse(fields(**wrong))
    assert refused.value.field.startswith("gateway")


@pytest.mark.parametrize(
    "wrong",
    [{"streams": 0}, {"window": "1KiB"}, {"buffer": "1GiB"}, {"resets_per_second": 0}, {"enabled": 1}, {"x": 1}],
)
def test_wrong_settings_of_http_2_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Fault) as refused:
        Http2Settings.parse(fields(**wrong))
    assert refused.value.field.startswith("gateway")


def test_http_2_is_offered_first_or_not_at_all() -> None:
    assert Http2Settings.parse(fields()).protocols == ("h2", "http/1.1")
    assert Http2Settings.parse(fields(enabled=False)).protocols == ("http/1.1",)
