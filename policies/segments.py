"""Which segments an identity is in, for those who have to name them: a gateway that announces a caller, a node that
judges who reaches it. Decisions are policy's (policies/rego/segments.rego); this is the same sentence over the same
data. Pure values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foundation.identifiers import Kind
from foundation.identity import IdentityRecord


def segments_of(data: Mapping[str, Any], record: IdentityRecord) -> frozenset[str]:
    """The segment that the record names and, of a node, those whose selectors it meets. `data` is Rego's, of a compiled
    policy."""
    own = frozenset({record.segment} - {""})
    if record.id.kind is not Kind.NODE:
        return own
    selectors: Mapping[str, Any] = data.get("workspace", {}).get("selectors", {}).get("of", {})
    return own | {name for name, selector in selectors.items() if _selects(selector, record)}


def _selects(selector: Mapping[str, Any], record: IdentityRecord) -> bool:
    """All that it names holds; a list is any of. A condition that is not known here is not met."""
    found = {"tiers": record.tier, "regions": record.region, "sites": record.site}
    labels = selector.get("labels", {})
    return all(
        name in found and found[name] in values for name, values in selector.items() if name != "labels"
    ) and all(record.labels.get(name) in values for name, values in labels.items())
