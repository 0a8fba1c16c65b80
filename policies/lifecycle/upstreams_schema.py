"""The section `upstreams` of routes.yaml as JSON Schema, for editors and for whoever generates it.

`upstreams_yaml` is what decides; it also says what no schema can, such as that a port is at most 65535 within a text.
"""

from __future__ import annotations

from typing import Any

from policies.lifecycle.upstreams_yaml import MAX_ADDRESSES, MAX_NETWORKS
from policies.upstreams import IdentityHeader

_DURATION = {"type": "string", "pattern": "^[0-9]{1,9}(ms|s|m|h|d)$"}
_NAME = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"}
_HOST = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", "maxLength": 253}
_ADDRESS = {"type": "string", "pattern": r"^(\[[0-9a-f:.]+\]|[a-z0-9.-]+):[1-9][0-9]{0,4}$"}


def schema() -> dict[str, Any]:
    """The schema of routes.yaml, of which only `upstreams` is described."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "routes.yaml: upstreams",
        "type": "object",
        "properties": {"upstreams": {"type": "array", "items": _pool()}},
    }


def _pool() -> dict[str, Any]:
    forms = [{"required": [form]} for form in ("addresses", "dns", "srv")]
    return _object(
        {
            "name": _NAME,
            "about": {"type": "string"},
            "addresses": {"type": "array", "items": _ADDRESS, "minItems": 1, "maxItems": MAX_ADDRESSES},
            "dns": _ADDRESS,
            "srv": {"type": "string", "pattern": r"^_[a-z0-9-]+\._(tcp|udp)\.", "maxLength": 253},
            "refresh": _DURATION,
            "networks": {"type": "array", "items": {"type": "string"}, "maxItems": MAX_NETWORKS},
            "tls": _tls(),
            "health": _health(),
            "outlier": _outlier(),
            "breaker": _object({name: _whole(0, 1_000_000) for name in ("requests", "pending", "connections")}),
            "retries": _object({"tries": _whole(0, 10), "percent": _whole(0, 100), "least": _whole(0, 1000)}),
            "slow_start": _DURATION,
            "panic": _whole(0, 100),
            "authenticates": {"enum": ["request", "connection"]},
            "proxy_protocol": {"enum": ["none", "v2"]},
            "identity": {"type": "array", "items": {"enum": [each.value for each in IdentityHeader]}},
        },
        required=["name"],
        oneOf=forms,
    )


def _tls() -> dict[str, Any]:
    return _object(
        {
            "ca_file": {"type": "string", "pattern": "^(/[A-Za-z0-9_.-]+)+$"},
            "fleet": {"type": "boolean"},
            "server_name": _HOST,
            "spiffe_id": {"type": "string", "pattern": "^spiffe://[^/]+/[^/]+/[^/]+$"},
            "client_certificate": {"type": "boolean"},
        },
        **{"not": {"required": ["ca_file", "fleet"], "properties": {"fleet": {"const": True}}}},
    )


def _health() -> dict[str, Any]:
    return _object(
        {
            "path": {"type": "string", "pattern": "^(/.*)?$", "maxLength": 1024},
            "host": {"type": "string", "maxLength": 253},
            "interval": _DURATION,
            "timeout": _DURATION,
            "healthy": _whole(1, 100),
            "unhealthy": _whole(1, 100),
        }
    )


def _outlier() -> dict[str, Any]:
    return _object(
        {
            "consecutive_failures": _whole(0, 1000),
            "consecutive_5xx": _whole(0, 1000),
            "failure_percent": _whole(0, 100),
            "volume": _whole(1, 1_000_000),
            "interval": _DURATION,
            "ejection": _DURATION,
            "longest": _DURATION,
            "share": _whole(0, 100),
        }
    )


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


def _whole(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}
