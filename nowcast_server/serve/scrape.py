"""One scrape for all replicas: through the proxy, Prometheus would reach one at random."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True)
class Family:
    """One metric of one replica.

    Args:
        name, documentation, kind: as Prometheus knows them.
        samples: (name, labels, value), with the label `replica`.
    """

    name: str
    documentation: str
    kind: str
    samples: tuple[tuple[str, dict[str, str], float], ...]


def families(registry: CollectorRegistry, *, replica: str) -> list[Family]:
    """All metrics of a registry as plain values."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            tuple((sample.name, {**sample.labels, "replica": replica}, sample.value) for sample in metric.samples),
        )
        for metric in registry.collect()
    ]


def render(found: Iterable[Family]) -> bytes:
    """The families of all replicas in the text format that Prometheus scrapes."""
    merged: dict[str, list[Family]] = defaultdict(list)
    for family in found:
        merged[family.name].append(family)
    registry = CollectorRegistry()
    registry.register(_Given(merged))
    return generate_latest(registry)


class _Given(Collector):
    def __init__(self, merged: dict[str, list[Family]]) -> None:
        self._merged = merged

    def collect(self) -> Iterator[Metric]:
        for name, found in self._merged.items():
            metric = Metric(name, found[0].documentation, found[0].kind)
            for family in found:
                for sample, labels, value in family.samples:
                    metric.add_sample(sample, labels, value)
            yield metric
