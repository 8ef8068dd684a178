"""Prometheus metrics, on a registry of each app's own.

| name | type | labels | what |
|---|---|---|---|
| `nowcast_uploads_total` | counter | `outcome` | snapshots: `stored`, `replayed` (already held), or the code of the error |
| `nowcast_upload_bytes_total` | counter | | bytes of snapshot bodies received |
| `nowcast_upload_seconds` | histogram | | from the head of an upload to its answer, for snapshots that were taken |
| `nowcast_forecasts_total` | counter | `forecaster`, `outcome` | nowcasts: `made`, `gone` (client hung up), or an error's code |
| `nowcast_forecast_seconds` | histogram | `forecaster` | a forecast on the device |
| `nowcast_queue_seconds` | histogram | | a forecast waited for the device |
| `nowcast_queue_depth` | gauge | | forecasts waiting for the device |
| `nowcast_skill` | histogram | `forecaster` | forecasts whose future has come: 1 is perfect, 0 as good as no change |
| `nowcast_jobs` | gauge | | jobs known |
| `nowcast_jobs_expired_total` | counter | | jobs forgotten because nobody called |
| `nowcast_memory_bytes` | gauge | `use` | bytes promised to `histories` and `forecasts`, and of the `device` |
| `nowcast_memory_limit_bytes` | gauge | `use` | their budgets |
| `nowcast_device_uploads` | gauge | | snapshots uploaded to the device since the start: one a nowcast, if contexts roll |
| `nowcast_device_info` | gauge | `device`, `asked` | 1; where forecasts are made, and what `--device` said |
| `nowcast_evictions_total` | counter | | histories evicted to make room; their workers send them again |
| `nowcast_errors_total` | counter | `code` | calls answered with an error |
| `nowcast_ready` | gauge | | 1 while `/readyz` says yes |

No label names a job or a tenant: their number is not bounded, and they are nobody else's business.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_SKILLS = (-1.0, -0.3, -0.1, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


class Metrics:
    """The counters of one app; see the table above."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.uploads = counter("uploads", "Snapshots by what became of them", "outcome")
        self.upload_bytes = counter("upload_bytes", "Bytes of snapshot bodies received")
        self.upload_seconds = histogram("upload_seconds", "From the first to the last byte of a snapshot")
        self.forecasts = counter("forecasts", "Nowcasts asked for, by what became of them", "forecaster", "outcome")
        self.forecast_seconds = histogram("forecast_seconds", "A forecast on the device", "forecaster")
        self.queue_seconds = histogram("queue_seconds", "A forecast waited for the device")
        self.queue_depth = gauge("queue_depth", "Forecasts waiting for the device")
        self.skill = histogram("skill", "Forecasts whose future has come", "forecaster", buckets=_SKILLS)
        self.jobs = gauge("jobs", "Jobs known")
        self.jobs_expired = counter("jobs_expired", "Jobs forgotten because nobody called")
        self.memory_bytes = gauge("memory_bytes", "Bytes promised", "use")
        self.device_uploads = gauge("device_uploads", "Snapshots uploaded to the device since the start")
        self.device_info = gauge("device_info", "Where forecasts are made", "device", "asked")
        self.memory_limit_bytes = gauge("memory_limit_bytes", "Bytes that may be promised", "use")
        self.evictions = counter("evictions", "Histories evicted to make room")
        self.errors = counter("errors", "Calls answered with an error", "code")
        self.ready = gauge("ready", "1 while /readyz says yes")

    def scored(self, scores: Iterable[tuple[str, float]]) -> None:
        """Count forecasts whose skill is known now."""
        for forecaster, value in scores:
            self.skill.labels(forecaster).observe(value)

    def render(self) -> bytes:
        """In the text format that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"nowcast_{name}", what, labels, registry=self.registry)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"nowcast_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"nowcast_{name}", what, labels, buckets=buckets, registry=self.registry)
