"""What bounds the whole gateway is parted among its workers."""

from __future__ import annotations

from pathlib import Path

from gateway.configuration import parse_configuration
from gateway.plane import PlaneSettings

SETTINGS = b"""
[sallyport]
trust_domain = "fleet.example"
[gateway.listener]
connections = 100
source_burst = 7
memory = "1MiB"
[gateway.overload]
exchanges = 10
"""


def test_workers_together_allow_what_the_settings_say() -> None:
    whole = PlaneSettings.parse(parse_configuration(SETTINGS, Path("sallyport.toml")))
    own = whole.share(4)
    assert (own.listener.connections, own.listener.source_burst, own.listener.memory) == (25, 2, 1 << 18)
    assert own.overload.exchanges == 3
    assert own.overload.lag == whole.overload.lag
    assert own.listener.connections_per_identity == whole.listener.connections_per_identity
    assert whole.share(1) == whole
