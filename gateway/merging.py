"""The metrics of several processes as those of one.

Counters and histograms add up. A gauge adds up too, but for those that tell how far a process has come, of which the
one that lags counts. What describes a process (memory, descriptors, CPU) stays apart, under the label `process`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import Metric
from prometheus_client.samples import Exemplar, Sample

from foundation.faults import Fault
from foundation.reasons import Reason

_LEAST = frozenset(
    {"sallyport_policy_revision", "sallyport_revocations_number", "sallyport_heartbeat_timestamp_seconds"}
)
_OF_A_PROCESS = ("process_", "python_")
_LASTING = frozenset({"counter", "histogram", "summary"})
Key = tuple[str, tuple[tuple[str, str], ...]]


class Collector(Protocol):
    """`prometheus_client.CollectorRegistry`, as far as it is read here."""

    def collect(self) -> Iterable[Metric]: ...


def dump(registry: Collector) -> bytes:
    """Everything in `registry`, to be read by `load`."""
    return json.dumps([_document(metric) for metric in registry.collect()], separators=(",", ":")).encode()


def load(raw: bytes) -> list[Metric]:
    """What `dump` wrote in another process. Raises `Fault(MESSAGE_MALFORMED)`."""
    try:
        return [_metric(document) for document in json.loads(raw)]
    except (ValueError, TypeError, KeyError) as error:
        raise Fault(Reason.MESSAGE_MALFORMED, "no metrics", field="metrics") from error


def lasting(metrics: Iterable[Metric]) -> list[Metric]:
    """What counts on when a process has ended: what it added to, not how it stood."""
    return [metric for metric in metrics if metric.type in _LASTING and not metric.name.startswith(_OF_A_PROCESS)]


def named(metrics: Iterable[Metric], process: str) -> list[Metric]:
    """The same, with what describes the process itself under its name."""
    found = []
    for metric in metrics:
        if metric.name.startswith(_OF_A_PROCESS):
            metric.samples = [each._replace(labels={**each.labels, "process": process}) for each in metric.samples]
        found.append(metric)
    return found


class Merged:
    """A collector of what several processes told."""

    def __init__(self, told: Iterable[Iterable[Metric]]) -> None:
        self._families: dict[str, Metric] = {}
        self._samples: dict[str, dict[Key, Sample]] = {}
        for metrics in told:
            for metric in metrics:
                self._add(metric)

    def collect(self) -> Iterator[Metric]:
        for name, family in self._families.items():
            family.samples = list(self._samples[name].values())
            yield family

    def _add(self, metric: Metric) -> None:
        if metric.name not in self._families:
            self._families[metric.name] = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        samples = self._samples.setdefault(metric.name, {})
        for sample in metric.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            known = samples.get(key)
            samples[key] = sample if known is None else _together(metric.name, known, sample)


def _together(family: str, one: Sample, other: Sample) -> Sample:
    if family in _LEAST or one.name.endswith("_created"):
        return one if one.value <= other.value else other
    return one._replace(value=one.value + other.value, exemplar=other.exemplar or one.exemplar)


def _document(metric: Metric) -> list[Any]:
    samples = [[each.name, each.labels, each.value, _exemplar(each)] for each in metric.samples]
    return [metric.name, metric.documentation, metric.type, metric.unit, samples]


def _exemplar(sample: Sample) -> list[Any] | None:
    found = sample.exemplar
    return None if found is None else [found.labels, found.value, found.timestamp]


def _metric(document: list[Any]) -> Metric:
    name, about, kind, unit, samples = document
    metric = Metric(name, about, kind, unit)
    for sample_name, labels, value, exemplar in samples:
        metric.samples.append(_sample(sample_name, labels, float(value), exemplar))
    return metric


def _sample(name: str, labels: Mapping[str, str], value: float, exemplar: list[Any] | None) -> Sample:
    return Sample(name, dict(labels), value, None, Exemplar(*exemplar) if exemplar else None)
